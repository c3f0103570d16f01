"""Which pixel size wins, and when pixels are resampled."""

import logging

import pytest

from qpnuclei.errors import MppError
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.resolution import resolve_mpp, working_downsample

PROJECT = PixelCalibration(0.5, 0.51)


def test_the_user_wins_then_the_project_then_the_slide():
    assert resolve_mpp(0.25, PROJECT, (0.3, 0.3)) == ((0.25, 0.25), "--mpp")
    assert resolve_mpp(None, PROJECT, (0.3, 0.3)) == ((0.5, 0.51), "project")
    assert resolve_mpp(None, PixelCalibration(), (0.3, 0.3)) == ((0.3, 0.3), "slide")
    assert resolve_mpp(None, PixelCalibration(0.5, None), (0.3, 0.3)) == ((0.3, 0.3), "slide")
    assert resolve_mpp(None, None, (0.3, 0.3)) == ((0.3, 0.3), "slide")


def test_no_pixel_size_is_an_error_that_names_the_option():
    with pytest.raises(MppError, match="case-7 has no pixel size") as caught:
        resolve_mpp(None, None, None, name="case-7")
    assert "--mpp" in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("value", [0.0, 0.049, 2.51, -0.25, float("nan"), float("inf")])
def test_absurd_pixel_sizes_are_refused_wherever_they_come_from(value):
    for arguments, where in (
        ((value, None, (0.25, 0.25)), "from the given mpp"),
        ((None, PixelCalibration(0.25, value), None), "from the project"),
        ((None, None, (value, 0.25)), "from the slide file"),
    ):
        with pytest.raises(MppError, match=where) as caught:
            resolve_mpp(*arguments)
        assert "--mpp" in caught.value.hint
        if where == "from the given mpp":
            assert f"a pixel size of {value:.4g} µm/px" in caught.value.what


def test_an_absurd_slide_does_not_matter_if_the_user_knows_better(caplog):
    # 72 dpi, as many programs write for want of anything better.
    assert resolve_mpp(0.25, None, (352.8, 352.8)) == ((0.25, 0.25), "--mpp")
    assert len(caplog.records) == 1


def test_a_contradiction_is_said_once(caplog):
    with caplog.at_level(logging.WARNING):
        resolve_mpp(0.25, PixelCalibration(0.5, 0.5), (0.5, 0.5), name="case-7")
    (record,) = caplog.records
    assert "case-7" in record.getMessage()
    assert "0.25" in record.getMessage()
    assert "0.5" in record.getMessage()


def test_agreement_within_a_percent_gives_no_warning(caplog):
    resolve_mpp(0.25, PixelCalibration(0.2499, 0.2499), (0.252, 0.252))
    assert not caplog.records


def test_close_to_the_model_nothing_is_resampled():
    # A 40x scanner says 0.2526; a model wants 0.25.
    assert working_downsample((0.2526, 0.2526), 0.25) == (1.0, 1.0)
    assert working_downsample((0.226, 0.274), 0.25) == (1.0, 1.0)


@pytest.mark.parametrize("model_mpp", [0.25, 0.5])
def test_the_tolerance_is_a_tenth_of_the_models_resolution_on_each_axis(model_mpp):
    for near, far in ((0.901, 0.899), (1.099, 1.101)):
        assert working_downsample((near * model_mpp, model_mpp), model_mpp) == (1.0, 1.0)
        assert working_downsample((model_mpp, near * model_mpp), model_mpp) == (1.0, 1.0)
        resampled = working_downsample((far * model_mpp, model_mpp), model_mpp)
        assert resampled == pytest.approx((1 / far, 1.0))
        resampled = working_downsample((model_mpp, far * model_mpp), model_mpp)
        assert resampled == pytest.approx((1.0, 1 / far))


def test_far_from_the_model_pixels_are_resampled_per_axis():
    assert working_downsample((0.5, 0.5), 0.25) == (0.5, 0.5)
    assert working_downsample((0.125, 0.25), 0.25) == (2.0, 1.0)
    x, y = working_downsample((0.2526, 0.2526), 0.5)
    assert x == y == pytest.approx(1.9794, abs=1e-4)
