"""Hulls against formulas by hand, against GEOS, and against what can be tried out."""

import itertools
import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.measure.hulls import measure_hulls

# Few values make many points equal, on one line, or on one circle. Float32 vertices of slides are
# thousandths of a pixel apart.
grid = st.integers(-4, 4).map(float)
anywhere = st.integers(-(2**20), 2**20).map(lambda x: x / 1024)
points = st.one_of(
    st.lists(st.tuples(grid, grid), min_size=1, max_size=30),
    st.lists(st.tuples(anywhere, anywhere), min_size=1, max_size=30),
)


def measure(*sets):
    counts = np.array([len(one) for one in sets])
    return measure_hulls(np.concatenate([np.reshape(one, (-1, 2)) for one in sets]), counts)


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ([], (0, 0, 0)),
        ([(3, 4)], (0, 0, 0)),
        ([(3, 4), (3, 4)], (0, 0, 0)),
        ([(0, 0), (3, 4)], (0, 5, 0)),
        # On one line, across and along the axes.
        ([(0, 0), (6, 8), (3, 4)], (0, 10, 0)),
        ([(2, 5), (2, 1), (2, 3)], (0, 4, 0)),
        ([(0, 0), (1, 0), (1, 1), (0, 1)], (1, math.sqrt(2), 1)),
        # A right triangle: the hypotenuse is the diameter; the height on it is 12 / 5.
        ([(0, 0), (4, 0), (0, 3), (1, 1), (2, 0)], (6, 5, 2.4)),
        # An obtuse one: the circle is that around its longest side.
        ([(0, 0), (10, 0), (4, 1)], (5, 10, 1)),
        # An equilateral one: 2 / sqrt(3) of its side.
        ([(-1, 0), (1, 0), (0, math.sqrt(3))], (math.sqrt(3), 4 / math.sqrt(3), math.sqrt(3))),
    ],
)
def test_by_hand(corners, expected):
    (found,) = measure(np.array(corners, float))
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_sets_do_not_touch_each_other():
    np.testing.assert_array_equal(
        measure([(0.0, 0.0), (2.0, 0.0)], [], [(5.0, 5.0)], [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]),
        [*measure([(0.0, 0.0), (2.0, 0.0)]), [0, 0, 0], [0, 0, 0],
         *measure([(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])],
    )  # fmt: skip
    assert measure_hulls(np.empty((0, 2)), np.empty(0, int)).shape == (0, 3)


@settings(max_examples=300, deadline=None)
@given(points, st.sampled_from([(1, 1), (0.2527, 0.2527), (0.25, 0.26)]))
def test_as_geos_measures_them(corners, scale):
    corners = np.array(corners) * scale
    geometry = shapely.multipoints(corners)
    hull = shapely.convex_hull(geometry)
    ((area, diameter, width),) = measure(corners)
    size = np.ptp(corners, axis=0).max()
    assert area == pytest.approx(shapely.area(hull), rel=1e-9, abs=1e-12 * size**2)
    assert diameter == pytest.approx(2 * shapely.minimum_bounding_radius(geometry), rel=1e-8)
    if area > 1e-9 * size**2:
        x, y = shapely.get_coordinates(hull).T
        across = [
            np.abs(dx * (y - y0) - dy * (x - x0)).max() / math.hypot(dx, dy)
            for x0, y0, dx, dy in zip(x, y, np.diff(x), np.diff(y), strict=False)
        ]
        assert width == pytest.approx(min(across), rel=1e-8)


@pytest.mark.parametrize(
    ("corners", "scale"),
    [
        ([(2, 3), (3, 0), (1, 2), (4, 5), (5, 2)], 1 / 3),
        ([(1, 0), (2, 1), (2, 1), (5, 4)], 0.23),
    ],
)
def test_corners_on_a_line_but_for_rounding(corners, scale):
    corners = np.array(corners) * scale
    farthest = max(math.dist(a, b) for a, b in itertools.combinations(corners, 2))
    assert measure(corners)[0, 1] == pytest.approx(farthest, rel=1e-12)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(grid, grid), min_size=2, max_size=12),
    st.sampled_from([1 / 3, 0.23, 0.2528, 0.46, 0.499]),
    st.integers(0, 100_000),
)
def test_no_two_corners_are_farther_apart_than_the_diameter(corners, scale, offset):
    corners = (np.array(corners) + offset) * scale
    farthest = max(math.dist(a, b) for a, b in itertools.combinations(corners, 2))
    diameter = measure(corners)[0, 1]
    # Jung's theorem gives the upper bound.
    assert farthest * (1 - 1e-9) <= diameter <= farthest * (1 + 1e-9) * 2 / math.sqrt(3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(grid, grid), min_size=2, max_size=9, unique=True))
def test_no_circle_through_two_or_three_points_is_smaller_and_encloses_all(corners):
    corners = np.array(corners)
    smallest = math.inf
    for a, b in itertools.combinations(corners, 2):
        centres = [(a + b) / 2]
        for c in corners:
            sides = 2 * np.array([b - a, c - a])
            if abs(np.linalg.det(sides)) > 1e-9:
                centres.append(np.linalg.solve(sides, [b @ b - a @ a, c @ c - a @ a]))
        for centre in centres:
            radius = math.dist(a, centre)
            if all(math.dist(point, centre) <= radius * (1 + 1e-9) for point in corners):
                smallest = min(smallest, radius)
    assert measure(corners)[0, 1] == pytest.approx(2 * smallest, rel=1e-9)


def test_points_on_one_circle():
    # All of them see every chord at the same angle, but for rounding.
    for count in (3, 4, 5, 12, 64, 1000):
        angles = 2 * np.pi * np.arange(count) / count
        for centre in (0.0, 1e5):
            circle = np.stack([np.cos(angles), np.sin(angles)], axis=1) + centre
            assert measure(circle)[0, 1] == pytest.approx(2, rel=1e-9)


def test_values_that_are_no_numbers_do_no_harm():
    corners = np.array([(0.0, 0.0), (np.nan, 1.0), (2.0, np.inf), (1.0, -np.inf), (3.0, 0.0)])
    for order in itertools.permutations(corners):
        assert measure(np.array(order)).shape == (1, 3)
