"""Synthetic tissue of any size: one painted field, repeated by reflection."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import shapely
import tifffile

from qpnuclei.datasets.synthetic.slide import SYNTHETIC_MPP, make_slide, write_slide
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.slides.slide import open_slide

FIELD_PX = 2048
MPP = SYNTHETIC_MPP


def paint_field(folder: Path) -> np.ndarray:
    """Paint one field of tissue, (FIELD_PX, FIELD_PX, 3) uint8."""
    # The slide has glass around the tissue in its middle.
    slide = make_slide(folder / "synthetic-field.tif", (2 * FIELD_PX, 2 * FIELD_PX))
    with open_slide(slide.path) as opened:
        return opened.read(FIELD_PX // 2, FIELD_PX // 2, FIELD_PX, FIELD_PX)


def write_repeated(path: Path, field: np.ndarray, side: int) -> None:
    """Write a square pyramid of `side` px: a field and its reflections, which fit together.

    The field and its reflections are compressed once; all other tiles are copies of their bytes. So
    a slide of any size takes little time and memory.
    """
    at = np.r_[: len(field), len(field) - 1 : -1 : -1]
    period = path.with_name(f"synthetic-period-{path.name}")
    write_slide(period, field[np.ix_(at, at)])
    with tifffile.TiffFile(period) as one, tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for page in one.pages:
            factor = 2 * len(field) // page.imagewidth
            size = -(-side // factor)
            tile, per_row = page.tilewidth, page.imagewidth // page.tilewidth
            encoded = [
                one.filehandle.read_array("uint8", count, offset=offset).tobytes()
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
            ]
            tiles = range(-(-size // tile))
            tiff.write(
                (encoded[y % per_row * per_row + x % per_row] for y in tiles for x in tiles),
                shape=(size, size, 3),
                dtype="uint8",
                tile=(tile, tile),
                photometric="rgb",
                compression="jpeg",
                metadata=None,
                subfiletype=page.subfiletype,
                resolution=(1e4 / (MPP * factor),) * 2,
                resolutionunit="CENTIMETER",
            )
    period.unlink()


def make_project(folder: Path, field: np.ndarray, side: int) -> Path:
    """Make a project with one slide and one annotation, a square of class Tumor.

    Parameters
    ----------
    side : int
        Side of the slide in px.

    Returns
    -------
    Path
        Folder of the project.
    """
    folder.mkdir(parents=True)
    slide = folder / f"synthetic-{side}.tif"
    write_repeated(slide, field, side)
    project = create_from_slides(folder / "project", [slide])
    entry = project.images[0]
    annotation = NewAnnotation(
        shapely.box(0, 0, side, side),
        uuid.uuid5(uuid.NAMESPACE_OID, f"{side}"),
        "field",
        PathClass("Tumor"),
    )
    entry.write(Edit(annotations=[annotation]), entry.read().fingerprint)
    return folder / "project"
