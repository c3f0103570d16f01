"""Colours by the profile of the scanner."""

import pickle

import numpy as np
import pytest
import tifffile
from PIL import ImageCms

from qpnuclei.errors import SlideError
from qpnuclei.slides.slide import open_slide
from tests.slides.pictures import picture, write_png


def red_for_green():
    """A profile like sRGB, but of a device that gives green first and then red."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")


def write(path, rgb, profile):
    if path.suffix == ".png":
        return write_png(path, rgb, icc_profile=profile)
    tile = (64, 64) if path.name.startswith("tiled") else None
    tifffile.imwrite(path, rgb, photometric="rgb", iccprofile=profile, tile=tile)
    return path


@pytest.mark.parametrize("name", ["x.png", "x.tif", "tiled.tif"])
def test_the_profile_in_the_file_is_applied_where_that_is_asked_for(tmp_path, name):
    rgb = picture(128, 96)
    path = write(tmp_path / name, rgb, red_for_green())
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 128, 96), rgb)
    with open_slide(path, apply_icc=True) as slide, pickle.loads(pickle.dumps(slide)) as other:
        for opened in (slide, other):
            swapped = opened.read(0, 0, 128, 96).astype(int)
            assert np.abs(swapped - rgb[..., [1, 0, 2]]).max() <= 2
            assert (opened.read(200, 0, 5, 5) == 255).all()


def test_a_missing_or_unfit_profile_is_an_error(tmp_path):
    plain = write_png(tmp_path / "x.png", picture(64, 48))
    with pytest.raises(SlideError, match="has no colour profile"):
        open_slide(plain, apply_icc=True)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"nonsense" * 20, lab):
        path = write(tmp_path / "y.tif", picture(64, 48), profile)
        with pytest.raises(SlideError, match="colour profile that cannot be used"):
            open_slide(path, apply_icc=True)
