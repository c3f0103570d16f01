import numpy as np
import pytest
from scipy import ndimage
from skimage.draw import disk, ellipse
from skimage.measure import regionprops

from qpnuclei.slides.stains import DEFAULT_HE
from qpnuclei.training.student.pseudo_labels import (
    centre_map,
    distance_inside,
    fill_holes,
    haematoxylin_votes,
    nearest_object,
    seams,
    snap_to_edges,
    solidity,
    trusted_labels,
)

PURPLE, PINK, WHITE = (80, 50, 130), (220, 150, 190), (245, 245, 245)

LIMITS = {
    "min_solidity": 0.9,
    "min_area_px": 120,
    "max_area_px": 5000,
    "min_probability": 0.0,
    "max_background": 0.3,
}


def _disk_map(*circles, shape=(64, 64)):
    labels = np.zeros(shape, np.int32)
    for number, (y, x, radius) in enumerate(circles, start=1):
        labels[disk((y, x), radius, shape=shape)] = number
    return labels


def test_votes_are_high_on_haematoxylin_and_low_elsewhere():
    rgb = np.full((128, 128, 3), PINK, np.uint8)
    rgb[:30] = WHITE
    nucleus = disk((80, 60), 12)
    rgb[nucleus] = PURPLE

    (vote,) = haematoxylin_votes([rgb], DEFAULT_HE)

    assert vote.shape == (128, 128)
    assert vote.dtype == np.float32
    assert vote[80, 60] > 0.99
    assert vote[:28].max() < 0.01
    assert vote[100:, 90:].max() < 0.01


def test_a_slide_of_one_colour_has_no_votes():
    assert haematoxylin_votes([np.full((32, 32, 3), PINK, np.uint8)], DEFAULT_HE)[0].max() == 0


def test_votes_of_a_patch_depend_on_the_whole_slide():
    """A patch of pink alone is background because the slide has purple elsewhere."""
    rng = np.random.default_rng(0)
    pink, purple = (
        (np.array(colour) + rng.integers(-9, 10, (64, 64, 1))).astype(np.uint8)
        for colour in (PINK, PURPLE)
    )

    alone = haematoxylin_votes([pink], DEFAULT_HE)[0]
    in_slide = haematoxylin_votes([pink, purple], DEFAULT_HE)[0]

    assert alone.mean() > 0.1
    assert in_slide.mean() < 0.01


@pytest.mark.parametrize("radius", [8, 12])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_outlines_snap_to_half_the_height_of_their_own_edge(radius, strength):
    """A pale and a dark disk, both blurred, both given 2 px too large, come out at their size."""
    y, x = np.mgrid[:64, :64]
    distance = np.hypot(y - 32, x - 32)
    density = (0.1 + strength / (1 + np.exp(distance - radius))).astype(np.float32)
    too_large = _disk_map((32, 32, radius + 2))

    snapped = snap_to_edges(too_large, density)

    true_area = np.pi * radius**2
    assert (snapped > 0).sum() == pytest.approx(true_area, rel=0.12)
    assert (too_large > 0).sum() > 1.3 * true_area


def test_outlines_move_out_by_no_more_than_their_reach():
    y, x = np.mgrid[:64, :64]
    density = (1 / (1 + np.exp(np.hypot(y - 32, x - 32) - 12))).astype(np.float32)
    small = _disk_map((32, 32, 8))

    snapped = snap_to_edges(small, density)  # the edge is 4 px out

    distance = ndimage.distance_transform_edt(small == 0)
    assert distance[snapped > 0].max() <= 2.2
    assert (snapped > 0).sum() > (small > 0).sum()


def test_objects_without_a_core_stay_as_they_are():
    speck = _disk_map((32, 32, 2))

    np.testing.assert_array_equal(snap_to_edges(speck, np.zeros((64, 64), np.float32)), speck)


def test_nothing_and_everything_have_no_outline_to_move():
    density = np.zeros((8, 8), np.float32)
    for labels in (np.zeros((8, 8), np.int32), np.ones((8, 8), np.int32)):
        np.testing.assert_array_equal(snap_to_edges(labels, density), labels)


def test_nearest_object_agrees_with_scipy():
    labels = _disk_map((15, 15, 6), (40, 45, 9))

    distance, nearest = nearest_object(labels)

    expected, indices = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    np.testing.assert_allclose(distance, expected, rtol=0.03)
    agree = nearest == labels[tuple(indices)]
    assert agree.mean() > 0.98  # but for pixels about as far from one as from the other
    np.testing.assert_array_equal(nearest[labels > 0], labels[labels > 0])


