"""Rectangles of pixels of the working grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely


class Box(NamedTuple):
    """A half-open rectangle: x0 <= x < x1, y0 <= y < y1."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        """x1 - x0."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """y1 - y0."""
        return self.y1 - self.y0

    def polygon(self) -> shapely.Polygon:
        """Return the rectangle as a Shapely polygon."""
        return shapely.box(*self)

    @property
    def area(self) -> int:
        """Width times height."""
        return self.width * self.height

    @classmethod
    def around(cls, boxes: Sequence[Box]) -> Box:
        """Return the bounding box of rectangles."""
        x0, y0, x1, y1 = zip(*boxes, strict=True)
        return cls(min(x0), min(y0), max(x1), max(y1))

    def grown(self, margin: int) -> Box:
        """Return the rectangle with a margin on all sides."""
        return Box(self.x0 - margin, self.y0 - margin, self.x1 + margin, self.y1 + margin)

    def within(self, other: Box) -> tuple[slice, slice]:
        """Return slices (rows first) of the rectangle in an array of an enclosing rectangle."""
        return (
            slice(self.y0 - other.y0, self.y1 - other.y0),
            slice(self.x0 - other.x0, self.x1 - other.x0),
        )

    def intersection(self, other: Box) -> Box | None:
        """Return the intersection with another rectangle; None if it is empty."""
        common = Box(
            max(self.x0, other.x0),
            max(self.y0, other.y0),
            min(self.x1, other.x1),
            min(self.y1, other.y1),
        )
        return common if common.width > 0 and common.height > 0 else None


def moved_inside(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Move a box (x0, y0, x1, y1) into an image of `size` px; shrink it if the image is smaller.

    Examples
    --------
    >>> moved_inside((-40, 900, 200, 1140), (2000, 1000)), moved_inside((5, 5, 50, 9), (30, 90))
    ((0.0, 760.0, 240.0, 1000.0), (0.0, 5.0, 30.0, 9.0))
    """
    low, high = np.array(box, float).reshape(2, 2)
    side = np.minimum(high - low, size)
    corner = np.clip(low, 0, size - side)
    (x0, y0), (x1, y1) = corner.tolist(), (corner + side).tolist()
    return x0, y0, x1, y1
