from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2hed

from qpnuclei.models.metadata import PostProcessing
from qpnuclei.segmentation.labels import _holes
from qpnuclei.segmentation.postprocess import (
    foreground_mask,
    interaction_radius_px,
    segment_instances,
)
from qpnuclei.segmentation.quantised import (
    ATTENTION_OF_LEVEL,
    CENTRE_STEPS,
    quantise_attention,
    quantise_centre,
)
from tests.paths import SHARED
from tests.segmentation.images import random_attention
from tests.segmentation.reference import EIGHT, FOUR, reference_instances, same_up_to_numbering

PLAIN = PostProcessing(coarse_radius_px=0, fine_radius_px=0, smoothing_sigma_px=0)
parameter_sets = st.builds(
    PostProcessing,
    threshold=st.sampled_from([0.3, 0.5, 0.6]),
    coarse_radius_px=st.integers(0, 3),
    fine_radius_px=st.integers(0, 2),
    smoothing_sigma_px=st.sampled_from([0.0, 0.7, 1.0, 2.0]),
    maxima_radius_px=st.integers(1, 9),
    min_prominence_px=st.sampled_from([0.0, 0.0, 0.3, 1.0, 3.0]),
    centre_weight=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    min_area_px=st.sampled_from([0, 0, 20, 60]),
    min_mean_attention=st.sampled_from([0.0, 0.0, 0.7]),
)


def transcription(attention, parameters, centre=None):
    """Section 3.4 on quantised attention and centre maps."""
    if centre is not None:
        centre = quantise_centre(centre) / CENTRE_STEPS
    return reference_instances(
        ATTENTION_OF_LEVEL[quantise_attention(attention)], parameters, centre
    )


def picture(text):
    rows = text.split()
    return np.array([[c == "#" for c in row] for row in rows], np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 70), st.integers(1, 70), parameter_sets)
def test_it_equals_the_transcription_of_section_3_4(seed, height, width, parameters):
    attention = random_attention(seed, (height, width))
    expected = transcription(attention, parameters)
    assert same_up_to_numbering(segment_instances(attention, parameters), expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), parameter_sets)
def test_it_equals_the_transcription_with_a_centre_map(seed, parameters):
    attention = random_attention(seed, (50, 60))
    centre = random_attention(seed + 1, (50, 60), radius=(2, 5))
    expected = transcription(attention, parameters, centre)
    assert same_up_to_numbering(segment_instances(attention, parameters, centre), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.2, 0.8), parameter_sets)
def test_it_equals_the_transcription_on_noise_full_of_ties(seed, density, parameters):
    attention = (np.random.default_rng(seed).random((24, 24)) < density).astype(np.float32)
    expected = transcription(attention, parameters)
    assert same_up_to_numbering(segment_instances(attention, parameters), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.3, 0.9), st.sampled_from([PLAIN, PostProcessing()]))
def test_instances_and_what_they_leave_are_4_connected(seed, density, parameters):
    noise = np.random.default_rng(seed).random((30, 30)).astype(np.float32)
    attention = ndimage.uniform_filter(noise, 2) if seed % 2 else noise
    labels = segment_instances((attention < density).astype(np.float32), parameters)
    assert set(np.unique(labels)) | {0} == set(range(labels.max() + 1))
    for label in range(1, labels.max() + 1):
        region = np.pad(labels == label, 1)
        assert ndimage.label(region, FOUR)[1] == 1
        assert ndimage.label(~region, FOUR)[1] == 1


def test_two_overlapping_disks_become_two_nuclei_cut_at_the_neck():
    y, x = np.mgrid[:21, :41]
    attention = ((np.hypot(y - 10, x - 11) <= 8) | (np.hypot(y - 10, x - 27) <= 8)).astype(
        np.float32
    )
    labels = segment_instances(attention, PostProcessing())
    assert labels.max() == 2
    # The picture is its own mirror image about column 19, where the neck is.
    assert len(np.unique(labels[:, :19])) == 2
    assert len(np.unique(labels[:, 20:])) == 2


