import json
import sys
from functools import partial

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from qpnuclei.qupath import images
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.new_image import describe_slides, server_builder
from qpnuclei.slides.stains import DEFAULT_HE
from tests.slides.dicom import write_series
from tests.slides.pictures import (
    edit_ome,
    picture,
    reduced,
    without_planes,
    write_ome,
    write_png,
    write_pyramid,
)

FULL = picture(515, 389, 1)
HALF, QUARTER = reduced(FULL, 2), reduced(FULL, 4)
OTHER = 255 - HALF
APERIO = "Aperio Image Library v1\n515x389 (64x64) JPEG/RGB Q=70|AppMag = 40|MPP = 0.25"


def builder_of(path):
    """Return the builder of a new image, after its project was read and the image opened."""
    ((image,), errors) = describe_slides([path])
    assert errors == []
    (entry,) = create_from_slides(path.parent / "p", [path]).images
    with images.open_image(entry) as slide:
        assert (slide.width, slide.height) == (515, 389)
        assert np.abs(slide.read(0, 0, 515, 389).astype(int) - FULL).mean() < 1
    return server_builder(image)


def sizes(builder):
    return [(level["width"], level["height"]) for level in builder["metadata"]["levels"]]


def with_subifds(path, *levels, ome):
    with tifffile.TiffWriter(path, ome=ome) as tiff:
        for number, level in enumerate(levels):
            options = {"subfiletype": 1} if number else {"subifds": len(levels) - 1}
            tiff.write(level, photometric="rgb", tile=(64, 64), **options)
    return path


def write_compressed(codec, folder):
    return write_pyramid(folder / "x.tif", [FULL, HALF], compression=codec)


def aperio(path, *levels):
    with tifffile.TiffWriter(path) as tiff:
        for level in levels:
            tiff.write(level, photometric="rgb", tile=(64, 64), metadata=None, description=APERIO)
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_pyramid(folder / "x.tif", [FULL, HALF, QUARTER]),
        lambda folder: write_pyramid(folder / "x.TIFF", [FULL, HALF], compression="zlib"),
        # A factor that tifffile takes for no level.
        lambda folder: write_pyramid(folder / "x.tif", [FULL, FULL[::3, ::3], QUARTER[::2, ::2]]),
        lambda folder: aperio(folder / "x.svs", FULL, reduced(FULL, 4)),
        # Levels with a pixel for the incomplete blocks at the border.
        lambda folder: aperio(folder / "x.svs", FULL, FULL[::4, ::4], FULL[::16, ::16]),
        lambda folder: aperio(folder / "x.SVS", FULL),
    ],
)
def test_openslide_is_named_with_its_own_levels(tmp_path, write):
    path = write(tmp_path)
    builder = builder_of(path)
    assert builder["providerClassName"] == images.OPENSLIDE_BUILDER
    assert builder["args"] == []
    # QuPath passes the numbers of the levels on to OpenSlide.
    with openslide.OpenSlide(path) as slide:
        assert sizes(builder) == list(slide.level_dimensions)
    for level in builder["metadata"]["levels"]:
        assert abs(level["width"] * level["downsample"] - 515) < level["downsample"]
        assert abs(level["height"] * level["downsample"] - 389) < level["downsample"]


@pytest.mark.parametrize(
    "write",
    [
        *(
            partial(write_compressed, codec)
            for codec in ("jpegxl", "jpegxr", "webp", "png", "lzma", "jpeg2000")
        ),
        lambda folder: write_pyramid(folder / "x.tif", [FULL, HALF], tile=None),
        lambda folder: write_pyramid(folder / "x.svs", [FULL], tile=None),
        lambda folder: write_png(folder / "x.svs", FULL, format="PNG"),
        lambda folder: write_png(folder / "x.png", FULL),
        lambda folder: write_pyramid(folder / "x.tif", [FULL]),
        lambda folder: with_subifds(folder / "x.tif", FULL, HALF, QUARTER, ome=False),
        # QuPath prefers Bio-Formats by this name.
        lambda folder: write_pyramid(folder / "x.ome.tif", [FULL, HALF]),
        # OpenSlide would show the second page as a level, and give the third another number.
        lambda folder: write_pyramid(folder / "x.tif", [FULL, OTHER, QUARTER]),
    ],
)
def test_bio_formats_is_named_where_openslide_has_no_levels(tmp_path, write):
    builder = builder_of(write(tmp_path))
    assert builder["providerClassName"] == images.BIO_FORMATS_BUILDER
    assert builder["args"] == ["--series", "0"]
    # Bio-Formats takes only sub-IFDs of an OME-TIFF for levels.
    assert sizes(builder) == [(515, 389)]


