"""The choice of the reader, and files that no reader opens."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from qpnuclei.errors import NotFoundError, SlideError
from qpnuclei.slides.slide import open_slide
from tests.slides.dicom import write_series
from tests.slides.pictures import picture, write_png, write_pyramid


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("name", ["x.svs", "x.png", "x.mrxs", "x.dcm", "x"])
def test_a_pipe_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(SlideError, match="not a regular file but a pipe or a device"):
        open_slide(tmp_path / name)
    (tmp_path / "link.tif").symlink_to(tmp_path / name)
    with pytest.raises(SlideError, match="not a regular file"):
        open_slide(tmp_path / "link.tif")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device on this system")
def test_a_device_is_refused(tmp_path):
    (tmp_path / "x.svs").symlink_to("/dev/zero")
    with pytest.raises(SlideError, match="not a regular file"):
        open_slide(tmp_path / "x.svs")


def test_a_broken_link_is_not_found(tmp_path):
    (tmp_path / "x.svs").symlink_to(tmp_path / "absent")
    with pytest.raises(NotFoundError, match="no such slide"):
        open_slide(tmp_path / "x.svs")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Image_01.vsi", "an Olympus VSI"),
        ("frame_t.ets", "a part of an Olympus VSI slide"),
        ("x.isyntax", "a Philips iSyntax slide"),
        ("X.VSI", "an Olympus VSI"),
    ],
)
def test_formats_that_are_not_read_are_named(tmp_path, name, kind):
    """A VSI is a TIFF of the overview, which must not be taken for the slide."""
    write_pyramid(tmp_path / name, [picture(128, 96)])
    with pytest.raises(SlideError, match=f"is {kind}.* which is not supported") as caught:
        open_slide(tmp_path / name)
    assert "OME TIFF" in caught.value.hint


@pytest.mark.parametrize("name", ["x.gif", "x.webp"])
def test_other_pictures_are_not_tried(tmp_path, name):
    write_png(tmp_path / name, picture(64, 48))
    with pytest.raises(SlideError, match="not a known image format"):
        open_slide(tmp_path / name)


def test_a_png_of_16_bit_is_refused_in_grey_and_in_colour(tmp_path):
    for shape in ((48, 64), (48, 64, 3)):
        deep = np.full(shape, 4000, np.uint16)
        (tmp_path / "x.png").write_bytes(imagecodecs.png_encode(deep))
        with pytest.raises(SlideError, match="16 or 32 bit"):
            open_slide(tmp_path / "x.png")


def test_a_png_that_claims_to_be_huge_is_refused(tmp_path):
    path = write_png(tmp_path / "x.png", picture(64, 48))
    data = bytearray(path.read_bytes())
    data[16:24] = (2_000_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(data)
    with pytest.raises(SlideError, match="too large for an untiled image"):
        open_slide(path)


def test_plain_images_have_one_series(tmp_path):
    path = write_png(tmp_path / "x.png", picture(64, 48))
    with open_slide(path, series=0) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 64, 48), picture(64, 48))
    with pytest.raises(SlideError, match="series 1 of"):
        open_slide(path, series=1)


def test_a_large_transparent_image_is_composed_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("qpnuclei.slides.readers.reader._COMPOSED_PIXELS", 100)
    rgba = np.random.default_rng(0).integers(0, 256, (48, 64, 4), np.uint8)
    Image.fromarray(rgba).save(tmp_path / "x.png")
    white = Image.new("RGBA", (64, 48), "white")
    expected = np.asarray(Image.alpha_composite(white, Image.fromarray(rgba)).convert("RGB"))
    with open_slide(tmp_path / "x.png") as slide:
        difference = slide.read(0, 0, 64, 48).astype(int) - expected
    assert np.abs(difference).max() <= 1


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "openslide" and "openslide.so" in sys.argv[2:]:
            raise ModuleNotFoundError("Couldn't locate OpenSlide shared library.")
        if name in sys.argv[2:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from pathlib import Path
from qpnuclei.errors import SlideError
from qpnuclei.slides.files import one_per_slide
from qpnuclei.slides.slide import open_slide

try:
    path, = one_per_slide([Path(sys.argv[1])])
    with open_slide(path) as slide:
        print([(slide.width, slide.height)])
except SlideError as error:
    print(error.what)
    print(error.hint)
"""


@pytest.mark.parametrize(
    ("missing", "compression", "name"),
    [
        ("imagecodecs._webp", "webp", "WEBP"),
        ("imagecodecs._jpeg8", "jpeg", "JPEG"),
        ("imagecodecs._zstd", "zstd", "ZSTD"),
        ("imagecodecs", "webp", "WEBP"),
        ("imagecodecs", "lzw", "LZW"),
    ],
)
def test_a_missing_decoder_is_named(tmp_path, missing, compression, name):
    path = write_pyramid(tmp_path / "x.tif", [picture(128, 96)], compression=compression)
    assert without(path, missing) == [
        f"{path} is compressed as {name}, and the package imagecodecs, which decodes it, is "
        "missing or incomplete",
        "pip install --force-reinstall imagecodecs",
    ]


def test_files_that_need_no_missing_package_are_read(tmp_path):
    path = write_pyramid(tmp_path / "x.tif", [picture(128, 96)], compression="zlib")
    assert without(path, "imagecodecs", "openslide") == ["[(128, 96)]"]


@pytest.mark.parametrize(
    ("module", "package", "name"),
    [
        ("openslide", "openslide-python openslide-bin", "x.mrxs"),
        ("PIL", "pillow", "x.png"),
    ],
)
def test_a_missing_package_is_named(tmp_path, module, package, name):
    path = tmp_path / name
    write_png(path, picture(64, 48), format="PNG")
    assert without(path, module) == [
        f"{path} needs a package that is missing or incomplete: No module named {module!r}",
        f"pip install --force-reinstall {package}",
    ]


def test_a_missing_library_of_openslide_is_named(tmp_path):
    path = write_png(tmp_path / "x.mrxs", picture(64, 48), format="PNG")
    assert without(path, "openslide.so") == [
        f"{path} needs a package that is missing or incomplete: "
        "Couldn't locate OpenSlide shared library.",
        "pip install --force-reinstall openslide-python openslide-bin",
    ]


def test_a_missing_pydicom_does_not_make_a_slide_of_each_dicom_file(tmp_path):
    (path,) = write_series(tmp_path, [picture(128, 64)], 0.5)
    assert without(path) == ["[(128, 64)]"]
    assert without(path, "pydicom") == [
        f"{path} needs a package that is missing or incomplete: No module named 'pydicom'",
        "pip install --force-reinstall pydicom",
    ]


def without(path, *modules):
    """Return what opening a file prints where modules are missing."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, path, *modules],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()