def test_a_small_nucleus_beside_a_large_one_is_not_lost():
    # Its maximum lies within the maxima radius of pixels of the large one that are higher.
    attention = np.zeros((20, 30), np.float32)
    attention[2:18, 2:18] = 1
    attention[8:12, 20:24] = 1
    labels = segment_instances(attention, replace(PLAIN, maxima_radius_px=12))
    assert labels[10, 10] > 0
    assert labels[10, 22] > 0
    assert labels[10, 10] != labels[10, 22]


def test_what_a_nucleus_encloses_belongs_to_it():
    ring = picture("""
        .........
        .#######.
        .#.....#.
        .#.###.#.
        .#.#.#.#.
        .#.###.#.
        .#.....#.
        .#######.
        .........
    """)
    # A window as large as the picture: one marker per component.
    parameters = replace(PLAIN, maxima_radius_px=12)
    expected = np.zeros((9, 9), np.int32)
    expected[1:8, 1:8] = 1
    np.testing.assert_array_equal(segment_instances(ring, parameters), expected)


def test_a_hole_that_opens_only_at_a_corner_is_filled():
    # The outline would touch itself at the corner between the two pixels of the diagonal gap.
    attention = picture("""
        ......
        .####.
        .#..#.
        .##.#.
        ...##.
        ......
    """)
    parameters = replace(PLAIN, maxima_radius_px=12)
    labels = segment_instances(attention, parameters)
    expected = picture("""
        ......
        .####.
        .####.
        .####.
        ...##.
        ......
    """)
    np.testing.assert_array_equal(labels > 0, expected > 0)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.2, 0.9))
def test_holes_are_counted_by_2x2_windows(seed, density):
    mask = np.random.default_rng(seed).random((15, 15)) < density
    labels, count = ndimage.label(mask, FOUR)
    labels = labels.astype(np.int32)
    expected = [
        ndimage.label(np.pad(labels != label, 1, constant_values=True), FOUR)[1] - 1
        for label in range(1, count + 1)
    ]
    np.testing.assert_array_equal(_holes(np.pad(labels, 1))[1:], expected)


def test_small_and_faint_instances_are_dropped_and_numbers_have_no_gaps():
    attention = np.zeros((10, 40), np.float32)
    attention[2:6, 2:6] = 0.9  # 16 px
    attention[2:5, 12:15] = 0.9  # 9 px: too small
    attention[2:6, 22:26] = 0.6  # too faint
    attention[2:6, 32:36] = 0.8
    labels = segment_instances(attention, replace(PLAIN, min_area_px=10, min_mean_attention=0.7))
    np.testing.assert_array_equal(
        np.unique(labels, return_counts=True), [[0, 1, 2], [400 - 32, 16, 16]]
    )


def test_the_limits_themselves_are_kept():
    attention = np.zeros((8, 8), np.float32)
    attention[2:6, 2:6] = 0.75
    parameters = replace(PLAIN, min_area_px=16)
    assert segment_instances(attention, parameters).max() == 1
    # The threshold itself is background: foreground lies above it.
    assert segment_instances(attention, replace(PLAIN, threshold=0.75)).max() == 0


def test_a_centre_map_splits_what_the_distance_does_not():
    attention = np.zeros((20, 60), np.float32)
    attention[5:15, 5:55] = 1
    y, x = np.mgrid[:20, :60]
    centre = np.maximum(0, 1 - np.hypot(y - 10, (x - 18) / 2) / 8) + np.maximum(
        0, 1 - np.hypot(y - 10, (x - 42) / 2) / 8
    )
    parameters = PostProcessing(maxima_radius_px=10, centre_weight=0.9)
    labels = segment_instances(attention, parameters, centre.astype(np.float32))
    assert labels.max() == 2
    assert labels[10, 18] != labels[10, 42]


def test_a_peak_that_hardly_rises_above_the_saddle_to_a_higher_one_is_no_nucleus():
    # Peaks of 6 and 8 px (as far is their centre from the border), a saddle of 5 px between.
    attention = np.zeros((30, 60), np.float32)
    y, x = np.mgrid[:30, :60]
    attention[np.abs(y - 15) < 5] = 1
    attention[np.hypot(y - 15, x - 15) < 6] = 1
    attention[np.hypot(y - 15, x - 45) < 8] = 1
    attention[:, [0, 59]] = 0

    def found(prominence):
        parameters = replace(PLAIN, min_prominence_px=prominence)
        return segment_instances(attention, parameters).max()

    assert found(0.0) == 3  # and a maximum on the plateau between them
    assert found(1.0) == 2
    assert found(1.001) == 1


