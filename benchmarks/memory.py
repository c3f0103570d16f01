"""Compare the peak memory of ``qpnuclei run`` on a small and a large slide: it should hardly grow.

``python -m benchmarks.memory`` analyses synthetic tissue of 10,000 x 10,000 and of 40,000 x 40,000
px, each in a separate process. The large slide takes about four minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measuring import describe, in_child, machine, save, table
from benchmarks.run import ours
from benchmarks.tissue import make_project, paint_field
from qpnuclei.models.registry import DEFAULT_MODEL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--side", type=int, nargs="+", default=[10_000, 40_000], help="in px")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    about = machine()
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        field = paint_field(folder)
        for side in arguments.side:
            project = make_project(folder / str(side), field, side)
            results[side] = in_child(ours, project, arguments.model, arguments.workers)
    content = {"machine": about, "workers": arguments.workers, "sides": results}
    save("memory", content, report(content))


def report(content: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    results = content["sides"]
    network = next(iter(results.values()))["network"]
    rows = [
        [
            f"{side:,} x {side:,}",
            r["megapixels"],
            r["nuclei"],
            r["peak_mib"],
            r["seconds"],
            r["megapixels"] / r["seconds"],
        ]
        for side, r in results.items()
    ]
    return "\n\n".join(
        [
            "# Peak memory of `qpnuclei run` as the region grows, CPU",
            describe(content["machine"]),
            f"Model: {network}; `--workers {content['workers']}`; native backend.",
            table(("px", "Mpx", "nuclei", "peak MiB", "seconds", "Mpx/s"), rows),
        ]
    )


if __name__ == "__main__":
    main()
