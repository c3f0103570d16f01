"""Runs of slides: their options, and the counts that they write."""

from __future__ import annotations

import csv
from pathlib import Path

RUN = ("--device", "cpu", "--backend", "native", "--quiet", "--workers", "1")


def counts(path: Path) -> dict[str, int]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return {row["image"]: int(row["nuclei"] or -1) for row in csv.DictReader(stream)}
