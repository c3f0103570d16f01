"""How fast ``qpnuclei run`` is: against two rivals, and as the region grows.

``python -m benchmarks.run`` (or ``make bench``) takes some minutes on two cores. All programs
analyse the same synthetic tissue on the CPU, each time in a process of its own, one after the
other and in turn; times are without imports and the loading of the model.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any, Literal

from benchmarks import rivals
from benchmarks.measuring import describe, in_child, machine, save, table
from benchmarks.tissue import MPP, make_project, paint_field
from qpnuclei.stages import available_cores

COMPARED_MPX = 4
STAGES = ("read", "attend", "segment", "measure", "stitch", "write")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mpx", type=int, nargs="+", default=[1, 4, 16], help="ROI areas")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, available_cores()])
    parser.add_argument("--repeat", type=int, default=3, help="rounds of the comparison")
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        field = paint_field(folder)
        projects = {
            mpx: make_project(folder / f"{mpx}", field, mpx)
            for mpx in sorted({*arguments.mpx, COMPARED_MPX})
        }
        rounds = [compare(projects[COMPARED_MPX], folder) for _ in range(arguments.repeat)]
        scaling = {mpx: in_child(ours, projects[mpx]) for mpx in arguments.mpx}
        workers = {
            n: in_child(ours, projects[COMPARED_MPX], n) for n in sorted({*arguments.workers})
        }
        half = in_child(ours, projects[COMPARED_MPX], None, "bfloat16")
    results = {
        "machine": about,
        "compared_mpx": COMPARED_MPX,
        "comparison": {name: [r[name] for r in rounds] for name in rounds[0]},
        "scaling": scaling,
        "workers": workers,
        "bfloat16": half,
    }
    save("run", results, report(results))


def compare(project: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Run all programs once, in turn, on the same pixels."""
    slide = next(project.parent.glob("*.tif"))
    side = round(1024 * COMPARED_MPX**0.5)
    return {
        "qpnuclei run": in_child(ours, project),
        "literal": in_child(rivals.literal, slide, side, folder / "literal.geojson"),
        "classical": in_child(rivals.classical, slide, side, folder / "classical.geojson"),
    }


def ours(
    project: Path, workers: int | None = None, precision: Literal["auto", "bfloat16"] = "auto"
) -> dict[str, Any]:
    """Run ``qpnuclei run`` on a project; nuclei of an earlier run are replaced."""
    from qpnuclei.pipeline import analyse_project
    from qpnuclei.planning import RunOptions
    from qpnuclei.qupath.backend import open_project
    from qpnuclei.roi import RoiSelection

    opened = open_project(project, backend="native")
    options = RunOptions(
        RoiSelection(classes=("Tumor",)),
        device="cpu",
        workers=workers or available_cores(),
        precision=precision,
    )
    summary = analyse_project(opened, opened.images, options)
    (image,) = summary.images
    return {
        "seconds": summary.seconds,
        "stages": image.seconds,
        "nuclei": image.nuclei,
        "megapixels": image.megapixels,
    }


def report(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    mpx, comparison = results["compared_mpx"], results["comparison"]
    best = {name: min(runs, key=lambda r: r["seconds"]) for name, runs in comparison.items()}
    own = best["qpnuclei run"]["seconds"]
    rows = [[name, *_rates(r, mpx), r["seconds"] / own] for name, r in best.items()]
    columns = ("Mpx/s", "s/mm²", "nuclei/s", "nuclei", "peak MiB")
    parts = [
        "# `qpnuclei run` on synthetic tissue at 0.25 µm/px, CPU",
        describe(results["machine"]),
        f"## Against plain programs: {mpx} Mpx, best of {len(comparison['literal'])} in turn",
        "*literal*: the same network tile by tile, section 3.4 with SciPy and scikit-image, "
        "regionprops and contours one nucleus at a time. *classical*: haematoxylin, Otsu, "
        "watershed with scikit-image. Both read without halos and write plain GeoJSON; "
        "`qpnuclei run` writes into the QuPath project.",
        table(("program", *columns, "× the time of qpnuclei"), rows),
        "Seconds of each stage per Mpx (those of `qpnuclei run` overlap):",
        table(
            ("program", *STAGES),
            [
                [name, *(r["stages"][s] / mpx if s in r["stages"] else None for s in STAGES)]
                for name, r in best.items()
            ],
        ),
        "## As the region grows",
        table(
            ("Mpx", "seconds", *columns),
            [[int(n), r["seconds"], *_rates(r, int(n))] for n, r in results["scaling"].items()],
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


def _rates(result: dict[str, Any], megapixels: int) -> list[float]:
    # 1 "Mpx" of a square of 1024 n px.
    pixels = megapixels * 1024**2
    seconds = result["seconds"]
    return [
        pixels / 1e6 / seconds,
        seconds / (pixels * (MPP * 1e-3) ** 2),
        result["nuclei"] / seconds,
        result["nuclei"],
        result["peak_mib"],
    ]


if __name__ == "__main__":
    main()
