"""Functions for all benchmarks: a description of the machine, child processes, tables."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qpnuclei.models.metadata import model_hash
from qpnuclei.models.registry import WEIGHTS_FOLDER
from qpnuclei.system.timing import peak_memory_mib
from qpnuclei.system.versions import versions

RESULTS = Path(__file__).resolve().parent / "results"


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, memory, load, versions, packaged weights. No paths.

    Weights are identified by the first digits of their SHA-256: names do not change with weights.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "load_before": load,
        "versions": versions(),
        "weights": {
            path.stem: model_hash(path)[:12]
            for path in sorted(WEIGHTS_FOLDER.glob("*.safetensors"))
        },
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def in_child(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run a function of a module in a separate process and return its result.

    ``peak_mib`` of that process is added, and ``seconds`` unless `work` measured them itself.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, arguments))


def _measured(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    start = time.perf_counter()
    result = work(*arguments)
    elapsed = time.perf_counter() - start
    return {"seconds": elapsed, **result, "peak_mib": peak_memory_mib()}


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if cell >= 100 else f"{cell:.3g}"
    return "–" if cell is None else str(cell)


def describe(about: dict[str, Any]) -> str:
    """Return the machine in one paragraph."""
    load = about["load_before"]
    return (
        f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB, "
        f"{about['system']}; load before the run {'unknown' if load is None else f'{load:.1f}'}; "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        + "; weights (SHA-256) "
        + ", ".join(f"{name} {sha256}" for name, sha256 in about["weights"].items())
    )


def save(name: str, results: dict[str, Any], text: str) -> None:
    """Print a report and write it, with its figures, to ``benchmarks/results``."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(text + "\n")
