"""Synthetic tissue of any size: one painted field, repeated by reflection."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import shapely

from qpnuclei.demo.synthetic import SYNTHETIC_MPP, make_slide, write_slide
from qpnuclei.new_project import create_from_slides
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.slides.slide import open_slide

FIELD_PX = 2048
MPP = SYNTHETIC_MPP


def paint_field(folder: Path) -> np.ndarray:
    """Paint one field of tissue, (FIELD_PX, FIELD_PX, 3) uint8."""
    # The slide around it is glass: its middle is tissue.
    slide = make_slide(folder / "synthetic-field.tif", (2 * FIELD_PX, 2 * FIELD_PX))
    with open_slide(slide.path) as opened:
        return opened.read(FIELD_PX // 2, FIELD_PX // 2, FIELD_PX, FIELD_PX)


def repeat(field: np.ndarray, side: int) -> np.ndarray:
    """Cover a square of `side` px with a field and its reflections, which fit together."""
    at = np.arange(side) % (2 * len(field))
    at = np.minimum(at, 2 * len(field) - 1 - at)
    return field[np.ix_(at, at)]


def make_project(folder: Path, field: np.ndarray, megapixels: int) -> Path:
    """Make a project of one slide whose one annotation, of class Tumor, is a square.

    Returns
    -------
    Path
        The project's folder.
    """
    side = round(1024 * megapixels**0.5)
    folder.mkdir(parents=True)
    slide = folder / f"synthetic-{megapixels}-mpx.tif"
    write_slide(slide, repeat(field, side))
    project = create_from_slides(folder / "project", [slide])
    entry = project.images[0]
    annotation = NewAnnotation(
        shapely.box(0, 0, side, side),
        uuid.uuid5(uuid.NAMESPACE_OID, f"{megapixels}"),
        "field",
        PathClass("Tumor"),
    )
    entry.write(Edit(annotations=[annotation]), entry.read().fingerprint)
    return folder / "project"
