import numpy as np
import pytest
from skimage.draw import disk
from skimage.measure import regionprops

from qpnuclei.training.student.pseudo_labels import PseudoLabels, seams
from qpnuclei.training.student.synthesis import cut_nuclei, paste_nuclei, repaint_nuclei

PURPLE, PINK = (80, 50, 130), (220, 150, 190)


@pytest.fixture
def tissue():
    """Two nuclei on pink, and one cut by the border."""
    rgb = np.full((160, 160, 3), PINK, np.uint8)
    labels = np.zeros((160, 160), np.int32)
    for number, (y, x) in enumerate([(40, 40), (120, 100), (0, 150)], start=1):
        inside = disk((y, x), 11, shape=labels.shape)
        rgb[inside], labels[inside] = PURPLE, number
    return rgb, PseudoLabels(labels, np.full(labels.shape, 0.5, np.float32))


def test_nuclei_at_the_border_are_not_cut_out(tissue):
    rgb, known = tissue

    cuts = cut_nuclei(rgb, known.labels)

    assert len(cuts) == 2
    for cut in cuts:
        assert cut.rgb.shape[:2] == cut.mask.shape
        assert cut.mask.sum() == (known.labels == 1).sum()
        assert (cut.rgb[cut.mask == 1] == PURPLE).all()


def test_pasted_nuclei_are_seen_and_known(tissue):
    rgb, known = tissue
    before = rgb.copy(), known.labels.copy(), known.weight.copy()

    cuts = cut_nuclei(rgb, known.labels)
    new_rgb, new = paste_nuclei(rgb, known, cuts, 30, np.random.default_rng(0))

    pasted = new.labels > 3
    assert len(np.unique(new.labels[pasted])) >= 5
    # They are purple (a blended rim aside), have their weight, and all else is as it was.
    assert np.median(np.abs(new_rgb[pasted].astype(int) - PURPLE)) <= 2
    changed = new.weight == 1
    assert changed[pasted].all()
    # Beside them, what a nucleus brought has parted it from the one below.
    assert (new.labels[changed & ~pasted] == 0).all()
    assert (new.weight[~changed] == 0.5).all()
    np.testing.assert_array_equal(new.labels[~changed], known.labels[~changed])
    far = ~(np.abs(new_rgb.astype(int) - rgb).max(axis=-1) > 0) | pasted
    assert far.mean() > 0.8
    for now, then in zip((rgb, known.labels, known.weight), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_pasted_nuclei_crowd_and_some_are_parted_by_their_surroundings(tissue):
    rgb, known = tissue
    cuts = cut_nuclei(rgb, known.labels)

    new_rgb, new = paste_nuclei(rgb, known, cuts, 30, np.random.default_rng(0))

    assert np.count_nonzero(seams(new.labels)) > 10 * np.count_nonzero(seams(known.labels))
    parted = (known.labels > 0) & (new.labels == 0)
    assert parted.any()
    # Pink has come between the purple ones.
    assert (new_rgb[parted].mean(axis=0) > np.mean([PURPLE, PINK], axis=0)).all()


def test_nuclei_are_scaled_and_stretched_as_asked(tissue):
    rgb, known = tissue
    cuts = cut_nuclei(rgb, known.labels)

    _, new = paste_nuclei(
        rgb,
        PseudoLabels(np.zeros_like(known.labels), known.weight),
        cuts,
        40,
        np.random.default_rng(5),
        log_scale=(0.0, 0.0),
        max_covered=0.0,
    )

    pasted = regionprops(new.labels)
    assert len(pasted) >= 5
    # A disk of radius 11 becomes an ellipse of the same area, its axes at most exp(0.7) apart.
    assert np.allclose([p.area for p in pasted], (known.labels == 1).sum(), rtol=0.1)
    ratios = [p.axis_major_length / p.axis_minor_length for p in pasted]
    assert max(ratios) > 1.4
    assert max(ratios) < np.exp(0.7) * 1.1


def test_no_nucleus_is_covered_by_more_than_allowed(tissue):
    rgb, known = tissue
    cuts = cut_nuclei(rgb, known.labels)

    _, new = paste_nuclei(rgb, known, cuts, 200, np.random.default_rng(1), max_covered=0.0)

    for number in (1, 2, 3):
        assert (new.labels == number).sum() == (known.labels == number).sum()


def test_without_nuclei_nothing_is_pasted(tissue):
    rgb, known = tissue

    new_rgb, new = paste_nuclei(rgb, known, [], 10, np.random.default_rng(0))

    np.testing.assert_array_equal(new_rgb, rgb)
    np.testing.assert_array_equal(new.labels, known.labels)


def test_repainting_changes_nuclei_and_nothing_else(tissue):
    rgb, known = tissue

    new = repaint_nuclei(rgb, known.labels, np.random.default_rng(3), share=1.0)

    changed = np.abs(new.astype(int) - rgb).max(axis=-1)
    assert changed[known.labels == 1].max() > 20
    near = np.zeros(known.labels.shape, bool)
    for cy, cx in [(40, 40), (120, 100), (0, 150)]:
        near |= np.hypot(*(np.mgrid[:160, :160] - np.array([cy, cx])[:, None, None])) < 15
    assert changed[~near].max() == 0


def test_repainted_nuclei_are_paler_on_average(tissue):
    rgb, known = tissue
    inside = known.labels > 0

    brightness = [
        repaint_nuclei(rgb, known.labels, np.random.default_rng(seed), share=1.0)[inside].mean()
        for seed in range(10)
    ]

    assert np.mean(brightness) > rgb[inside].mean() + 10


def test_a_share_of_zero_repaints_nothing(tissue):
    rgb, known = tissue

    new = repaint_nuclei(rgb, known.labels, np.random.default_rng(0), share=0.0)

    # To optical density and back is exact to rounding; only the blend at the rim is not.
    assert np.abs(new.astype(int) - rgb).max() <= 1


def test_no_nuclei_no_change(tissue):
    rgb, known = tissue

    np.testing.assert_array_equal(
        repaint_nuclei(rgb, np.zeros_like(known.labels), np.random.default_rng(0), share=1.0), rgb
    )
