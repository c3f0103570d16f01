"""The results of an evaluation as JSON and as Markdown tables."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qpnuclei.errors import SaveError, number_of
from qpnuclei.evaluation.bootstrap import LEVEL, RESAMPLES, SEED
from qpnuclei.evaluation.scoring import Comparison, Evaluation
from qpnuclei.system.files import name_of, write_atomically
from qpnuclei.system.one_line import in_one_line

#: Columns of the tables: score, heading, digits.
COLUMNS = (
    ("AJI", "AJI", 3),
    ("ADC", "ADC (Dice)", 3),
    ("AHD", "AHD (px)", 2),
    ("AHD_within", "AHD within (px)", 2),
    ("PQ", "PQ", 3),
    ("DQ", "DQ = F1", 3),
    ("SQ", "SQ", 3),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("count_error", "count error", 3),
)


@dataclass(frozen=True, eq=False)
class Report:
    """The results of an evaluation, and everything needed to repeat it.

    Parameters
    ----------
    result : Evaluation
        Results of the evaluated method.
    others : tuple of Evaluation
        Results for comparison: of the classical baseline, and of the model before tuning.
    dataset : dict
        Folder, layout and split.
    notes : tuple of str
        Remarks that are necessary to interpret the figures.
    provenance : dict
        Model, device, arguments, versions.
    unwritten : SaveError or None
        Why the tuned model could not be written, if it should have been.
    """

    result: Evaluation
    others: tuple[Evaluation, ...]
    dataset: dict[str, Any]
    notes: tuple[str, ...]
    provenance: dict[str, Any]
    unwritten: SaveError | None = None

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Comparison of the result with each of the others, on the same images."""
        return tuple(Comparison(self.result, other) for other in self.others)

    def to_json(self) -> dict[str, Any]:
        """Return JSON types; an undefined score is None."""
        return {
            "method": self.result.name,
            "dataset": self.dataset,
            "notes": list(self.notes),
            **_evaluation(self.result),
            "others": {other.name: _evaluation(other) for other in self.others},
            "difference": {
                comparison.second.name: {
                    "mean": json_numbers(comparison.mean),
                    "interval": json_intervals(comparison.interval),
                }
                for comparison in self.comparisons
            },
            "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
            **self.provenance,
        }

    def rows(self) -> list[tuple[str, list[str]]]:
        """Return name and cells of the table of means: each method, then each difference."""
        rows = [
            (evaluation.name, _cells(evaluation.mean, evaluation.interval))
            for evaluation in (self.result, *self.others)
        ]
        rows += [
            (
                f"difference to {comparison.second.name}",
                _cells(comparison.mean, comparison.interval, sign="+"),
            )
            for comparison in self.comparisons
        ]
        return rows

    @property
    def remarks(self) -> tuple[str, ...]:
        """The sentences below the table: the count error of all images together, and the notes."""
        error = self.result.pooled_count_error
        pooled = (
            () if math.isnan(error) else (f"Count error of all images together: {error:+.1%}.",)
        )
        return (*pooled, *self.notes)

    def to_markdown(self) -> str:
        """Return the table of means with their intervals, and one of the images."""
        images = self.result.images
        lines = [
            f"# {self.title}",
            "",
            self.about,
            "",
            *_table(["method", *(heading for _, heading, _ in COLUMNS)], self.rows()),
            "",
            *(f"- {note}" for note in self.remarks),
            "",
            "## Annotated nuclei by kind of match",
            "",
            *_table(
                ["method", *self.result.errors],
                [
                    (e.name, [str(count) for count in e.errors.values()])
                    for e in (self.result, *self.others)
                ],
            ),
            "",
            "## Images",
            "",
            *_table(
                [
                    "image",
                    *(heading for _, heading, _ in COLUMNS),
                    *(f"AJI of {other.name}" for other in self.others),
                ],
                [
                    (
                        r.image.name,
                        [
                            *_cells(asdict(r.scores)),
                            *(format_score(o.images[i].scores.AJI, 3) for o in self.others),
                        ],
                    )
                    for i, r in enumerate(images)
                ],
            ),
        ]
        return "".join(in_one_line(line) + "\n" for line in lines)

    @property
    def about(self) -> str:
        """Number of images and nuclei behind the figures, and the meaning of the brackets."""
        nuclei = sum(result.scores.true_count for result in self.result.images)
        count = len(self.result.images)
        annotated = number_of(nuclei, "annotated nucleus", "annotated nuclei")
        if count == 1:
            return f"One image, {annotated}: too few to generalise to other images."
        return (
            f"{count} images, {annotated}. Mean over images [95 % bootstrap interval over images]."
        )

    @property
    def title(self) -> str:
        """The method and the data set."""
        split = self.dataset["split"]
        where = name_of(Path(self.dataset["path"])) + (f", split {split}" if split else "")
        return f"{self.result.name} on {where}"


def report_files(path: Path) -> tuple[Path, Path, Path]:
    """Return the files of a report: JSON, the Markdown table and the page."""
    return path.with_suffix(".json"), path.with_suffix(".md"), path.with_suffix(".html")


def write_report(report: Report, path: Path, page: str) -> None:
    """Write the `report_files` of a path.

    Raises
    ------
    qpnuclei.errors.SaveError
        If a file cannot be written.
    """
    content = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    texts = content, report.to_markdown(), page
    for file, text in zip(report_files(path), texts, strict=True):
        # File names need not be valid Unicode.
        write_atomically(file, text.encode(errors="backslashreplace"))


def format_score(value: float, digits: int, sign: str = "") -> str:
    """Format a score with `digits` decimals; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:{sign}.{digits}f}"


def _cells(
    values: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]] | None = None,
    sign: str = "",
) -> list[str]:
    cells = []
    for name, _, digits in COLUMNS:
        # A count error always has a sign: more or fewer nuclei.
        signed = "+" if name == "count_error" else sign
        cell = format_score(values[name], digits, signed)
        if intervals is not None and not math.isnan(intervals[name][0]):
            low, high = (format_score(end, digits, signed) for end in intervals[name])
            cell += f" [{low}, {high}]"
        cells.append(cell)
    return cells


def _table(headings: list[str], rows: list[tuple[str, list[str]]]) -> list[str]:
    return [
        f"| {' | '.join(map(_in_cell, headings))} |",
        "|---" * len(headings) + "|",
        *(f"| {_in_cell(name)} | {' | '.join(cells)} |" for name, cells in rows),
    ]


def _in_cell(name: str) -> str:
    return name.replace("|", r"\|").replace("<", "&lt;")


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "mean": json_numbers(evaluation.mean),
        "interval": json_intervals(evaluation.interval),
        "pooled": json_numbers({"count_error": evaluation.pooled_count_error}),
        "errors": evaluation.errors,
        "images": [
            {
                "name": result.image.name,
                "mpp": result.mpp,
                **json_numbers(asdict(result.scores)),
                "errors": result.errors,
            }
            for result in evaluation.images
        ],
    }


def json_numbers(values: Mapping[str, float]) -> dict[str, float | None]:
    """Return scores with None instead of NaN, which JSON does not allow."""
    return {name: None if math.isnan(v) else v for name, v in values.items()}


def json_intervals(values: Mapping[str, tuple[float, float]]) -> dict[str, list[float] | None]:
    """Return intervals as lists, and undefined ones as None."""
    return {name: None if math.isnan(v[0]) else list(v) for name, v in values.items()}
