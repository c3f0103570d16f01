"""Choose the fields of a preview: with tissue, from little haematoxylin to much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from qpnuclei.pipeline.inference.plausibility import choose_fields, read_field
from qpnuclei.qupath.regions import Region
from qpnuclei.slides.slide import Slide
from qpnuclei.slides.stains import Stains, separate
from qpnuclei.slides.tissue import tissue_fraction

#: Largest numbers of candidate places per image, and of images with candidates.
_MOST_PLACES, MOST_IMAGES = 24, 8
#: Places with a smaller share of tissue are used only if there are no others.
_LEAST_TISSUE = 0.3
#: The same for the share that is analysed.
_LEAST_SHARE = 0.3
#: Resolution of the pictures in µm/px.
SHOWN_MPP = 0.25


@dataclass(frozen=True, eq=False)
class FieldSource:
    """An image from which fields may be shown."""

    name: str
    slide: Slide
    mpp: tuple[float, float]
    stains: Stains
    regions: Sequence[Region]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A place that may become a field; `box` is in level-0 px."""

    source: FieldSource
    region: Region
    box: tuple[float, float, float, float]
    haematoxylin: float
    tissue: float

    @property
    def share(self) -> float:
        """The share of the place that is analysed."""
        return float(self.analysed.area / shapely.box(*self.box).area)

    @property
    def analysed(self) -> shapely.Geometry:
        """The part of the place that is analysed, in level-0 px."""
        return shapely.intersection(shapely.box(*self.box), self.region.geometry)


def places_of(source: FieldSource) -> list[Candidate]:
    """Return candidate places all over the regions of an image."""
    fields = choose_fields(source.regions, source.mpp)
    fields = fields[:: math.ceil(len(fields) / _MOST_PLACES)]
    places = []
    for candidate in fields:
        rgb = read_field(source.slide, candidate, source.mpp)
        stained = np.maximum(separate(rgb, source.stains)[..., 0], 0)
        places.append(
            Candidate(
                source,
                source.regions[candidate.region],
                _on_grid(candidate.box, source.mpp),
                float(stained.mean()),
                float(tissue_fraction(rgb)),
            )
        )
    return places


def choose_places(places: Sequence[Candidate], n_fields: int) -> list[Candidate]:
    """Choose fields from little haematoxylin to much, evenly spaced by rank."""
    with_tissue = [place for place in places if place.tissue >= _LEAST_TISSUE] or list(places)
    # A field with a tiny annotation shows next to nothing.
    with_tissue = [place for place in with_tissue if place.share >= _LEAST_SHARE] or with_tissue
    ranked = sorted(with_tissue, key=lambda place: place.haematoxylin)
    count = min(n_fields, len(ranked))
    return [ranked[int((i + 0.5) * len(ranked) / count)] for i in range(count)]


def _on_grid(box: tuple[float, ...], mpp: tuple[float, float]) -> tuple[float, float, float, float]:
    """Move the corners of a box to the grid of the shown px."""
    x, y = SHOWN_MPP / mpp[0], SHOWN_MPP / mpp[1]
    x0, y0, x1, y1 = (round(v / s) * s for v, s in zip(box, (x, y, x, y), strict=True))
    return x0, y0, x1, y1
