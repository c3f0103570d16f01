import numpy as np
import pytest
from scipy import ndimage
from skimage.draw import ellipse

from qpnuclei.errors import UsageError
from qpnuclei.training.student.batches import (
    TrainingExample,
    _random_jpeg,
    make_examples,
    random_appearance,
    random_batch,
    random_crop_of,
    with_colours_of,
)
from qpnuclei.training.student.pseudo_labels import PseudoLabels
from qpnuclei.training.student.recipe import student_recipe

PURPLE, PINK = (80, 50, 130), (220, 150, 190)
#: Crops in the colours of their own example.
AS_THEY_ARE = {"strong_colours": 0.0, "borrowed_colours": 0.0}


@pytest.fixture
def example():
    rgb = np.full((200, 240, 3), PINK, np.uint8)
    labels = np.zeros((200, 240), np.int32)
    for number, (y, x) in enumerate([(50, 60), (90, 180), (150, 110), (160, 40)], start=1):
        inside = ellipse(y, x, 20, 9)
        rgb[inside], labels[inside] = PURPLE, number
    weight = np.ones(labels.shape, np.float32)
    weight[:, 200:] = 0
    return TrainingExample.of(rgb, PseudoLabels(labels, weight))


def test_an_example_holds_foreground_centre_and_weight(example):
    foreground, centre, weight = np.moveaxis(example.targets, -1, 0)

    assert set(np.unique(foreground)) == {0, 255}
    assert centre[50, 60] == 255
    assert (centre[foreground == 0] == 0).all()
    assert (weight[:, :200] == 255).all()
    assert (weight[:, 200:] == 0).all()


def test_pixels_between_touching_nuclei_weigh_more():
    labels = np.zeros((9, 12), np.int32)
    labels[:, 1:5], labels[:, 5:9] = 1, 2
    known = PseudoLabels(labels, np.full(labels.shape, 0.5, np.float32))

    weight = TrainingExample.of(np.zeros((9, 12, 3), np.uint8), known, seam_weight=3.0).targets[
        ..., 2
    ]

    # Between column 4 and 5: two pixels to either side, three times what the others weigh.
    assert (weight[:, 3:7] == np.rint(255 * 0.5)).all()
    assert (weight[:, :3] == np.rint(255 * 0.5 / 3)).all()
    assert (weight[:, 7:] == np.rint(255 * 0.5 / 3)).all()


@pytest.mark.parametrize("seam_weight", [1, 3, 24.9, 25])
def test_stored_weights_have_the_ratio_of_the_recipe(seam_weight):
    recipe = student_recipe({"name": "short", "seam_weight": seam_weight})
    labels = np.zeros((9, 12), np.int32)
    labels[:, 1:5], labels[:, 5:9] = 1, 2
    known = PseudoLabels(labels, np.ones(labels.shape, np.float32))

    example = TrainingExample.of(np.zeros((9, 12, 3), np.uint8), known, recipe.seam_weight)

    weight = example.targets[0, :, 2].astype(float)
    assert weight[4] / weight[0] == pytest.approx(seam_weight, rel=0.05)


def test_a_seam_weight_that_8_bits_cannot_store_is_refused():
    with pytest.raises(UsageError, match="seam_weight"):
        student_recipe({"name": "short", "seam_weight": 26})


def test_as_many_nuclei_are_pasted_as_the_area_of_the_patch_says(example):
    """Not the area that its pixels would have at the resolution of the model."""
    labels = ndimage.label(example.targets[..., 0])[0].astype(np.int32)
    known = PseudoLabels(labels, np.ones(labels.shape, np.float32))

    def pasted(mpp, pastes_per_mm2):
        recipe = student_recipe(
            {"name": "short", "renditions": 1, "pastes_per_mm2": pastes_per_mm2}
        )
        rng = np.random.default_rng(0)
        return make_examples(example.rgb, known, mpp, recipe, rng)[1].rgb

    assert np.array_equal(pasted((0.5, 0.5), 1000), pasted((0.25, 0.25), 4000))
    assert np.array_equal(pasted((0.5, 0.5), 1000), pasted((0.25, 0.5), 2000))
    assert not np.array_equal(pasted((0.25, 0.25), 1000), pasted((0.25, 0.25), 4000))


def test_image_and_targets_are_cropped_alike(example):
    rng = np.random.default_rng(0)
    for _ in range(40):
        rgb, targets = random_crop_of(example, 96, rng)
        assert rgb.shape == targets.shape == (96, 96, 3)
        # Whatever the turn and the scale: where the targets say nucleus it is purple.
        assert (rgb[targets[..., 0] > 200].astype(int) - PURPLE).max(initial=0) < 40
        assert (PINK - rgb[targets[..., 0] < 50].astype(int)).max(initial=0) < 40


