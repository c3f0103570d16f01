"""Cases of the rules of counting, for qpnuclei and for the script that counts in QuPath."""

from __future__ import annotations

import json
from typing import Any

from tests.paths import ROOT

CASES: dict[str, list[dict[str, Any]]] = json.loads(
    (ROOT / "tests" / "data" / "counting-cases.json").read_text("utf-8")
)

Ring = list[list[float]]


def id_of(letter: str) -> str:
    """Return the UUID that a letter stands for."""
    return f"00000000-0000-4000-8000-0000000000{ord(letter):02x}"


def rings(shape: dict[str, Any]) -> list[list[Ring]]:
    """Return the coordinates of a multipolygon: one polygon, or none."""
    if "ring" in shape:
        return [[[*shape["ring"], shape["ring"][0]]]]
    return box(shape["box"]) if "box" in shape else []


def box(bounds: list[float]) -> list[list[Ring]]:
    x0, y0, x1, y1 = bounds
    return [[[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]]


def record_of(case: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the record of an image in a case."""
    areas = [
        {
            **{key: value for key, value in area.items() if key not in ("box", "ring")},
            "id": None if area["id"] is None else id_of(area["id"]),
            "coordinates": rings(area),
            **({"excluded": box(area["excluded"])} if "excluded" in area else {}),
        }
        for area in case["areas"]
    ]
    return {
        "areas": areas,
        "pixel size": {"um": [0.5, 0.5], "source": "--mpp", "project": None},
        "stains": case.get("stains of last run", []),
    }
