"""Plausibility: whether the nuclei that a run found agree with the stain.

With a wrong pixel size, an unknown stain, an unsharp scan or an unsuitable model, a run finds few
nuclei without an error. So the dark haematoxylin objects in some small fields of every region are
counted without the model. Their number is compared with that of the nuclei. The comparison corrects
nothing; it reports contradictions. ``docs/plausibility.md`` explains the rules and their limits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.choices import CERTAINTY
from qpnuclei.errors import SlideError, number_of
from qpnuclei.measure.shape import AREA
from qpnuclei.nuclei.table import NucleiTable, NucleiTables
from qpnuclei.qupath.regions import Region, region_of, rows_inside
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.resolution import mpp_text
from qpnuclei.slides.slide import PixelSource
from qpnuclei.slides.stains import Stains, estimate_macenko, separate
from qpnuclei.tiling.box import moved_inside

#: Side of a field, and the resolution at which it is read.
FIELD_UM, FIELD_MPP = 128.0, 0.5
#: Share of a region that fields cover, and limits of their number, which keep runs fast.
_SHARE, _LEAST_OF_REGION, _MOST_OF_REGION, _MOST_OF_IMAGE = 0.1, 4, 16, 192
#: Largest number of pixels from which stain vectors are estimated.
_STAIN_PIXELS = 200_000

#: Fewer nuclei per haematoxylin object are a contradiction. There are seldom more objects than
#: nuclei, because touching nuclei are one object.
MIN_NUCLEI_PER_OBJECT = 0.4
#: With fewer objects, or fewer nuclei, there is no conclusion.
MIN_SAMPLE = 20
#: Least area of an object in µm², and least contrast of its haematoxylin in optical density. Tissue
#: without nuclei does not reach this contrast.
MIN_OBJECT_UM2, MIN_CONTRAST = 8.0, 0.1
#: Range of the median area of nuclei in µm².
NUCLEUS_UM2 = (8.0, 80.0)
#: Least mean over nuclei of their mean attention.
MIN_CERTAINTY = 0.8
#: Largest angles in degrees between the stain vectors and those of the H&E images of the training;
#: and least 95th percentile of the 8-bit values. Beyond them, the stain is another one, or the scan
#: is too dark.
MAX_STAIN_DEGREES = (25.0, 35.0)
MIN_BRIGHTNESS = 130.0

# Limits at which a cause is likely if there is a contradiction; stricter than the limits above.
_OBJECT_UM2 = (18.0, 75.0)
_SHARPNESS_PER_UM = 0.35
_PALE_CONTRAST = 0.2
_UNUSUAL_DEGREES = 9.5
_DIM_BRIGHTNESS = 170.0

#: Mean stain vectors of the training images (Macenko's method): haematoxylin, eosin.
_TRAINED_ON = np.array([[0.569, 0.728, 0.383], [0.307, 0.808, 0.503]])

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SampleField:
    """A small part of a region to examine. `box` is (x0, y0, x1, y1) in level-0 px."""

    region: int
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class Appearance:
    """Properties of the stain in some fields.

    Parameters
    ----------
    contrast : float
        Optical density of haematoxylin of the objects minus that of the rest.
    object_um2 : float
        Median area of the haematoxylin objects in µm²; NaN without any.
    sharpness : float
        Slope of haematoxylin at the edges of the objects per µm, as a share of `contrast`.
    stains : Stains
        Estimated vectors.
    brightness : float
        95th percentile of the 8-bit values.
    """

    contrast: float
    object_um2: float
    sharpness: float
    stains: Stains
    brightness: float

    @property
    def stain_degrees(self) -> tuple[float, float]:
        """Angles of haematoxylin and eosin to those of the training images."""
        if len(self.stains.vectors) != 2:  # defaults of QuPath, if the estimate failed
            return 0.0, 0.0
        vectors = np.array(self.stains.vectors)
        cosine = np.sum(_unit(vectors) * _unit(_TRAINED_ON), axis=1)
        haematoxylin, eosin = np.degrees(np.arccos(np.clip(cosine, -1, 1))).tolist()
        return haematoxylin, eosin


@dataclass(frozen=True)
class Finding:
    """Objects and nuclei of a region or an image.

    Parameters
    ----------
    objects : int
        Haematoxylin objects in the fields.
    nuclei : int
        Nuclei in the fields.
    areas_um2, certainties : (N,) ndarray
        Areas and mean attention of all nuclei; NaN if unknown.
    """

    objects: int
    nuclei: int
    areas_um2: npt.NDArray[np.float32]
    certainties: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Doubts:
    """Doubts in one line for the image and one for each of its R regions; empty without doubts.

    Without arguments, nothing was compared.
    """

    image: str = ""
    regions: tuple[str, ...] = ()

    @classmethod
    def of(cls, lines: Sequence[str]) -> Doubts:
        """Restore doubts from their `lines`.

        Examples
        --------
        >>> Doubts.of(Doubts("dark", ("", "pale")).lines)
        Doubts(image='dark', regions=('', 'pale'))
        """
        image, *regions = lines
        return cls(image, tuple(regions))

    @property
    def lines(self) -> tuple[str, ...]:
        """The line for the image, followed by those for its regions."""
        return (self.image, *self.regions)


def check_plausibility(
    pixels: PixelSource,
    regions: Sequence[Region],
    mpp: tuple[float, float],
    found: NucleiTables,
    threshold: float | None = None,
) -> Doubts:
    """Compare the nuclei of an image with its stain.

    Parameters
    ----------
    pixels : PixelSource
        The slide.
    regions : (R,) sequence of Region
        The analysed regions; without any, there is no doubt.
    mpp : (float, float)
        µm per level-0 px.
    found : NucleiTables
        The nuclei in level-0 px.
    threshold : float, optional
        What the user gave instead of the model's own threshold.
    """
    if not regions:
        return Doubts()
    size = pixels.width, pixels.height
    # Beyond the slide is white, which would count as the brightest tissue.
    fields = [
        SampleField(field.region, moved_inside(field.box, size))
        for field in choose_fields(regions, mpp)
    ]
    try:
        images = [read_field(pixels, field, mpp) for field in fields]
    except SlideError as error:
        return Doubts(f"not compared with the stain: {error.what}", ("",) * len(regions))
    appearance, objects = look_at(images)
    n_objects = np.zeros(len(fields), int)
    for i, (field, xy) in enumerate(zip(fields, objects, strict=True)):
        at_level_0 = np.array(field.box[:2]) + xy * (FIELD_MPP / np.array(mpp))
        n_objects[i] = _held(regions[field.region], at_level_0)
    n_nuclei = np.zeros(len(fields), int)
    areas: list[list[npt.NDArray[np.float32]]] = [[] for _ in regions]
    certainties: list[list[npt.NDArray[np.float32]]] = [[] for _ in regions]
    for number in range(len(found)):
        table = found[number]
        centroids = table.centroids()
        for i, field in enumerate(fields):
            x0, y0, x1, y1 = field.box
            within = (centroids >= (x0, y0)).all(axis=1) & (centroids < (x1, y1)).all(axis=1)
            n_nuclei[i] += _held(regions[field.region], centroids[within])
        owner = region_of(centroids, regions)
        for region in range(len(regions)):
            areas[region].append(_column(table, AREA, owner == region))
            certainties[region].append(_column(table, CERTAINTY, owner == region))

    def finding(members: Sequence[int]) -> Finding:
        of_members = [i for i, field in enumerate(fields) if field.region in members]
        return Finding(
            int(n_objects[of_members].sum()),
            int(n_nuclei[of_members].sum()),
            np.concatenate([np.empty(0, np.float32), *(a for m in members for a in areas[m])]),
            np.concatenate(
                [np.empty(0, np.float32), *(c for m in members for c in certainties[m])]
            ),
        )

    return Doubts(
        doubt(finding(range(len(regions))), appearance, mpp, threshold),
        tuple(doubt(finding([r]), appearance, mpp, threshold) for r in range(len(regions))),
    )


def choose_fields(regions: Sequence[Region], mpp: tuple[float, float]) -> list[SampleField]:
    """Spread fields over regions: at least one in each, unless there are too many regions.

    The choice is deterministic.
    """
    side = np.array([FIELD_UM / mpp[0], FIELD_UM / mpp[1]])
    places: list[npt.NDArray[np.float64]] = []
    wanted: list[int] = []
    for region in regions:
        x0, y0, x1, y1 = shapely.bounds(region.geometry).tolist()
        xs = np.arange(x0, x1, side[0]) + side[0] / 2
        ys = np.arange(y0, y1, side[1]) + side[1] / 2
        centres = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
        centres = centres[rows_inside([region], centres)[0]]
        if not len(centres):
            centres = shapely.get_coordinates(region.geometry.representative_point())
        share = math.ceil(_SHARE * region.geometry.area / side.prod())
        places.append(centres)
        wanted.append(min(max(share, _LEAST_OF_REGION), _MOST_OF_REGION, len(centres)))
    # If there are too many, each region keeps one, and the remaining ones are shared.
    left = max(_MOST_OF_IMAGE - len(regions), 0)
    beyond_one = max(sum(wanted) - len(regions), 1)
    fields: list[SampleField] = []
    for index, (centres, many) in enumerate(zip(places, wanted, strict=True)):
        n = 1 + (many - 1) * min(left, beyond_one) // beyond_one
        for k in range(n):
            corner = centres[(2 * k + 1) * len(centres) // (2 * n)] - side / 2
            fields.append(SampleField(index, (*corner.tolist(), *(corner + side).tolist())))
    return fields[:: math.ceil(len(fields) / _MOST_OF_IMAGE) or 1]


def read_field(pixels: PixelSource, field: SampleField, mpp: tuple[float, float]) -> RGB:
    """Read a field at `FIELD_MPP`: (H, W, 3)."""
    x, y = FIELD_MPP / mpp[0], FIELD_MPP / mpp[1]
    x0, y0, x1, y1 = field.box
    width, height = max(round((x1 - x0) / x), 1), max(round((y1 - y0) / y), 1)
    return pixels.read(round(x0 / x), round(y0 / y), width, height, (x, y))


def look_at(images: Sequence[RGB]) -> tuple[Appearance, list[Points]]:
    """Find the haematoxylin objects in fields of one slide, without a model.

    Haematoxylin is the result of colour deconvolution with stain vectors estimated from the fields
    (Macenko), smoothed by 0.5 µm. An object is a connected area above Otsu's threshold of all the
    fields.

    Parameters
    ----------
    images : sequence of (H, W, 3) uint8 ndarray
        Pixels at `FIELD_MPP`.

    Returns
    -------
    Appearance
    list of (N, 2) float64 ndarray
        Centres of the objects of each field, in px of the field.
    """
    rgb = np.concatenate([image.reshape(-1, 3) for image in images])
    stains = estimate_macenko(rgb[:: math.ceil(len(rgb) / _STAIN_PIXELS)])
    densities = [
        np.asarray(
            cv2.GaussianBlur(np.ascontiguousarray(separate(i, stains, 2)[..., 0]), (0, 0), 1),
            np.float32,
        )
        for i in images
    ]
    brightness = float(np.percentile(rgb, 95))
    everywhere = np.concatenate([density.ravel() for density in densities])
    nothing = Appearance(0.0, math.nan, math.nan, stains, brightness)
    none = [np.empty((0, 2)) for _ in images]
    if np.ptp(everywhere) < MIN_CONTRAST:
        return nothing, none
    threshold = _otsu(everywhere)
    dark = everywhere > threshold
    contrast = float(everywhere[dark].mean() - everywhere[~dark].mean())
    if contrast < MIN_CONTRAST:
        return nothing, none
    centres, areas, slopes = [], [], []
    for density in densities:
        mask = (density > threshold).astype(np.uint8)
        _, _, statistics, middles = cv2.connectedComponentsWithStats(mask, connectivity=4)
        area = statistics[1:, cv2.CC_STAT_AREA] * FIELD_MPP**2
        is_object = area >= MIN_OBJECT_UM2
        centres.append(np.asarray(middles[1:][is_object] + 0.5, np.float64))
        areas.append(area[is_object])
        edge = mask != cv2.erode(mask, np.ones((3, 3), np.uint8))
        slope = [cv2.Sobel(density, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (0, 1)]
        slopes.append(np.hypot(*slope)[edge] / FIELD_MPP)
    object_areas = np.concatenate(areas)
    return Appearance(
        contrast,
        float(np.median(object_areas)) if len(object_areas) else math.nan,
        float(np.concatenate(slopes).mean()) / contrast,
        stains,
        brightness,
    ), centres


def _otsu(values: npt.NDArray[np.float32]) -> float:
    """Return Otsu's threshold of values that are not all equal, from a histogram of 256 bins.

    OpenCV is already loaded; scikit-image takes half a second to import.
    """
    low, high = float(values.min()), float(values.max())
    step = (high - low) / 256
    bins = np.minimum((values - low) / step, 255).astype(np.uint8)
    last_below, _ = cv2.threshold(bins, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return low + (float(last_below) + 0.5) * step


def doubt(
    found: Finding,
    appearance: Appearance,
    mpp: tuple[float, float],
    threshold: float | None = None,
) -> str:
    """Return in one line what contradicts the stain, and the likely cause; empty if nothing."""
    doubts = []
    if found.objects >= MIN_SAMPLE and found.nuclei < MIN_NUCLEI_PER_OBJECT * found.objects:
        doubts.append(
            f"in the fields compared, {number_of(found.nuclei, 'nucleus')} where the stain shows "
            f"{found.objects} dark objects (likely cause: {_likely_causes(appearance, mpp)})"
        )
    areas = found.areas_um2[np.isfinite(found.areas_um2)]
    if len(areas) >= MIN_SAMPLE:
        low, high = NUCLEUS_UM2
        median = float(np.median(areas))
        if not low <= median <= high:
            doubts.append(
                f"the median nucleus has {median:.3g} µm², not {low:g} to {high:g} (likely cause: "
                f"pixel size, {mpp_text(mpp)} µm/px)"
            )
    certainties = found.certainties[np.isfinite(found.certainties)]
    if len(certainties) >= MIN_SAMPLE and (mean := float(certainties.mean())) < MIN_CERTAINTY:
        # A lower threshold adds pixels of less attention.
        given = "" if threshold is None else f"--threshold {threshold:g}, or "
        doubts.append(
            f"the model is unsure: mean attention {mean:.2f}, not above {MIN_CERTAINTY:g} (likely "
            f"cause: {given}{_likely_causes(appearance, mpp)})"
        )
    degrees = appearance.stain_degrees
    if any(angle > most for angle, most in zip(degrees, MAX_STAIN_DEGREES, strict=True)):
        doubts.append(
            "the stain vectors are {:.0f}° and {:.0f}° from those of H&E (likely cause: another "
            "stain)".format(*degrees)
        )
    if appearance.brightness < MIN_BRIGHTNESS:
        doubts.append(
            f"the scan is dark: brightest pixels {appearance.brightness:.0f} of 255 (likely cause: "
            "exposure, or a picture that is no brightfield)"
        )
    return "; ".join(doubts)


def _likely_causes(appearance: Appearance, mpp: tuple[float, float]) -> str:
    """Return what is unusual about the stain; if nothing is, blame the model."""
    causes = []
    low, high = _OBJECT_UM2
    if math.isfinite(appearance.object_um2) and not low <= appearance.object_um2 <= high:
        causes.append(
            f"pixel size, as the objects have {appearance.object_um2:.3g} µm² at "
            f"{mpp_text(mpp)} µm/px"
        )
    if appearance.sharpness < _SHARPNESS_PER_UM:
        causes.append("focus, as their edges are unsharp")
    if appearance.contrast < _PALE_CONTRAST:
        causes.append("stain, as haematoxylin is pale")
    elif appearance.stain_degrees[0] > _UNUSUAL_DEGREES:
        causes.append("stain, as haematoxylin has an unusual colour")
    if appearance.brightness < _DIM_BRIGHTNESS:
        causes.append("a dark scan")
    return " or ".join(causes) or "a model that does not suit this tissue"


def _held(region: Region, points: Points) -> int:
    """Return the number of points in a region."""
    return len(rows_inside([region], points)[0])


def _column(table: NucleiTable, name: str, rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    column = table.measurements.get(name)
    return np.empty(0, np.float32) if column is None else column[rows]


def _unit(vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    lengths: npt.NDArray[np.float64] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths
