from __future__ import annotations

import json
import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qpnuclei.measure.intensity import intensity_measurements, mean_measurement
from qpnuclei.measure.shape import shape_measurements
from qpnuclei.nuclei.outlines import polygonise
from qpnuclei.nuclei.pixels import Pixels, pixels_of_labels, pixels_of_polygons
from qpnuclei.nuclei.smoothing import junctions, smooth
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.slides.calibration import PixelCalibration
from tests.masks import mask_of
from tests.paths import MEASUREMENTS
from tests.segmentation.images import random_mask, regions

FOLDER = MEASUREMENTS
EXPECTED = json.loads((FOLDER / "expected.json").read_text("utf-8"))
FEATURES = json.loads((FOLDER / "objects.geojson").read_text("utf-8"))["features"]
CALIBRATIONS = {
    name: PixelCalibration(c["pixelWidth"], c["pixelHeight"])
    if c["unit"] == "µm"
    else PixelCalibration()
    for name, c in EXPECTED["calibrations"].items()
}
# An EllipseROI is measured by formulas of its own; qpnuclei writes none.
FEATURES = [f for f in FEATURES if f["properties"].get("roi", {}).get("type") != "ellipse"]
NAMES = [f["properties"]["name"] for f in FEATURES]


def outline(feature, key="geometry"):
    """Return the polygon with QuPath's float32 vertices."""
    roi = feature["properties"].get("roi")
    if roi:
        x, y, w, h = (roi[k] for k in ("x", "y", "width", "height"))
        return shapely.box(x, y, x + w, y + h)
    polygon = shapely.geometry.shape(feature[key])
    return NucleiTable.from_polygons([polygon]).polygons()[0]


def outlines(feature):
    """Return prefix, infix and polygon of every outline: a cell has two."""
    if "nucleusGeometry" in feature:
        return [
            ("Nucleus: ", ": Nucleus", outline(feature, "nucleusGeometry")),
            ("Cell: ", ": Cell", outline(feature)),
        ]
    return [("", "", outline(feature))]


def image():
    with Image.open(FOLDER / "image.png") as png:
        return np.asarray(png.convert("RGB"))


def densities(rgb, stains):
    """Separate stains by the formulas of NOTES.md."""
    setting = EXPECTED["stains"][stains]
    rows = [np.array(v["rgb"]) for v in setting["vectors"][:2]]
    rows = [row / np.linalg.norm(row) for row in rows]
    residual = np.cross(*rows)
    matrix = np.stack([*rows, residual / np.linalg.norm(residual)])
    od = np.maximum(0, -np.log10(np.maximum(rgb, 1) / np.array(setting["background"])))
    return (od @ np.linalg.inv(matrix))[..., :2].astype(np.float32)


def channels(rgb, stains):
    if stains == "RGB":
        return rgb.astype(np.float32), ("Red", "Green", "Blue")
    return densities(rgb.astype(float), stains), ("Hematoxylin", "Eosin")


def halved(rgb, polygon, whole):
    """What QuPath measures at downsample 2, away from the border: pixels, and the polygon."""
    x0, y0 = np.floor(whole.bounds[:2]).astype(int) - 4
    x1, y1 = np.ceil(whole.bounds[2:]).astype(int) + 4
    rows, columns = (y1 - y0 + 1) // 2, (x1 - x0 + 1) // 2
    crop = rgb[y0 : y0 + 2 * rows, x0 : x0 + 2 * columns].astype(float)
    small = crop.reshape(rows, 2, columns, 2, 3).mean(axis=(1, 3))
    return np.floor(small + 0.5), shapely.affinity.affine_transform(
        polygon, [0.5, 0, 0, 0.5, -x0 / 2, -y0 / 2]
    )


def number(value):
    return math.nan if value == "nan" else value


@pytest.mark.parametrize("calibration", CALIBRATIONS)
def test_shapes_as_qupath_measures_them(calibration):
    for feature in FEATURES:
        expected = EXPECTED["measured"][feature["properties"]["name"]][f"shape {calibration}"]
        for prefix, _, polygon in outlines(feature):
            found = shape_measurements(np.array([polygon], dtype=object), CALIBRATIONS[calibration])
            assert len(found) == 6
            for name, values in found.items():
                assert values.dtype == np.float32
                assert values[0] == pytest.approx(number(expected[prefix + name]), rel=2e-5), (
                    feature["properties"]["name"],
                    name,
                )