def test_dicom_is_left_to_bio_formats(tmp_path):
    # OpenSlide in QuPath 0.4 does not know it. Bio-Formats has all levels.
    path, _ = write_series(tmp_path, [FULL, HALF], 0.25)
    ((image,), _) = describe_slides([path])
    (entry,) = create_from_slides(tmp_path / "p", [path]).images
    builder = server_builder(image)
    assert builder["providerClassName"] == images.BIO_FORMATS_BUILDER
    assert builder["args"] == ["--series", "0"]
    assert sizes(builder) == [(515, 389), (257, 194)]
    with images.open_image(entry) as slide:
        assert np.abs(slide.read(0, 0, 515, 389).astype(int) - FULL).mean() < 2


def test_openslide_is_named_for_vms_and_opens_it_once(tmp_path, monkeypatch):
    tissue = Image.fromarray(picture(256, 256))
    for name, side in (("a.jpg", 256), ("a_map.jpg", 64), ("a_macro.jpg", 64)):
        shown = tissue.resize((side, side))
        shown.save(tmp_path / name, quality=95, subsampling=0, restart_marker_blocks=4)
    index = tmp_path / "a.vms"
    index.write_text(
        "[Virtual Microscope Specimen]\nNoLayers=1\nNoJpegColumns=1\nNoJpegRows=1\n"
        "ImageFile=a.jpg\nMapFile=a_map.jpg\nMacroImage=a_macro.jpg\nSourceLens=40\n"
        "PhysicalWidth=64000\nPhysicalHeight=64000\n"
    )
    opened = []

    class Counting(openslide.OpenSlide):
        def __init__(self, path):
            opened.append(path)
            super().__init__(path)

    with monkeypatch.context() as patch:
        patch.setattr(openslide, "OpenSlide", Counting)
        ((image,), _) = describe_slides([index])
    assert opened == [index]
    builder = server_builder(image)
    assert builder["providerClassName"] == images.OPENSLIDE_BUILDER
    with openslide.OpenSlide(index) as slide:
        assert sizes(builder) == list(slide.level_dimensions)


def test_a_slide_that_needs_no_openslide_is_added_without_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    path = write_pyramid(tmp_path / "x.tif", [FULL, HALF])
    assert builder_of(path)["providerClassName"] == images.BIO_FORMATS_BUILDER


def test_openslide_has_the_levels_before_a_page_that_is_none(tmp_path):
    path = write_pyramid(tmp_path / "x.tif", [FULL, HALF, 255 - QUARTER])
    builder = builder_of(path)
    assert builder["providerClassName"] == images.OPENSLIDE_BUILDER
    assert sizes(builder) == [(515, 389), (257, 194)]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ((FULL, HALF, QUARTER), [(515, 389), (257, 194), (128, 97)]),
        # Bio-Formats has the second one, too, so it gives the third another number.
        ((FULL, OTHER, QUARTER), [(515, 389)]),
        ((FULL, HALF, 255 - QUARTER), [(515, 389), (257, 194)]),
    ],
)
@pytest.mark.parametrize("name", ["x.tif", "x.ome.tif"])
def test_bio_formats_has_the_levels_of_an_ome_tiff(tmp_path, levels, expected, name):
    builder = builder_of(with_subifds(tmp_path / name, *levels, ome=True))
    assert builder["providerClassName"] == images.BIO_FORMATS_BUILDER
    assert sizes(builder) == expected


def test_a_file_without_pixel_size_is_not_calibrated(tmp_path):
    size = builder_of(write_png(tmp_path / "x.png", FULL))["metadata"]["pixelCalibration"]
    assert size["pixelWidth"] == size["pixelHeight"] == {"value": 1.0, "unit": "px"}


def test_the_number_of_the_image_that_was_chosen_is_stated(tmp_path):
    path = write_ome(tmp_path / "x.ome.tif", (picture(64, 48), "a", 1.0), (FULL, "b", 0.25))
    edit_ome(path, lambda xml: without_planes(xml, 0))
    assert builder_of(path)["args"] == ["--series", "1"]


GREY, ALPHA = FULL[:, :, 0], np.full(FULL.shape[:2], 200, np.uint8)
RGBA = np.dstack([FULL, ALPHA])
COLORMAP = np.tile(np.arange(256, dtype=np.uint16) * 257, (3, 1))


