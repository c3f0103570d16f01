"""Measure the speed of ``qpnuclei run``: against two baselines, and for growing regions.

``python -m benchmarks.run`` (or ``make bench``) takes some minutes on two cores. All programs
analyse the same synthetic tissue on the CPU, each time in a separate process, one after the other
in turn. Times exclude imports, loading the model, and its first forward pass.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks import baselines
from benchmarks.measuring import describe, in_child, machine, save, table
from benchmarks.tissue import MPP, make_project, paint_field
from qpnuclei.models.registry import DEFAULT_MODEL
from qpnuclei.system.threads import available_cores

COMPARED_MPX = 64
STAGES = ("read", "predict", "segment", "measure", "stitch", "write")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="model of qpnuclei and of the literal program"
    )
    parser.add_argument("--mpx", type=int, nargs="+", default=[1, 4, 16, 64], help="ROI areas")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, available_cores()])
    parser.add_argument("--repeat", type=int, default=2, help="rounds of the comparison")
    arguments = parser.parse_args()
    about = machine()
    model = arguments.model
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        field = paint_field(folder)
        projects = {
            mpx: make_project(folder / f"{mpx}", field, _side(mpx))
            for mpx in sorted({*arguments.mpx, COMPARED_MPX})
        }
        compared = projects[COMPARED_MPX]
        rounds = [compare(compared, folder, model) for _ in range(arguments.repeat)]
        scaling = {mpx: in_child(ours, projects[mpx], model) for mpx in arguments.mpx}
        workers = {n: in_child(ours, compared, model, n) for n in sorted({*arguments.workers})}
        half = in_child(ours, compared, model, None, "bfloat16")
    results = {
        "machine": about,
        "model": model,
        "compared_mpx": COMPARED_MPX,
        "comparison": {name: [r[name] for r in rounds] for name in rounds[0]},
        "scaling": scaling,
        "workers": workers,
        "bfloat16": half,
    }
    save("run", results, report(results))


def compare(project: Path, folder: Path, model: str) -> dict[str, dict[str, Any]]:
    """Run all programs once, in turn, on the same pixels, each on a fresh copy of the project."""
    side = _side(COMPARED_MPX)

    def fresh() -> Path:
        shutil.rmtree(folder / "copy", ignore_errors=True)
        shutil.copytree(project.parent, folder / "copy")
        return folder / "copy" / project.name

    return {
        "qpnuclei run": in_child(ours, fresh(), model),
        "literal": in_child(baselines.literal, fresh(), side, model),
        "classical": in_child(baselines.classical, fresh(), side),
        "paper's network": in_child(baselines.paper_network),
    }


def ours(
    project: Path,
    model: str = DEFAULT_MODEL,
    workers: int | None = None,
    precision: Literal["auto", "bfloat16"] = "auto",
) -> dict[str, Any]:
    """Run ``qpnuclei run`` on a project; nuclei of an earlier run are replaced."""
    from qpnuclei.pipeline.image import segment
    from qpnuclei.pipeline.options import RunOptions
    from qpnuclei.pipeline.run import analyse_project
    from qpnuclei.pipeline.selection import Selection
    from qpnuclei.qupath.project import open_project
    from qpnuclei.segmentation.engine import load_engine
    from qpnuclei.system.memory import keep_freed_memory

    opened = open_project(project, backend="native")
    options = RunOptions(
        Selection(classes=("Tumor",)),
        model=model,
        device="cpu",
        workers=workers or available_cores(),
        precision=precision,
    )
    segment(load_engine(model, options.engine), np.zeros((256, 256, 3), np.uint8), MPP)
    start = time.process_time()
    with keep_freed_memory():
        summary = analyse_project(opened, opened.images, options)
    processor = time.process_time() - start
    (image,) = summary.images
    return {
        "seconds": summary.seconds,
        "processor_seconds": processor,
        "stages": image.seconds,
        "waited": image.waited,
        "nuclei": image.nuclei,
        "megapixels": image.megapixels,
        "network": summary.models[0]["name"],
    }


def report(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    mpx = results["compared_mpx"]
    comparison = dict(results["comparison"])
    paper = min(r["seconds"] / r["megapixels"] for r in comparison.pop("paper's network"))
    best = {name: min(runs, key=lambda r: r["seconds"]) for name, runs in comparison.items()}
    own, literal = best["qpnuclei run"], best["literal"]
    pixels = mpx * 1024**2 / 1e6
    rest = literal["seconds"] - literal["stages"]["predict"]
    as_published = {**literal, "seconds": rest + paper * pixels, "nuclei": None, "peak_mib": None}
    rows = [
        [name, *_rates(r, mpx), r["seconds"] / own["seconds"]]
        for name, r in {
            **best,
            "literal with the paper's network (computed)": as_published,
        }.items()
    ]
    columns = ("Mpx/s", "s/mm²", "nuclei/s", "nuclei", "peak MiB")
    parts = [
        "# `qpnuclei run` on synthetic tissue at 0.25 µm/px, CPU",
        describe(results["machine"]),
        f"## Against plain programs: {mpx} Mpx, best of {len(comparison['literal'])} in turn",
        f"*qpnuclei run*: `--model {results['model']}`. *literal*: the same "
        "network tile by tile, section 3.4 with SciPy and scikit-image, regionprops and contours "
        "one nucleus at a time. *classical*: haematoxylin, Otsu, watershed with scikit-image. Both "
        "read without halos and write one nucleus at a time "
        f"({literal['written_with'].partition(',')[0]}); `qpnuclei run` writes into the QuPath "
        "project.",
        table(("program", *columns, "× the time of qpnuclei"), rows),
        f"The network of the paper (64 channels, full resolution) takes {paper:.3g} s per Mpx "
        f"here, measured on one tile of {baselines.TILE_PX} px with random weights, the fastest of "
        "as many rounds. It has no trained weights, so its row is computed: the time of the "
        "literal program without its network, plus this.",
        "Seconds of each stage per Mpx (those of `qpnuclei run` overlap), and processor time:",
        table(
            ("program", *STAGES, "processor"),
            [
                [
                    name,
                    *(r["stages"][s] / pixels if s in r["stages"] else None for s in STAGES),
                    r["processor_seconds"] / pixels if "processor_seconds" in r else None,
                ]
                for name, r in best.items()
            ],
        ),
        "Of qpnuclei's stages, "
        + ", ".join(
            f"{stage} waited {seconds / pixels:.3g} s per Mpx for the one before it"
            for stage, seconds in own["waited"].items()
        )
        + ".",
        "## As the region grows",
        table(
            ("Mpx", "seconds", *columns, "processor s/Mpx"),
            [
                [
                    int(n),
                    r["seconds"],
                    *_rates(r, int(n)),
                    r["processor_seconds"] / (int(n) * 1024**2 / 1e6),
                ]
                for n, r in results["scaling"].items()
            ],
        ),
        f"## Options, {mpx} Mpx",
        table(
            ("option", "seconds", *columns),
            [
                *(
                    [f"--workers {n}", r["seconds"], *_rates(r, mpx)]
                    for n, r in results["workers"].items()
                ),
                [
                    "--precision bfloat16",
                    results["bfloat16"]["seconds"],
                    *_rates(results["bfloat16"], mpx),
                ],
            ],
        ),
    ]
    return "\n\n".join(parts)


def _side(megapixels: int) -> int:
    # 1 "Mpx" is a square of 1024 px.
    return round(1024 * megapixels**0.5)


def _rates(result: dict[str, Any], megapixels: int) -> list[float | None]:
    pixels = megapixels * 1024**2
    seconds = result["seconds"]
    return [
        pixels / 1e6 / seconds,
        seconds / (pixels * (MPP * 1e-3) ** 2),
        None if result["nuclei"] is None else result["nuclei"] / seconds,
        result["nuclei"],
        result["peak_mib"],
    ]


if __name__ == "__main__":
    main()
