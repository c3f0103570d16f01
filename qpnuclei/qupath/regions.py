"""Images by name, and annotations as areas: which detections lie in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import UsageError
from qpnuclei.qupath.model import Annotation, ImageEntry, Project

#: Coordinates of the same outline differ by no more: GeoJSON and some ROIs of QuPath keep 0.01 px,
#: others float32.
_SAME_PX = 0.02


Entry = TypeVar("Entry", bound=ImageEntry)


def match_images(project: Project, patterns: Sequence[str]) -> list[ImageEntry]:
    """Return the images with one of the names or patterns (``*``, ``?``); all if there are none.

    Raises
    ------
    UsageError
        If there is no such image.
    """
    entries = [
        entry
        for entry in project.images
        if not patterns
        or any(entry.name == wanted or fnmatchcase(entry.name, wanted) for wanted in patterns)
    ]
    if not entries:
        names = ", ".join(entry.name for entry in project.images)
        raise UsageError(
            f"no image of {project.path} matches {' or '.join(map(repr, patterns))}"
            if names
            else f"{project.path} has no images",
            f"images there: {names}" if names else "add slides in QuPath",
        )
    return entries


def one_image(images: Sequence[Entry], name: str) -> Entry:
    """Return the image of a name or entry ID.

    Raises
    ------
    UsageError
        If there is no such image, or several of that name.
    """
    named = [entry for entry in images if entry.name == name]
    found = named or [entry for entry in images if entry.id == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{len(found)} images are called {name!r}",
            f"say which by its ID: {', '.join(entry.id for entry in found)}",
        )
    names = ", ".join(entry.name for entry in images) or "none"
    raise UsageError(f"no image is called {name!r}", f"images of the project: {names}")


@dataclass(frozen=True)
class Region:
    """One annotation's area (or the tissue's), valid and clipped to the image.

    `annotation` is None for tissue; `geometry` is a valid Polygon or MultiPolygon in level-0 px.
    """

    annotation: Annotation | None
    geometry: shapely.Geometry

    @property
    def label(self) -> str:
        """How messages and the summary call it."""
        return self.annotation.label if self.annotation else "tissue"

    @property
    def handle(self) -> int | None:
        """Handle of the annotation, None for tissue."""
        return self.annotation.handle if self.annotation else None


def same_outline(a: shapely.Geometry, b: shapely.Geometry) -> bool:
    """Tell whether two geometries are the same but for how exactly files keep coordinates."""
    if shapely.equals_exact(a, b, _SAME_PX):
        return True
    return bool(shapely.equals_exact(shapely.normalize(a), shapely.normalize(b), _SAME_PX))


def region_of(points: npt.NDArray[np.float64], regions: Sequence[Region]) -> npt.NDArray[np.int64]:
    """Say which region each point is written under.

    Where regions overlap it is the smallest, as QuPath nests objects in the innermost annotation.

    Parameters
    ----------
    points : (N, 2) float64 ndarray
        In level-0 px.

    Returns
    -------
    (N,) int64 ndarray
        Index of the region; -1 for none.
    """
    owner = np.full(len(points), -1, np.int64)
    for index in sorted(range(len(regions)), key=lambda i: -regions[i].geometry.area):
        owner[inside(regions[index], points)] = index
    return owner


def inside(region: Region, points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Tell which of (N, 2) points in level-0 px lie in a region or on its border."""
    shapely.prepare(region.geometry)
    found: npt.NDArray[np.bool_] = shapely.intersects_xy(
        region.geometry, points[:, 0], points[:, 1]
    )
    return found