def pillow(name, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    return name, lambda path: (image if mode is None else image.convert(mode)).save(path, **options)


def tiff(pixels, name="x.tif", **options):
    return name, lambda path: tifffile.imwrite(path, pixels, **options)


def channel_names(metadata):
    return [channel["name"] for channel in metadata["channels"]]


# What Bio-Formats 7.3 has of these files; QuPath leaves out the alpha channel of RGB.
@pytest.mark.parametrize(
    ("file", "channels"),
    [
        (pillow("x.png", GREY), 1),
        (pillow("x.png", GREY, transparency=3), 1),
        (pillow("x.png", GREY, "1"), 1),
        (pillow("x.png", FULL, "P"), 1),
        (pillow("x.png", FULL, "P", transparency=3), 1),
        (pillow("x.png", np.dstack([GREY, ALPHA])), 2),
        (pillow("x.png", FULL), 3),
        (pillow("x.png", FULL, transparency=(1, 2, 3)), 3),
        (pillow("x.png", RGBA), 3),
        (pillow("x.jpg", GREY), 1),
        (pillow("x.jpg", FULL), 3),
        (pillow("x.bmp", GREY), 1),
        (pillow("x.bmp", GREY, "1"), 1),
        (pillow("x.bmp", FULL, "P"), 1),
        (pillow("x.bmp", FULL), 3),
        (pillow("x.bmp", RGBA), 3),
        (tiff(GREY), 1),
        (tiff(GREY, photometric="miniswhite"), 1),
        (tiff(GREY, tile=(64, 64), compression="jpeg"), 1),
        (tiff(GREY, "x.ome.tif"), 1),
        (tiff(GREY, imagej=True), 1),
        (tiff(GREY, photometric="palette", colormap=COLORMAP), 1),
        (tiff(GREY, "x.ome.tif", photometric="palette", colormap=COLORMAP), 1),
        (tiff(FULL, photometric="rgb", tile=(64, 64)), 3),
        (tiff(FULL, photometric="ycbcr"), 3),
        (tiff(FULL, photometric="ycbcr", compression="jpeg"), 3),
        (tiff(RGBA, photometric="rgb", extrasamples=["unassalpha"]), 3),
        (tiff(RGBA, "x.ome.tif", photometric="rgb", extrasamples=["assocalpha"]), 3),
        (tiff(np.moveaxis(FULL, 2, 0), photometric="rgb", planarconfig="separate"), 3),
        (tiff(np.moveaxis(RGBA, 2, 0), photometric="rgb", planarconfig="separate",
              extrasamples=["unspecified"], tile=(64, 64)), 3),
        (tiff(np.moveaxis(FULL, 2, 0), "x.ome.tif", photometric="minisblack",
              metadata={"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}}), 3),
    ],
)  # fmt: skip
def test_as_many_channels_are_stated_as_bio_formats_has(tmp_path, file, channels):
    name, write = file
    write(tmp_path / name)
    (entry,) = create_from_slides(tmp_path / "p", [tmp_path / name]).images
    stored = json.loads((tmp_path / "p" / "project.qpproj").read_bytes())
    builder = stored["images"][0]["serverBuilder"]
    assert builder["providerClassName"] == images.BIO_FORMATS_BUILDER
    metadata = builder["metadata"]
    named = {1: ["Channel 1"], 2: ["Channel 1", "Channel 2"], 3: ["Red", "Green", "Blue"]}
    assert channel_names(metadata) == named[channels]
    assert (metadata["isRGB"], metadata["pixelType"]) == (channels == 3, "UINT8")
    summary = json.loads((entry.folder / "summary.json").read_bytes())
    assert summary["server"]["sizeC"] == channels
    # QuPath 0.6 opens no data file that calls a grey image brightfield, or gives it stains.
    kind = ("BRIGHTFIELD_H_E", DEFAULT_HE) if channels == 3 else ("UNSET", None)
    assert (entry.image_type, entry.stains) == kind
    assert summary["imageType"] == kind[0]
    assert named[channels][0].encode() in (entry.folder / "data.qpdata").read_bytes()
    with images.open_image(entry) as slide:
        assert slide.read(0, 0, 515, 389).shape == (389, 515, 3)


def test_openslide_shows_a_grey_pyramid_in_colours(tmp_path):
    levels = [level[:, :, 0] for level in (FULL, HALF)]
    path = write_pyramid(tmp_path / "x.tif", levels, photometric="minisblack")
    (entry,) = create_from_slides(tmp_path / "p", [path]).images
    ((image,), _) = describe_slides([path])
    builder = server_builder(image)
    assert builder["providerClassName"] == images.OPENSLIDE_BUILDER
    assert builder["metadata"]["isRGB"] is True
    assert channel_names(builder["metadata"]) == ["Red", "Green", "Blue"]
    assert entry.image_type == "BRIGHTFIELD_H_E"