def test_small_holes_are_filled_and_bays_are_not():
    probability = np.zeros((40, 40), np.float32)
    probability[5:35, 5:35] = 0.8
    probability[10:14, 10:14] = 0.1  # a hole of 16 px
    probability[20:28, 20:28] = 0.1  # one of 64 px
    probability[0:8, 30] = 0.1  # a bay

    filled = fill_holes(probability, 0.5, 20)

    assert (filled[10:14, 10:14] == 1).all()
    filled[10:14, 10:14] = 0.1
    np.testing.assert_array_equal(filled, probability)


def test_solidity_agrees_with_scikit_image():
    labels = _disk_map((12, 12, 8), (40, 40, 15))
    labels[disk((40, 50), 8)] = 0  # a bite
    labels[ellipse(12, 45, 5, 10)] = 4  # number 3 is not in use
    labels[60, 2:30] = 5

    ours = solidity(labels)

    assert ours.shape == (6,)
    assert ours[0] == ours[3] == 0
    for region in regionprops(labels):
        assert ours[region.label] == pytest.approx(region.solidity, abs=0.06), region.label
    assert ours[2] < 0.85 < 0.93 < ours[1]


def test_only_convex_objects_of_nuclear_size_are_trusted():
    labels = _disk_map((20, 20, 9), (20, 60, 3), (70, 70, 16), shape=(96, 128))
    labels[disk((70, 80), 12)] = 0  # a crescent
    labels[disk((40, 110), 9)] = 4  # faint
    probability = np.where(labels > 0, 0.9, 0.1).astype(np.float32)
    probability[labels == 4] = 0.5

    known = trusted_labels(labels, probability, **{**LIMITS, "min_probability": 0.7})

    assert set(np.unique(known.labels)) == {0, 1}
    np.testing.assert_array_equal(known.labels == 1, labels == 1)
    assert (known.weight[labels == 1] == 1).all()
    for doubtful in (2, 3, 4):
        assert (known.weight[labels == doubtful] == 0).all()
    assert known.weight[90, 10] == 1  # far from all: background
    assert known.weight[20, 60 + 6] == 0  # beside a doubtful object
    assert known.weight[20, 20 + 11] == 1  # beside a trusted one, and improbable


def test_uncertain_pixels_count_only_in_the_rim_of_trusted_nuclei():
    labels = _disk_map((32, 32, 10))
    probability = np.where(labels > 0, 0.9, 0.5).astype(np.float32)

    weight = trusted_labels(labels, probability, **LIMITS).weight

    assert weight[32, 32 + 12] == 0.5
    assert weight[32, 32 + 20] == 0


def test_the_gap_between_the_pieces_of_a_broken_object_teaches_nothing():
    labels = _disk_map((32, 22, 4), (32, 38, 4))
    probability = (labels > 0).astype(np.float32)

    assert trusted_labels(labels, probability, **LIMITS).weight[32, 30] == 0


def test_centre_map_rises_from_the_border_to_one():
    labels = _disk_map((20, 20, 10), (20, 41, 10))

    centre = centre_map(labels)

    assert centre[20, 20] == centre[20, 41] == 1
    assert (centre[labels == 0] == 0).all()
    assert 0 < centre[20, 11] < 0.3
    # Where two objects touch there is a border, too.
    touching = np.repeat([1, 2], 16)[None].repeat(32, axis=0).astype(np.int32)
    assert centre_map(touching)[16, 15] < 0.3


def test_seams_lie_within_two_pixels_of_two_objects():
    labels = np.array([[1, 1, 0, 0, 2, 2, 0, 0, 0, 0, 0, 3, 3]], np.int32)

    # Pixel 2 is 1 px from object 1 and 2 px from object 2; pixel 8 is 3 px from both 2 and 3.
    np.testing.assert_array_equal(np.flatnonzero(seams(labels)), [2, 3])
    assert not seams(np.zeros((3, 3), np.int32)).any()


def test_distance_inside_is_one_at_the_border_and_zero_outside():
    labels = np.zeros((9, 9), np.int32)
    labels[2:7, 2:7] = 1

    distance = distance_inside(labels)

    assert distance[2, 2:7].tolist() == [1, 1, 1, 1, 1]
    assert distance[4, 4] == pytest.approx(3, abs=0.2)
    assert distance[0].max() == 0
