"""Odd but legal TIFFs: colours, axes, metadata, levels, series."""

import logging
import struct
import tracemalloc

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qpnuclei.errors import SlideError
from qpnuclei.slides.readers import levels as levels_module
from qpnuclei.slides.slide import open_slide
from tests.paths import SHARED
from tests.slides.pictures import (
    edit_ome,
    picture,
    reduced,
    without_planes,
    write_ome,
    write_pyramid,
)

ODD = SHARED / "data" / "slides-odd"


def pixels_of(path, **options):
    with open_slide(path, **options) as slide:
        return slide.read(0, 0, slide.width, slide.height)


def change_tags(path, **values):
    """Overwrite tags of the first page."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for name, value in values.items():
            tiff.pages.first.tags[name].overwrite(value)


# --- tiles -----------------------------------------------------------------------------------


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_region_of_any_layout_is_what_was_written(tmp_path, data):
    width, height = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    tile = data.draw(st.none() | st.tuples(*[st.sampled_from([16, 32, 48])] * 2))
    strip = data.draw(st.integers(1, height))
    apart = data.draw(st.booleans())
    compression = data.draw(st.sampled_from([None, "deflate", "lzw", "packbits"]))
    rgb = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    tifffile.imwrite(
        tmp_path / "x.tif", np.moveaxis(rgb, -1, 0) if apart else rgb, photometric="rgb",
        planarconfig="separate" if apart else "contig", tile=tile, compression=compression,
        rowsperstrip=None if tile else strip, metadata=None,
    )  # fmt: skip
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(x + 1, width)), data.draw(st.integers(y + 1, height))
    with open_slide(tmp_path / "x.tif") as slide:
        assert (slide.width, slide.height) == (width, height)
        region = slide.read(x, y, right - x, bottom - y)
    np.testing.assert_array_equal(region, rgb[y:bottom, x:right])


# --- colours -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize("compression", [None, "adobe_deflate", "lzw"])
def test_ycbcr_that_is_not_jpeg_becomes_rgb(tmp_path, tile, compression):
    rgb = picture(192, 128)
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    tifffile.imwrite(
        tmp_path / "x.tif", ycbcr, photometric="ycbcr", subsampling=(1, 1), tile=tile,
        compression=compression, metadata=None,
    )  # fmt: skip
    back = np.asarray(Image.fromarray(ycbcr, "YCbCr").convert("RGB")).astype(int)
    ours = pixels_of(tmp_path / "x.tif").astype(int)
    assert np.abs(ours - back).max() <= 1  # Pillow rounds its tables
    assert np.abs(ours - rgb).max() <= 3  # what 8 bit of YCbCr lose


def test_ycbcr_of_video_range(tmp_path):
    """Black is 16 and white 235; chroma goes from 16 to 240."""
    colours = np.array([[[16, 128, 128], [235, 128, 128], [81, 90, 240]]], np.uint8)
    tifffile.imwrite(
        tmp_path / "x.tif",
        colours.repeat(16, axis=0),
        photometric="ycbcr",
        subsampling=(1, 1),
        compression="adobe_deflate",
        metadata=None,
    )
    change_tags(
        tmp_path / "x.tif", ReferenceBlackWhite=(16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1)
    )
    black, white, red = pixels_of(tmp_path / "x.tif")[0].astype(int)
    assert black.tolist() == [0, 0, 0]
    assert white.tolist() == [255, 255, 255]
    assert np.abs(red - [255, 0, 0]).max() <= 2


def test_associated_alpha_lies_over_white(tmp_path):
    """Half a red, multiplied by its alpha already, is a light red."""
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[:, :16] = [128, 0, 0, 128]
    tifffile.imwrite(
        tmp_path / "x.tif", rgba, photometric="rgb", extrasamples=["assocalpha"], tile=(16, 16)
    )
    pixels = pixels_of(tmp_path / "x.tif")
    assert pixels[0, 0].tolist() == [255, 127, 127]
    assert pixels[0, 31].tolist() == [255, 255, 255]


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_planes_that_lie_apart(tmp_path, tile):
    rgb = picture(192, 128)
    tifffile.imwrite(
        tmp_path / "x.ome.tif", np.moveaxis(rgb, -1, 0), photometric="rgb",
        planarconfig="separate", tile=tile,
        metadata={"axes": "SYX", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm",
                  "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"},
    )  # fmt: skip
    with open_slide(tmp_path / "x.ome.tif") as slide:
        assert slide.mpp == (0.25, 0.25)
        np.testing.assert_array_equal(slide.read(0, 0, 192, 128), rgb)
        np.testing.assert_array_equal(slide.read(50, 60, 70, 50), rgb[60:110, 50:120])


@pytest.mark.parametrize("tile", [None, (32, 32)])
@pytest.mark.parametrize("shape", [(1, 96, 128, 3), (1, 1, 1, 96, 128, 3)])
def test_leading_axes_of_length_one(tmp_path, shape, tile):
    rgb = picture(128, 96)
    tifffile.imwrite(tmp_path / "x.tif", rgb.reshape(shape), photometric="rgb", tile=tile)
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.tif"), rgb)


@pytest.mark.parametrize("tile", [None, (32, 32)])
def test_three_grey_planes_are_rgb_if_the_file_says_so(tmp_path, tile):
    rgb = picture(128, 96)
    planes = np.moveaxis(rgb, -1, 0)
    tifffile.imwrite(
        tmp_path / "named.ome.tif", planes, photometric="minisblack", tile=tile,
        metadata={"axes": "CYX", "Channel": {"Name": ["Red", "Green", "Blue"]}},
    )  # fmt: skip
    np.testing.assert_array_equal(pixels_of(tmp_path / "named.ome.tif"), rgb)
    for names in (["DAPI", "FITC", "Cy3"], ["Blue", "Green", "Red"], None):
        metadata = {"axes": "CYX", **({"Channel": {"Name": names}} if names else {})}
        tifffile.imwrite(
            tmp_path / "x.ome.tif", planes, photometric="minisblack", tile=tile, metadata=metadata
        )
        with pytest.raises(SlideError, match="three grey planes") as caught:
            open_slide(tmp_path / "x.ome.tif")
        assert "Red, Green and Blue" in caught.value.hint


def test_imagej_stack_of_red_green_and_blue(tmp_path):
    rgb = picture(128, 96)
    tifffile.imwrite(
        tmp_path / "x.tif",
        np.moveaxis(rgb, -1, 0),
        imagej=True,
        metadata={"axes": "CYX", "Labels": ["Red", "Green", "Blue"]},
    )
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.tif"), rgb)


def test_a_pixel_of_three_grey_samples_is_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "x.tif", picture(64, 48), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(SlideError, match="three grey planes"):
        open_slide(tmp_path / "x.tif")


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000"])
def test_a_tile_whose_end_is_zeros_is_damaged(tmp_path, compression):
    path = tmp_path / "a.tif"
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    tifffile.imwrite(path, noise, tile=(256, 256), photometric="rgb", compression=compression)
    with tifffile.TiffFile(path) as tiff:
        (offset,), (size,) = tiff.pages[0].dataoffsets, tiff.pages[0].databytecounts
    content = bytearray(path.read_bytes())
    content[offset + size // 2 : offset + size] = bytes(size - size // 2)
    with open_slide(path) as slide:
        slide.read(0, 0, 64, 64)
    path.write_bytes(content)
    with open_slide(path) as slide, pytest.raises(SlideError, match="zeros are in its place"):
        slide.read(0, 0, 64, 64)


def test_a_jpeg_whose_end_is_zeros_is_damaged(tmp_path):
    path = tmp_path / "a.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content + bytes(100))  # padding is no damage
    open_slide(path).close()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) // 2))
    with pytest.raises(SlideError, match="zeros are in the place of its end"):
        open_slide(path)


def _write_grey_of_4_bit(path):
    Image.fromarray(picture(64, 48)[..., 0]).quantize(16).save(path)
    change_tags(path, PhotometricInterpretation=1, BitsPerSample=4)


def _write_with_compression(number):
    def write(path):
        tifffile.imwrite(path, picture(64, 48), photometric="rgb", compression="jpeg")
        change_tags(path, Compression=number)

    return write


def _write_jpeg_2000_in_ycbcr(path):
    encoded = imagecodecs.jpeg2k_encode(picture(64, 48), codecformat="J2K")
    tifffile.imwrite(
        path, iter([encoded]), shape=(48, 64, 3), dtype=np.uint8, photometric="rgb",
        compression=34712, metadata=None, rowsperstrip=48,
    )  # fmt: skip
    change_tags(path, PhotometricInterpretation=6)


def _write_fluorescence(path):
    tifffile.imwrite(
        path, picture(64, 48)[..., 0], photometric="minisblack",
        metadata={"axes": "YX", "Channel": {"Name": "DAPI", "EmissionWavelength": 461,
                                            "EmissionWavelengthUnit": "nm"}},
    )  # fmt: skip


def _write_cmyk(path):
    tifffile.imwrite(path, np.zeros((48, 64, 4), np.uint8), photometric="separated")


def _write_stack(path):
    tifffile.imwrite(path, np.stack([picture(64, 48, seed) for seed in (1, 2, 3)]))


def _write_unexplained_jpeg_2000(path):
    """Bio-Formats' number for RGB is Aperio's for YCbCr: without either's name it is unknown."""
    encoded = imagecodecs.jpeg2k_encode(picture(64, 64), codecformat="J2K")
    tifffile.imwrite(
        path, iter([encoded]), shape=(64, 64, 3), dtype=np.uint8, photometric="rgb",
        compression=33003, metadata=None, tile=(64, 64),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.tif", _write_grey_of_4_bit, "4 bit"),
        ("x.tif", _write_with_compression(6), "old-style JPEG"),
        ("x.tif", _write_with_compression(34887), "compressed as LERC, which is not supported"),
        ("x.tif", _write_jpeg_2000_in_ycbcr, "YCBCR with 3 samples, compressed as JPEG2000"),
        ("x.tif", _write_unexplained_jpeg_2000, "compressed as APERIO_JP2000_YCBC"),
        ("x.ome.tif", _write_fluorescence, "is a fluorescence image"),
        ("x.tif", _write_cmyk, "is a CMYK image"),
        ("x.tif", _write_stack, "axes QYXS"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(SlideError, match=message) as caught:
        open_slide(tmp_path / name)
    assert str(tmp_path / name) in caught.value.what
    assert caught.value.hint


def test_jpeg_2000_of_bio_formats_is_rgb(tmp_path):
    rgb = picture(128, 128)
    tiles = [
        imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(rgb[y : y + 64, x : x + 64]), level=0, codecformat="J2K"
        )
        for y in (0, 64)
        for x in (0, 64)
    ]
    tifffile.imwrite(
        tmp_path / "x.ome.tif", iter(tiles), shape=rgb.shape, dtype=np.uint8, photometric="rgb",
        compression=33003, tile=(64, 64), metadata={"axes": "YXS"},
    )  # fmt: skip
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.ome.tif"), rgb)


# --- metadata ----------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [(1, 0), (0, 0), (0, 1)])
def test_a_resolution_that_is_no_number_is_not_known(tmp_path, resolution):
    path = write_pyramid(tmp_path / "x.tif", [picture(128, 96)])
    change_tags(path, XResolution=resolution, YResolution=resolution)
    with open_slide(path) as slide:
        assert slide.mpp is None
        np.testing.assert_array_equal(slide.read(0, 0, 128, 96), picture(128, 96))


def test_odd_tags_do_not_condemn_the_pixels(tmp_path):
    path = write_pyramid(tmp_path / "x.tif", [picture(128, 96)], software="x" * 40)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages.first.tags
        tags["ResolutionUnit"].overwrite((7,))
        tags["XResolution"].overwrite((4, 5), dtype="H")
    with open_slide(path) as slide:
        assert slide.mpp is None
        np.testing.assert_array_equal(slide.read(0, 0, 128, 96), picture(128, 96))


@pytest.mark.parametrize("text", ["Aperio", "Aperio Image\n|MPP|AppMag = ", "Aperio \n|=|=|"])
def test_a_broken_aperio_description_does_not_condemn_the_pixels(tmp_path, text):
    path = write_pyramid(
        tmp_path / "x.svs", [picture(128, 96)], description=text, resolutionunit="NONE"
    )
    with open_slide(path) as slide:
        assert slide.mpp is None
        np.testing.assert_array_equal(slide.read(0, 0, 128, 96), picture(128, 96))


def test_broken_ome_xml_is_reported_and_not_used(tmp_path, caplog):
    rgb = picture(128, 96)
    tifffile.imwrite(
        tmp_path / "x.ome.tif", rgb, photometric="rgb", tile=(32, 32), metadata=None,
        description='<?xml version="1.0"?><OME xmlns="x"><Imag</OME>',
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(pixels_of(tmp_path / "x.ome.tif"), rgb)
    assert [record.message for record in caplog.records if "damaged" in record.message]
    assert all(record.name.startswith("qpnuclei") for record in caplog.records)


#: 0.25 µm/px in the tags.
TAGGED = {"photometric": "rgb", "resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}


def ome(**pixels):
    """An OME-XML whose pixels have some attributes."""
    more = " ".join(f'{name}="{value}"' for name, value in pixels.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?><!-- Warning: this comment is an OME-XML metadata '
        'block --><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="64" '
        f'SizeY="48" SizeC="3" SizeZ="1" SizeT="1" {more}><Channel ID="Channel:0:0" '
        'SamplesPerPixel="3"/><TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )


@pytest.mark.parametrize(
    ("description", "stated"),
    [
        (ome(PhysicalSizeX=0, PhysicalSizeY=0), "PhysicalSizeX = 0 µm, PhysicalSizeY = 0 µm"),
        (ome(PhysicalSizeX=1, PhysicalSizeXUnit="furlong"), "PhysicalSizeX = 1 furlong"),
        (ome(PhysicalSizeX=1, PhysicalSizeXUnit="pixel"), "PhysicalSizeX = 1 pixel"),
        (ome(PhysicalSizeX=0.25), "PhysicalSizeX = 0.25 µm"),
        (ome().replace("<Channel", "<Chann<"), "its OME-XML is damaged"),
        (ome()[:-30], "its OME-XML is damaged"),
        (ome()[:90], "its OME-XML is damaged"),
        ("Aperio Image Library v11 \n64x48|MPP = 0|AppMag = 20", "states MPP = 0"),
    ],
)
def test_the_resolution_tags_do_not_replace_a_size_that_is_unusable(
    tmp_path, caplog, description, stated
):
    path = tmp_path / "x.tif"
    rgb = picture(64, 48)
    tifffile.imwrite(path, rgb, metadata=None, description=description.encode(), **TAGGED)
    with open_slide(path) as slide:
        assert slide.mpp is None
        np.testing.assert_array_equal(slide.read(0, 0, 64, 48), rgb)
    (message,) = (r.message for r in caplog.records if "unknown" in r.message)
    assert f"{path}: its pixel size is unknown: " in message
    assert f"{stated}; 0.25 x 0.25 µm/px of its TIFF resolution are not used" in message
    damage = [r.message for r in caplog.records if "is damaged and not used" in r.message]
    assert len(damage) == ("damaged" in stated)


@pytest.mark.parametrize(
    "description",
    [ome(), f"{ome()}{' ' * 20}", "Aperio Image Library v11 \n64x48|AppMag = 20", "of a converter"],
)
def test_the_resolution_tags_are_used_if_no_size_is_stated(tmp_path, caplog, description):
    tifffile.imwrite(
        tmp_path / "x.tif", picture(64, 48), metadata=None, description=description.encode(),
        **TAGGED,
    )  # fmt: skip
    with open_slide(tmp_path / "x.tif") as slide:
        assert slide.mpp == pytest.approx((0.25, 0.25))
    assert caplog.text == ""


def test_ome_xml_before_spaces_is_read(tmp_path):
    description = ome(PhysicalSizeX=500, PhysicalSizeXUnit="nm", PhysicalSizeY=0.5) + " " * 20
    tifffile.imwrite(
        tmp_path / "x.tif", picture(64, 48), metadata=None, description=description.encode(),
        **TAGGED,
    )  # fmt: skip
    with open_slide(tmp_path / "x.tif") as slide:
        assert slide.mpp == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("unit", ["furlong", "pixel"])
def test_an_unknown_unit_of_imagej_is_reported(tmp_path, caplog, unit):
    tifffile.imwrite(
        tmp_path / "x.tif", picture(64, 48), imagej=True, resolution=(4, 4),
        metadata={"unit": unit, "axes": "YXS"},
    )  # fmt: skip
    change_tags(tmp_path / "x.tif", ResolutionUnit=3)
    with open_slide(tmp_path / "x.tif") as slide:
        assert slide.mpp is None
    assert f"its unit in ImageJ is {unit}; 2500 x 2500 µm/px of its TIFF reso" in caplog.text


@pytest.mark.parametrize(
    ("metadata", "mpp", "magnification"),
    [
        ("AppMag = 20|MPP = 0,4990", 0.499, 20),
        ("AppMag = 40|MPP = 0.2500", 0.25, 40),
        ("AppMag = ?|MPP = unknown", None, None),
        ("MPP = 0", None, None),
    ],
)
def test_aperio_metadata(tmp_path, metadata, mpp, magnification):
    write_pyramid(
        tmp_path / "x.svs",
        [picture(128, 96)],
        description=f"Aperio Image Library v12.0.15 \n128x96 [0,0 128x96] (64x64)|{metadata}|X = 1",
        resolutionunit="NONE",
        resolution=(1, 1),
    )
    with open_slide(tmp_path / "x.svs") as slide:
        assert slide.vendor == "aperio"
        assert slide.mpp == (None if mpp is None else (mpp, mpp))
        assert slide.magnification == magnification


@pytest.mark.parametrize(
    ("unit", "um"),
    [("um", 1), ("micron", 1), ("microns", 1), ("\\u00B5m", 1), ("mm", 1000), ("inch", 25400),
     ("nm", 0.001), ("pixel", None), ("furlong", None)],
)  # fmt: skip
def test_units_of_imagej(tmp_path, unit, um):
    tifffile.imwrite(
        tmp_path / "x.tif",
        picture(64, 48),
        imagej=True,
        resolution=(4, 5),
        metadata={"unit": unit, "axes": "YXS"},
    )
    with open_slide(tmp_path / "x.tif") as slide:
        assert slide.mpp == (None if um is None else pytest.approx((um / 4, um / 5)))


@pytest.mark.parametrize(
    ("unit", "size", "um"),
    [("m", "2.5e-7", 0.25), ("in", "0.00001", 0.254), ("\u03bcm", "0.25", 0.25),
     ("\u00b5m", "0,25", 0.25), ("nm", "250", 0.25), ("Å", "2500", 0.25), (None, "0.25", 0.25),
     ("pixel", "1", None), ("reference frame", "1", None), ("µm", "0", None), ("µm", "?", None)],
)  # fmt: skip
def test_units_of_ome(tmp_path, unit, size, um):
    unit_of = "".join(
        f' PhysicalSize{axis}="{size}"' + (f' PhysicalSize{axis}Unit="{unit}"' if unit else "")
        for axis in "XY"
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="40"/>'
        '</Instrument><Image ID="Image:0"><ObjectiveSettings ID="Objective:0"/>'
        '<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SizeX="64" SizeY="48" SizeC="3"'
        f' SizeZ="1" SizeT="1"{unit_of}><Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        '<TiffData IFD="0" PlaneCount="1"/></Pixels></Image></OME>'
    )
    tifffile.imwrite(
        tmp_path / "x.ome.tif", picture(64, 48), photometric="rgb", metadata=None,
        description=xml.encode(),
    )  # fmt: skip
    with open_slide(tmp_path / "x.ome.tif") as slide:
        assert slide.mpp == (None if um is None else pytest.approx((um, um)))
        assert slide.magnification == 40


# --- levels ------------------------------------------------------------------------------------


def tissue(width, height, seed):
    """Blobs on white, as sharp as nuclei: levels of it differ as those of real slides do."""
    random = np.random.default_rng(seed)
    small = random.integers(90, 256, (height // 8, width // 8, 3), np.uint8)
    large = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(large.astype(int) + random.integers(-15, 16, large.shape), 0, 255).astype(
        np.uint8
    )


@pytest.mark.parametrize("how", ["mean", "nearest", "jpeg", "nearest of the odd pixels"])
def test_levels_are_kept_however_they_were_made(tmp_path, how, caplog):
    full = tissue(1032, 776, 1)
    step = {"nearest": slice(0, None, 2), "nearest of the odd pixels": slice(1, None, 2)}.get(how)
    levels = [full]
    for _ in range(3):
        last = levels[-1]
        levels.append(reduced(last, 2) if step is None else last[step, step])
    options = {"compression": "jpeg", "compressionargs": {"level": 60}} if how == "jpeg" else {}
    write_pyramid(tmp_path / "x.tif", levels, **options)
    with open_slide(tmp_path / "x.tif") as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 4, 8]
    assert caplog.text == ""


@pytest.mark.parametrize("subfiletype", [0, 1])
def test_an_unrelated_page_of_half_the_size_is_no_level(tmp_path, subfiletype, caplog):
    full, other = tissue(512, 384, 1), tissue(256, 192, 2)
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        for page, kind in ((full, 0), (other, subfiletype)):
            tiff.write(page, subfiletype=kind, photometric="rgb", tile=(64, 64), metadata=None)
    with open_slide(tmp_path / "x.tif") as slide:
        assert len(slide.levels) == 1
        halved = slide.read(0, 0, 256, 192, (2, 2)).astype(int)
    assert np.abs(halved - reduced(full, 2)).max() <= 1
    assert (
        "page of 256 x 192 px is not used: it is not a level of the slide (it shows something else)"
        in caplog.text
    )


@pytest.mark.parametrize("metadata", [None, {}])
def test_other_images_of_a_file_are_named_and_not_used(tmp_path, metadata, caplog):
    first = picture(256, 192)
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        for page in (first, picture(200, 100), picture(90, 40)):
            tiff.write(page, photometric="rgb", metadata=metadata)
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.tif"), first)
    expected = "x.tif: only its first image is used; it has more: 200 x 100 px, 90 x 40 px"
    assert expected in caplog.text


@pytest.mark.parametrize("kind", ["aperio", "reduced", "mask", "named", "ome"])
def test_labels_overviews_and_series_of_ome_are_not_reported(tmp_path, kind, caplog):
    full, other = picture(256, 192), picture(100, 90)
    description = "Aperio Image Library v11 \n256x192|MPP = 0.25" if kind == "aperio" else None
    metadata = [{"Name": "tissue"}, {"Name": "other"}] if kind == "ome" else [None, None]
    if kind == "named":
        metadata = [{}, {"name": "Label"}]
    with tifffile.TiffWriter(tmp_path / "x.tif", ome=kind == "ome") as tiff:
        tiff.write(
            full, photometric="rgb", tile=(64, 64), metadata=metadata[0], description=description
        )
        if kind == "mask":
            tiff.write(other[..., 0] > 99, subfiletype=4, metadata=None)
        else:
            flag = int(kind == "reduced")
            tiff.write(other, photometric="rgb", metadata=metadata[1], subfiletype=flag)
    with tifffile.TiffFile(tmp_path / "x.tif") as tiff:
        assert len(tiff.series) == 2
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.tif"), full)
    assert caplog.text == ""


def test_pages_are_compared_again_only_if_the_file_has_changed(tmp_path, monkeypatch):
    full = tissue(512, 384, 1)
    compared = []
    compare = levels_module._difference
    monkeypatch.setattr(
        levels_module,
        "_difference",
        lambda *pages: compared.append(pages) or compare(*pages),
    )
    for second, kept in ((reduced(full, 2), [1, 2]), (tissue(256, 192, 2), [1])):
        write_pyramid(tmp_path / "x.tif", [full, second])
        before = len(compared)
        for _ in range(3):
            with open_slide(tmp_path / "x.tif") as slide:
                assert [level.downsample for level in slide.levels] == kept
        assert len(compared) == before + 1


def test_a_level_after_a_wrong_one_is_kept(tmp_path):
    full = tissue(512, 384, 1)
    write_pyramid(tmp_path / "x.tif", [full, tissue(256, 192, 2), reduced(full, 4)])
    with open_slide(tmp_path / "x.tif") as slide:
        assert [level.downsample for level in slide.levels] == [1, 4]


def test_a_tile_that_cannot_be_decoded_costs_only_its_place(tmp_path):
    full = tissue(512, 384, 1)
    path = write_pyramid(tmp_path / "x.tif", [full, reduced(full, 2)], compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.dataoffsets[9]  # one of those that are compared
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = b"\0" * 40
    path.write_bytes(data)
    with open_slide(path) as slide:
        assert len(slide.levels) == 2
        np.testing.assert_array_equal(slide.read(0, 0, 64, 64), full[:64, :64])
        with pytest.raises(SlideError, match="cannot be decoded"):
            slide.read(64, 64, 64, 64)


# --- series ------------------------------------------------------------------------------------


def test_the_series_that_is_asked_for(tmp_path):
    first, second = picture(256, 192, 1), picture(192, 128, 2)
    path = write_ome(tmp_path / "x.ome.tif", (first, "scene 1", 0.25), (second, "scene 2", 0.5))
    for series, pixels, mpp in ((None, first, 0.25), (0, first, 0.25), (1, second, 0.5)):
        np.testing.assert_array_equal(pixels_of(path, series=series), pixels)
        with open_slide(path, series=series) as slide:
            assert slide.mpp == (mpp, mpp)
    with pytest.raises(SlideError, match=r"series 2 of .* cannot be read: it has 2"):
        open_slide(path, series=2)


@pytest.mark.parametrize(
    ("first", "size"), [("label", (256, 192)), ("label image", (64, 64)), ("scene 1", (64, 64))]
)
def test_a_label_or_a_part_as_first_series_is_refused(tmp_path, first, size):
    slide = picture(256, 192, 1)
    path = write_ome(
        tmp_path / "x.ome.tif", (picture(*size, 2), first, 1.0), (slide, "slide", 0.25)
    )
    with pytest.raises(SlideError, match=r"the first .* is a label, an overview or a part"):
        open_slide(path)
    np.testing.assert_array_equal(pixels_of(path, series=1), slide)


@pytest.mark.parametrize("empty", [0, 1])
def test_images_of_ome_without_pixels_keep_their_number(tmp_path, empty):
    sizes = [(320, 192), (256, 192), (192, 128)]
    pictures = [picture(*size, seed) for seed, size in enumerate(sizes)]
    path = write_ome(
        tmp_path / "x.ome.tif",
        *zip(pictures, ("scene 0", "scene 1", "scene 2"), (0.25, 0.5, 1.0), strict=True),
    )
    edit_ome(path, lambda xml: without_planes(xml, empty))
    first = 1 - empty
    for series, number in ((None, first), (first, first), (2, 2)):
        with open_slide(path, series=series) as slide:
            assert slide.mpp == ((0.25, 0.5, 1.0)[number],) * 2
            np.testing.assert_array_equal(slide.read(0, 0, *sizes[number]), pictures[number])
    with pytest.raises(SlideError, match=rf"series {empty} of .* the file has no pixels of it"):
        open_slide(path, series=empty)
    with pytest.raises(SlideError, match=r"series 3 of .* cannot be read: it has 3"):
        open_slide(path, series=3)


def test_names_and_channels_are_those_of_the_image_with_pixels(tmp_path):
    label, grey, slide = picture(64, 64, 1), picture(128, 64, 2)[..., 0], picture(256, 192, 3)
    fluorescent = {"axes": "YX", "Channel": {"Fluor": "DAPI"}}
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as tiff:
        for pixels, photometric, more in (
            (picture(32, 32), "rgb", {"Name": "reduced"}),
            (label, "rgb", {"Name": "label"}),
            (grey, "minisblack", fluorescent),
            (slide, "rgb", {"Name": "slide"}),
        ):
            tiff.write(
                pixels, photometric=photometric, tile=(64, 64), metadata={"axes": "YXS", **more}
            )
    edit_ome(tmp_path / "x.ome.tif", lambda xml: without_planes(xml, 0))
    with pytest.raises(SlideError, match=r"64x64 px\) is a label.*series 3 has 256x192 px"):
        open_slide(tmp_path / "x.ome.tif")
    with pytest.raises(SlideError, match="is a fluorescence image"):
        open_slide(tmp_path / "x.ome.tif", series=2)
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.ome.tif", series=3), slide)


@pytest.mark.parametrize("count", [1, 2])
def test_ome_xml_of_another_size_is_refused(tmp_path, count):
    images = [(picture(128 - 32 * i, 64, i), f"scene {i}", 0.25) for i in range(count)]
    path = write_ome(tmp_path / "x.ome.tif", *images)
    edit_ome(path, lambda xml: xml.replace('SizeX="128"', 'SizeX="256"'))
    with pytest.raises(SlideError, match=r"it describes 256x64 px.*, but the file has .*64 px"):
        open_slide(path)


def test_a_label_before_the_slide_in_a_plain_tiff_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as tiff:
        for pixels in (picture(64, 64), picture(256, 192)):
            tiff.write(pixels, photometric="rgb", tile=(64, 64), metadata=None)
    with pytest.raises(SlideError, match=r"64x64 px\) is a label.*series 1 has 256x192 px"):
        open_slide(tmp_path / "x.tif")
    with pytest.raises(SlideError, match="only OME-TIFFs have numbered series"):
        open_slide(tmp_path / "x.tif", series=1)


def test_files_that_ome_xml_names_are_not_opened(tmp_path):
    write_ome(tmp_path / "x.ome.tif", (picture(64, 64), "a", 1.0))
    with tifffile.TiffFile(tmp_path / "x.ome.tif") as tiff:
        xml = tiff.ome_metadata
    parts = "".join(
        f'<TiffData FirstC="{c}" IFD="0"><UUID FileName="{c}.tif">urn:uuid:{c}</UUID></TiffData>'
        for c in range(2)
    )
    start, end = xml.index("<TiffData"), xml.index("</Pixels>")
    tifffile.imwrite(
        tmp_path / "y.ome.tif", picture(64, 64), photometric="rgb", metadata=None,
        description=(xml[:start] + parts + xml[end:]).encode(),
    )  # fmt: skip
    with pytest.raises(SlideError, match="an OME-TIFF in several files"):
        open_slide(tmp_path / "y.ome.tif")


# --- absurd headers ----------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [None, (64, 64)])
@pytest.mark.parametrize("side", [100_000, 2_000_000_000])
def test_a_size_that_the_file_cannot_hold_is_refused(tmp_path, tile, side):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, picture(128, 128), photometric="rgb", tile=tile, metadata=None)
    change_tags(path, ImageWidth=side, ImageLength=side)
    with pytest.raises(SlideError, match=r"damaged|truncated|too large"):
        pixels_of(path)


def test_an_absurdly_large_tile_is_refused(tmp_path):
    path = write_pyramid(tmp_path / "x.tif", [picture(128, 128)], tile=(128, 128))
    change_tags(path, TileWidth=1_000_000, TileLength=1_000_000)
    with pytest.raises(SlideError, match="too large to decode"):
        open_slide(path)


def test_a_tile_that_is_a_huge_jpeg_is_not_decoded(tmp_path):
    path = write_pyramid(
        tmp_path / "x.tif", [picture(128, 128)], tile=(128, 128), compression="jpeg"
    )
    data = bytearray(path.read_bytes())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (65_000).to_bytes(2, "big") * 2
    path.write_bytes(data)
    with open_slide(path) as slide, pytest.raises(SlideError, match="too many pixels to"):
        slide.read(0, 0, 10, 10)


# --- the development data ----------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "size", "mpp"),
    [
        ("aperio33003.svs", (1800, 1536), 0.25),
        ("aperio33005.svs", (1800, 1536), 0.25),
        ("ycbcr_deflate.tif", (1024, 768), 0.25),
        ("philips_nomanufacturer.tiff", (2048, 1536), 0.25),
        ("mpp_zero_den.tif", (1024, 768), None),
        ("ome_badxml.ome.tif", (1024, 768), None),
        ("svs_comma.svs", (1024, 768), 0.499),
        ("ij_microns.tif", (1024, 768), 0.25),
        ("ome_planar.ome.tif", (1024, 768), 0.25),
        ("page2_unrelated_half.tif", (1024, 768), 0.25),
    ],
)
def test_odd_slides_are_read(name, size, mpp):
    """Those of one size are the same picture."""
    with open_slide(ODD / name) as slide, open_slide(ODD / "mpp_zero_den.tif") as reference:
        assert (slide.width, slide.height) == size
        assert slide.mpp == (None if mpp is None else pytest.approx((mpp, mpp), rel=1e-6))
        ours = slide.read(0, 0, 1024, 768).astype(int)
        difference = np.abs(ours - reference.read(0, 0, 1024, 768).astype(int))
    assert size != (1024, 768) or difference.mean() < 4


@pytest.mark.shared
def test_the_odd_slides_against_other_readers():
    with open_slide(ODD / "aperio33003.svs") as a, open_slide(ODD / "aperio33005.svs") as b:
        twins = [slide.read(0, 0, 1800, 1536).astype(int) for slide in (a, b)]
    assert np.abs(twins[0] - twins[1]).max() <= 3
    with openslide.OpenSlide(ODD / "ycbcr_deflate.tif") as other:
        theirs = np.asarray(other.read_region((0, 0), 0, (1024, 768)))[..., :3].astype(int)
    assert np.abs(pixels_of(ODD / "ycbcr_deflate.tif").astype(int) - theirs).max() <= 2
    with open_slide(ODD / "page2_unrelated_half.tif") as slide:
        assert len(slide.levels) == 1


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ome_cyx3.ome.tif", "three grey planes"),
        ("minisblack3.tif", "three grey planes"),
        ("Image_01.vsi", "Olympus VSI"),
        ("ojpeg-tile.tif", "old-style JPEG"),
    ],
)
def test_odd_slides_that_are_refused_by_name(name, message):
    with pytest.raises(SlideError, match=message):
        open_slide(ODD / name)


@pytest.mark.parametrize("tags", [
    {278: 1, 273: 300, 279: 100},
    {278: 2_000_000_000, 273: 300, 279: 100},
    {278: 1, 273: 300},
    {322: 256, 323: 256, 324: 300, 325: 100},
    {322: 2_000_000_000, 323: 2_000_000_000, 324: 300, 325: 100},
])  # fmt: skip
def test_an_absurd_size_is_refused_before_memory_is_asked_for(tmp_path, tags):
    tags = {256: 2_000_000_000, 257: 2_000_000_000, 258: 8, 259: 1, 262: 1, 277: 1, **tags}
    entries = [struct.pack("<HHQQ", tag, 16, 1, value) for tag, value in sorted(tags.items())]
    header = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(entries))
    path = tmp_path / "absurd.tif"
    path.write_bytes(header + b"".join(entries) + bytes(10_000))
    tracemalloc.start()
    try:
        with pytest.raises(SlideError, match=r"absurd\.tif (is|has) "):
            open_slide(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