def test_numbers_have_no_gaps_when_basins_are_joined():
    attention = random_attention(3, (200, 200), nuclei_per_px=1 / 300)
    apart = segment_instances(attention, PostProcessing())
    labels = segment_instances(attention, PostProcessing(min_prominence_px=2))
    assert 0 < labels.max() < apart.max()
    np.testing.assert_array_equal(np.unique(labels), np.arange(labels.max() + 1))


def test_quantised_maps_give_the_same_nuclei():
    attention = random_attention(5, (90, 80))
    centre = random_attention(6, (90, 80), radius=(2, 5))
    np.testing.assert_array_equal(
        segment_instances(quantise_attention(attention), PostProcessing(), quantise_centre(centre)),
        segment_instances(attention, PostProcessing(), centre),
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_uniform_attention(value):
    labels = segment_instances(np.full((9, 7), value, np.float32), PostProcessing())
    np.testing.assert_array_equal(labels, np.full((9, 7), int(value)))


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="attention must be"):
        segment_instances(np.zeros((2, 3, 1), np.float32), PostProcessing())
    with pytest.raises(ValueError, match="centre has shape"):
        segment_instances(
            np.zeros((2, 3), np.float32), PostProcessing(), np.zeros((3, 2), np.float32)
        )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), parameter_sets)
def test_an_instance_depends_on_its_component_and_the_interaction_radius_only(seed, parameters):
    rng = np.random.default_rng(seed)
    attention = random_attention(seed, (120, 120), nuclei_per_px=1 / 900)
    whole = segment_instances(attention, parameters)
    components, count = ndimage.label(
        foreground_mask(quantise_attention(attention), parameters), FOUR
    )
    boxes = ndimage.find_objects(components)
    radius = interaction_radius_px(parameters)
    for component in rng.permutation(count)[:4] + 1:
        rows, columns = boxes[component - 1]
        top, left = max(0, rows.start - radius), max(0, columns.start - radius)
        view = np.s_[top : rows.stop + radius, left : columns.stop + radius]
        inside = components[view] == component
        if np.isin(whole[components != component], whole[components == component]).any():
            continue  # enclosed by another instance, and part of it
        part = segment_instances(attention[view], parameters)
        assert same_up_to_numbering(np.where(inside, part, 0), np.where(inside, whole[view], 0))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.5, 0.99999))
def test_the_distance_transform_of_opencv_is_exact(seed, density):
    # The premise of heights: squared distances, rounded, are the true ones.
    mask = (np.random.default_rng(seed).random((200, 300)) < density).astype(np.uint8)
    mask[0, 0] = 0
    found = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    expected = np.square(ndimage.distance_transform_edt(mask))
    np.testing.assert_array_equal(np.rint(np.square(found.astype(float))), np.rint(expected))


def test_adjacent_maxima_of_equal_height_are_one_marker():
    # A 4x4 square has a plateau of four centres; diagonal ones count as adjacent, too.
    attention = np.zeros((8, 8), np.float32)
    attention[2:6, 2:6] = 1
    parameters = replace(PLAIN, maxima_radius_px=1)
    assert segment_instances(attention, parameters).max() == 1
    assert ndimage.label(segment_instances(attention, parameters), EIGHT)[1] == 1


IMAGES = SHARED / "data" / "monuseg-train" / "images"


@pytest.mark.shared
@pytest.mark.skipif(not IMAGES.is_dir(), reason="needs the development data beside the checkout")
def test_it_equals_the_transcription_on_stained_tissue():
    # Haematoxylin as the attention: real nuclei, clusters and specks.
    for path in sorted(IMAGES.iterdir())[::10]:
        with Image.open(path) as picture:
            rgb = np.asarray(picture.convert("RGB"))[300:540, 300:540]
        stain = ndimage.gaussian_filter(rgb2hed(rgb)[..., 0], 1)
        low, high = np.quantile(stain, [0.05, 0.95])
        attention = np.clip((stain - low) / (high - low), 0, 1).astype(np.float32)
        expected = transcription(attention, PostProcessing())
        assert expected.max() > 10
        assert same_up_to_numbering(segment_instances(attention, PostProcessing()), expected)