def test_crops_come_in_all_sizes_and_from_everywhere(example):
    rng = np.random.default_rng(1)
    # The area of a nucleus in the crop tells the scale: 565 px as it is.
    areas = [
        np.count_nonzero(random_crop_of(example, 256, rng)[1][..., 0] > 127) for _ in range(60)
    ]

    assert min(areas) < 0.8 * np.median(areas)
    assert max(areas) > 1.25 * np.median(areas)


def test_patches_smaller_than_a_crop_are_mirrored(example):
    small = TrainingExample(example.rgb[:40, :40], example.targets[:40, :40])

    rgb, _ = random_crop_of(small, 96, np.random.default_rng(0))

    assert (rgb > 0).all()  # no black border, which would be taken for haematoxylin


def test_appearance_varies_in_colour_brightness_and_sharpness_and_stays_in_range(example):
    rng = np.random.default_rng(2)

    looks = np.stack([random_appearance(example.rgb, rng) for _ in range(60)])

    assert looks.dtype == np.float32
    assert looks.min() >= 0
    assert looks.max() <= 1
    mean_colours = looks.mean(axis=(1, 2))
    assert (mean_colours.std(axis=0) > 0.02).all()
    # Nuclei stay darker than what is around them, in red, always.
    nuclei = example.targets[..., 0] > 0
    assert (looks[:, nuclei, 0].mean(axis=1) < looks[:, ~nuclei, 0].mean(axis=1)).all()
    sharpness = np.abs(np.diff(looks, axis=1)).max(axis=(1, 2, 3))
    assert sharpness.max() > 2 * sharpness.min()


def test_strong_colours_vary_more_than_mild_ones(example):
    def spread(share):
        rng = np.random.default_rng(7)
        looks = np.stack([random_appearance(example.rgb, rng, share) for _ in range(60)])
        return looks.mean(axis=(1, 2)).std(axis=0)

    assert (spread(1.0) > 1.3 * spread(0.0)).all()


def test_jpeg_keeps_channels_in_their_places():
    """Half resolution of colour is that of blue and red against green, not of swapped channels."""
    red = np.zeros((32, 32, 3), np.float32)
    red[..., 0] = 0.8

    for seed in range(4):
        image = _random_jpeg(red, np.random.default_rng(seed))

        assert np.abs(image - red).max() < 0.06


def test_borrowed_colours_are_the_lenders():
    rng = np.random.default_rng(0)
    no_targets = np.zeros((64, 64, 3), np.uint8)

    def patch(colour):
        grain = rng.normal(0, 12, (64, 64, 1))
        return TrainingExample((np.array(colour) + grain).clip(0, 255).astype(np.uint8), no_targets)

    own, lender = patch((150, 90, 160)), patch((110, 100, 190))

    changed = with_colours_of(own.rgb, own.colours, lender.colours)

    assert np.abs(changed.mean(axis=(0, 1)) - lender.rgb.mean(axis=(0, 1))).max() < 2
    again = with_colours_of(own.rgb, own.colours, own.colours)
    assert np.abs(again.astype(int) - own.rgb).max() <= 1


def test_glass_has_no_part_in_the_colours_of_a_patch():
    half_glass = np.full((40, 40, 3), 245, np.uint8)
    half_glass[:, ::2] = (150, 90, 160)

    colours = TrainingExample(half_glass, np.zeros((40, 40, 3), np.uint8)).colours

    np.testing.assert_allclose(
        colours[0], TrainingExample(half_glass[:, ::2], half_glass[:, ::2]).colours[0], atol=0.01
    )


def test_larger_examples_are_drawn_more_often():
    small, large = (
        TrainingExample(
            np.full((side, side, 3), value, np.uint8), np.zeros((side, side, 3), np.uint8)
        )
        for side, value in ((32, 20), (96, 220))
    )

    images, _ = random_batch(
        [small, large], 200, 32, np.random.default_rng(0), (0, 0, 0), (1, 1, 1), **AS_THEY_ARE
    )

    bright = (images.mean(dim=(1, 2, 3)) > 0.4).float().mean()
    assert 0.82 <= bright <= 0.97  # nine tenths of the area


def test_a_batch_is_normalised_and_repeatable(example):
    batches = [
        random_batch(
            [example],
            3,
            64,
            np.random.default_rng(5),
            (0.5, 0.5, 0.5),
            (0.25, 0.25, 0.25),
            **AS_THEY_ARE,
        )
        for _ in range(2)
    ]

    (images, targets), (again, _) = batches
    assert images.shape == targets.shape == (3, 3, 64, 64)
    assert (images == again).all()
    assert -2 <= images.min() < 0 < images.max() <= 2
    assert targets.min() >= 0
    assert targets.max() <= 1