def test_all_shapes_at_once_as_one_by_one():
    polygons = np.array([outline(f) for f in FEATURES], dtype=object)
    together = shape_measurements(polygons, CALIBRATIONS["0.25um_x_0.26um"])
    for i in range(len(polygons)):
        alone = shape_measurements(polygons[i : i + 1], CALIBRATIONS["0.25um_x_0.26um"])
        for name in alone:
            assert together[name][i] == alone[name][0]


def assert_intensities(feature, setting, downsample):
    rgb = image()
    expected = EXPECTED["measured"][feature["properties"]["name"]][
        f"intensity {setting} ds{downsample}"
    ]
    for _, infix, polygon in outlines(feature):
        pixels, small = (
            (rgb, polygon) if downsample == 1 else halved(rgb, polygon, outline(feature))
        )
        values, names = channels(pixels, setting)
        inside = pixels_of_polygons(np.array([small], dtype=object), values.shape[:2])
        found = intensity_measurements(inside.of(values), names, inside)
        assert len(found) == 5 * len(names)
        for name, value in found.items():
            stain, statistic = name.split(": ")
            assert value.dtype == np.float32
            assert value[0] == pytest.approx(
                number(expected[f"{stain}{infix}: {statistic}"]), rel=1e-5, abs=1e-6, nan_ok=True
            ), (feature["properties"]["name"], name)


@pytest.mark.parametrize("setting", ["default_HE", "custom_HE_243", "custom_HE_243_240_246", "RGB"])
def test_intensities_as_qupath_measures_them(setting):
    for feature in FEATURES:
        assert_intensities(feature, setting, downsample=1)


@pytest.mark.parametrize("setting", ["default_HE", "RGB"])
def test_intensities_at_half_the_resolution_as_qupath_measures_them(setting):
    # How QuPath resamples at the border of an image is not a matter of measuring.
    inner = shapely.box(8, 8, 500, 500)
    features = [f for f in FEATURES if shapely.contains(inner, outline(f))]
    assert len(features) == 62
    for feature in features:
        assert_intensities(feature, setting, downsample=2)


@pytest.mark.parametrize("feature", FEATURES, ids=NAMES)
def test_pixels_inside_as_qupath_has_them(feature):
    expected = np.zeros((512, 512), bool)
    for y, x0, x1 in EXPECTED["measured"][feature["properties"]["name"]]["pixels"]["runs_y_x0_x1"]:
        expected[y, x0:x1] = True
    np.testing.assert_array_equal(mask_of(outline(feature), (512, 512)), expected)


def test_a_rectangle_of_four_corners_covers_whole_pixels_as_qupaths_rectangle_roi():
    # From floor(x), ceil(width) columns: 3 x 2 pixels, though only two centres are inside.
    corners = [(10.7, 5.9), (12.9, 5.9), (12.9, 7.3), (10.7, 7.3)]
    (rectangle,) = NucleiTable.from_polygons([shapely.Polygon(corners)]).polygons()
    assert np.argwhere(mask_of(rectangle, (20, 20))).tolist() == [
        [5, 10], [5, 11], [5, 12], [6, 10], [6, 11], [6, 12],
    ]  # fmt: skip
    # With one more vertex it is a polygon, which covers the pixels whose centres are inside.
    (polygon,) = NucleiTable.from_polygons([shapely.Polygon([*corners, (10.7, 6.5)])]).polygons()
    assert np.argwhere(mask_of(polygon, (20, 20))).tolist() == [[6, 11], [6, 12]]


def test_ellipses_of_64_corners_are_close_to_what_qupath_makes_of_an_ellipse():
    features = json.loads((FOLDER / "objects.geojson").read_text("utf-8"))["features"]
    ellipses = [f for f in features if f not in FEATURES]
    assert len(ellipses) + len(FEATURES) == 71
    for feature in ellipses:
        polygon = np.array([shapely.geometry.shape(feature["geometry"])], dtype=object)
        expected = EXPECTED["measured"][feature["properties"]["name"]]
        found = shape_measurements(polygon, CALIBRATIONS["0.25um"])
        for name in ("Area µm^2", "Circularity", "Solidity", "Max diameter µm", "Min diameter µm"):
            assert found[name][0] == pytest.approx(expected["shape 0.25um"][name], rel=5e-2)


def test_shapes_by_hand():
    polygons = np.array(
        [
            shapely.box(0, 0, 3, 4),
            shapely.Polygon([(0, 0), (4, 0), (0, 3)]),
            shapely.box(0, 0, 1, 1),
        ],
        dtype=object,
    )
    found = shape_measurements(polygons, PixelCalibration())
    # A right triangle: the circle has the hypotenuse as diameter; the height on it is 12 / 5.
    np.testing.assert_allclose(found["Max diameter px"], [5, 5, math.sqrt(2)], rtol=1e-6)
    np.testing.assert_allclose(found["Min diameter px"], [3, 2.4, 1], rtol=1e-6)
    np.testing.assert_allclose(found["Area px^2"], [12, 6, 1])
    np.testing.assert_allclose(found["Length px"], [14, 12, 4])
    np.testing.assert_allclose(found["Circularity"][2], math.pi / 4, rtol=1e-6)
    micrometres = shape_measurements(polygons, PixelCalibration(0.5, 0.25))
    np.testing.assert_allclose(micrometres["Area µm^2"], [1.5, 0.75, 0.125])
    np.testing.assert_allclose(micrometres["Max diameter µm"][0], math.hypot(1.5, 1), rtol=1e-6)


def test_no_nuclei_have_all_columns():
    nothing = np.empty(0, dtype=object)
    assert all(len(v) == 0 for v in shape_measurements(nothing, PixelCalibration()).values())
    pixels = pixels_of_polygons(nothing, (4, 4))
    found = intensity_measurements(np.zeros((0, 1), np.float32), ["Red"], pixels)
    assert list(found) == ["Red: Mean", "Red: Median", "Red: Min", "Red: Max", "Red: Std.Dev."]
    assert all(len(values) == 0 for values in found.values())


def test_intensities_by_hand():
    labels = np.array([[1, 1, 0, 2], [1, 1, 0, 0]])
    values = np.array([[-2, 4, 9, 5], [1, 3, 9, 9]], np.float32)[..., None]
    pixels = pixels_of_labels(labels, [2, 1, 3])
    np.testing.assert_array_equal(pixels.of(values), [[5], [-2], [4], [1], [3]])
    found = intensity_measurements(pixels.of(values), ["H"], pixels)
    np.testing.assert_allclose(found["H: Mean"], [5, 1.5, np.nan])
    np.testing.assert_allclose(found["H: Median"], [5, 2, np.nan])
    np.testing.assert_allclose(found["H: Min"], [5, -2, np.nan])
    np.testing.assert_allclose(found["H: Max"], [5, 4, np.nan])
    # One pixel: 0. Otherwise with n - 1: deviations -3.5, 2.5, -0.5, 1.5.
    np.testing.assert_allclose(found["H: Std.Dev."], [0, math.sqrt(21 / 3), np.nan], rtol=1e-6)
    attention = mean_measurement("Attention: Mean", pixels.of(values[..., 0]), pixels)
    np.testing.assert_allclose(attention["Attention: Mean"], [5, 1.5, np.nan])
    with pytest.raises(ValueError, match="do not fit the names"):
        intensity_measurements(pixels.of(values), ["H", "E"], pixels)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.1, 0.9), st.integers(1, 4))
def test_labels_and_their_outlines_hold_the_same_pixels(seed, density, grain):
    labels = regions(random_mask(seed, (25, 30), density, grain))
    nuclei, ids = polygonise(labels)
    by_label = pixels_of_labels(labels, ids)
    by_outline = pixels_of_polygons(nuclei.polygons(), labels.shape)
    np.testing.assert_array_equal(by_label.counts, by_outline.counts)
    np.testing.assert_array_equal(np.bincount(labels.ravel())[ids], by_label.counts)
    np.testing.assert_array_equal(labels.ravel()[by_label.indices], ids[by_label.regions])
    for region in range(len(ids)):
        np.testing.assert_array_equal(
            np.sort(by_label.indices[by_label.regions == region]),
            np.sort(by_outline.indices[by_outline.regions == region]),
        )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300))
def test_statistics_as_numpy_computes_them(seed, count):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(20, 20, 1)).astype(np.float32)
    values[rng.random((20, 20)) < 0.2] = 0
    values[0] = -0.0
    labels = np.zeros((20, 20), int)
    labels.ravel()[rng.permutation(400)[:count]] = rng.integers(1, 6, count)
    pixels = pixels_of_labels(labels, range(1, 6))
    found = intensity_measurements(pixels.of(values), ["H"], pixels)
    for label in range(1, 6):
        of_label = values[labels == label, 0].astype(float)
        if len(of_label) == 0:
            assert all(np.isnan(column[label - 1]) for column in found.values())
            continue
        expected = {
            "H: Mean": of_label.mean(),
            "H: Median": np.median(of_label),
            "H: Min": of_label.min(),
            "H: Max": of_label.max(),
            "H: Std.Dev.": of_label.std(ddof=1) if len(of_label) > 1 else 0,
        }
        for name, value in expected.items():
            assert found[name][label - 1] == pytest.approx(value, rel=1e-6, abs=1e-7)


def assert_equal_or_next(found, expected):
    """Float32 values are rounded from the expected ones, or next to that."""
    np.testing.assert_array_max_ulp(np.float32(found), np.float32(expected), maxulp=1)


@pytest.mark.parametrize(
    "values",
    [
        [3.0, 1.0],
        [1.0, 1.0, 1.0],
        [1.0, 2.0, 2.0, 1.0],
        # All but one are in the first of the steps in which they are counted; or in the last.
        [1e6, *np.linspace(0.1, 0.9, 98), 0.3],
        [-1e6, *np.linspace(0.1, 0.9, 99), 0.3],
        [*[0.0] * 50, *[1.0] * 50],
        [1e-45, 0.0, 3e-45],
        [3e38, -3e38, 1.0],
    ],
)
def test_statistics_are_numpys_to_the_last_bit_but_one(values):
    values = np.array(values, np.float32)
    pixels = pixels_of_labels(np.ones((1, len(values)), int), [1])
    found = intensity_measurements(values[:, None], ["H"], pixels)
    exact = values.astype(np.float64)
    assert_equal_or_next(found["H: Mean"][0], exact.mean())
    assert_equal_or_next(found["H: Median"][0], np.median(exact))
    assert found["H: Min"] == values.min()
    assert found["H: Max"] == values.max()
    assert_equal_or_next(found["H: Std.Dev."][0], exact.std(ddof=1))


def test_densities_and_attention_of_many_pixels_are_numpys_to_the_last_bit_but_one():
    rng = np.random.default_rng(0)
    counts = np.array([1, 0, 2, 3, 4000, 255, 256, 257, 0])
    pixels = Pixels(np.arange(counts.sum()), counts)
    values = rng.gamma(2, 0.2, (len(pixels.indices), 2)).astype(np.float32)
    found = intensity_measurements(values, ["H", "E"], pixels)
    attention = mean_measurement("a", values[:, 0], pixels)["a"]
    assert np.isnan(attention[[1, 8]]).all()
    for region in np.flatnonzero(counts):
        exact = values[pixels.regions == region].astype(np.float64)
        assert_equal_or_next(attention[region], exact[:, 0].mean())
        for channel, name in enumerate("HE"):
            assert_equal_or_next(found[f"{name}: Mean"][region], exact[:, channel].mean())
            assert_equal_or_next(found[f"{name}: Median"][region], np.median(exact[:, channel]))
            if counts[region] > 1:
                deviation = exact[:, channel].std(ddof=1)
                assert_equal_or_next(found[f"{name}: Std.Dev."][region], deviation)


def test_a_value_that_is_no_number_leaves_its_region_without_statistics_and_no_other():
    pixels = Pixels(np.arange(6), np.array([2, 2, 2]))
    for wrong in (np.nan, np.inf, -np.inf):
        values = np.array([1, 2, 3, wrong, 5, 6], np.float32)[:, None]
        for column in intensity_measurements(values, ["H"], pixels).values():
            np.testing.assert_array_equal(np.isnan(column), [False, True, False])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0, 0.25, 1]))
def test_shapes_as_geos_computes_them(seed, tolerance):
    labels, origin = regions(random_mask(seed, (40, 50), 0.6, 3)), (90_000, 70_000)
    nuclei, _ = polygonise(labels, origin)
    if tolerance:
        nuclei = smooth(nuclei, junctions(nuclei, labels, origin), tolerance)
    polygons = nuclei.polygons()
    found = shape_measurements(polygons, PixelCalibration(0.2527, 0.26))
    scaled = shapely.transform(polygons, lambda xy: xy * (0.2527, 0.26))
    hulls = shapely.convex_hull(scaled)
    for name, expected in {
        "Area µm^2": shapely.area(scaled),
        "Length µm": shapely.length(scaled),
        "Solidity": shapely.area(scaled) / shapely.area(hulls),
        "Max diameter µm": 2 * shapely.minimum_bounding_radius(hulls),
    }.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)
