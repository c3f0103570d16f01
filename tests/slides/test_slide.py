"""Opening slides of many kinds, and reading regions of them."""

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from qpnuclei.errors import NotFoundError, SlideError
from qpnuclei.slides.slide import ImageInMemory, Slide, open_slide
from tests.paths import SHARED
from tests.slides.pictures import picture, reduced, write_pyramid

SLIDES = SHARED / "data" / "slides"


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """1003 x 601 px with levels 250 x 150 and 62 x 37: neither divides the size."""
    full = picture(1003, 601)
    path = tmp_path_factory.mktemp("slides") / "pyramid.tif"
    return full, write_pyramid(path, [full, reduced(full, 4), reduced(full, 16)])


# --- regions -----------------------------------------------------------------------------------


def test_size_levels_and_pixel_size(pyramid):
    with open_slide(pyramid[1]) as slide:
        assert (slide.width, slide.height) == (1003, 601)
        assert slide.mpp == (0.5, 0.5)
        # 1003 / 250 would be 4.012.
        assert [level.downsample for level in slide.levels] == [1.0, 4.0, 16.0]
        assert [(level.width, level.height) for level in slide.levels] == [
            (1003, 601),
            (250, 150),
            (62, 37),
        ]


def test_full_resolution_is_the_file(pyramid):
    full, path = pyramid
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(17, 33, 200, 100), full[33:133, 17:217])


@pytest.mark.parametrize("scale", [(1.0, 1.0), (2.0, 2.0), (1.7, 3.1), (0.5, 0.5)])
def test_an_image_in_memory_is_read_as_its_file(tmp_path, scale):
    full = picture(91, 73)
    Image.fromarray(full).save(tmp_path / "slide.png")
    region = (-30, -20, 300, 250)
    with open_slide(tmp_path / "slide.png") as slide:
        expected = slide.read(*region, scale)
    np.testing.assert_array_equal(ImageInMemory(full, (0.5, 0.5)).read(*region, scale), expected)


def test_beyond_the_slide_is_white(pyramid):
    full, path = pyramid
    with open_slide(path) as slide:
        region = slide.read(-10, 590, 30, 30)
        np.testing.assert_array_equal(region[:11, 10:], full[590:601, :20])
        assert (region[:, :10] == 255).all()
        assert (region[11:] == 255).all()
        assert (slide.read(5000, 5000, 8, 8) == 255).all()
        assert slide.read(0, 0, 0, 5).shape == (5, 0, 3)


@pytest.mark.parametrize("factor", [4, 16])
def test_levels_are_not_shifted(pyramid, factor):
    """Read from a level or reduced from level 0: the same picture, to its far corner."""
    full, path = pyramid
    with open_slide(path) as slide:
        width, height = 1003 // factor, 601 // factor
        from_level = slide.read(0, 0, width, height, (factor, factor)).astype(int)
    # Rounding of the level's own values, at most once per level.
    assert np.abs(from_level - reduced(full, factor).astype(int)).max() <= 1


def test_a_scale_between_two_levels_is_reduced_from_the_finer_one(pyramid):
    full, path = pyramid
    with open_slide(path) as slide:
        got = slide.read(0, 0, 41, 24, (24, 24)).astype(int)
    # One and a half pixels of the level of 16, each blown up to the area it stands for.
    coarse = reduced(full, 16).repeat(16, axis=0).repeat(16, axis=1)
    assert np.abs(got - reduced(coarse, 24)[:24, :41].astype(int)).max() <= 1


def test_levels_of_uneven_downsample_are_not_shifted(tmp_path):
    """A level of 401 x 241 px to a slide of 1003 x 601 px: 2.501 in x, 2.494 in y."""
    full = picture(1003, 601)
    with open_slide(_png(tmp_path / "full.png", full)) as plain:
        level = plain.read(0, 0, 401, 241, (1003 / 401, 601 / 241))
    path = write_pyramid(tmp_path / "uneven.tif", [full, level])
    with open_slide(path) as slide:
        got = slide.read(0, 0, 200, 120, (5, 5)).astype(float)
    assert np.abs(got - reduced(full, 5)[:120, :200]).max() < 4


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    scale=st.one_of(
        st.sampled_from([(1.0, 1.0), (0.5, 0.5), (2.0, 2.0), (4.0, 4.0)]),
        st.tuples(st.floats(0.4, 20), st.floats(0.4, 20)),
    ),
    x=st.integers(-20, 60),
    y=st.integers(-20, 60),
    width=st.integers(1, 50),
    height=st.integers(1, 50),
)
def test_a_pixel_does_not_depend_on_the_region(pyramid, scale, x, y, width, height):
    with open_slide(pyramid[1]) as slide:
        whole = slide.read(-20, -20, 140, 140, scale)
        part = slide.read(x, y, width, height, scale)
    np.testing.assert_array_equal(part, whole[y + 20 : y + 20 + height, x + 20 : x + 20 + width])


def test_large_regions_are_read_in_parts(pyramid, monkeypatch):
    with open_slide(pyramid[1]) as slide:
        whole = slide.read(-5, -5, 300, 200, (3.3, 3.1))
        monkeypatch.setattr("qpnuclei.slides.slide._MAX_SOURCE_PIXELS", 20_000)
        np.testing.assert_array_equal(slide.read(-5, -5, 300, 200, (3.3, 3.1)), whole)


def test_thumbnail_covers_the_slide(pyramid):
    with open_slide(pyramid[1]) as slide:
        assert slide.thumbnail(100, 100).shape == (60, 100, 3)
        assert slide.thumbnail(5000, 5000).shape == (601, 1003, 3)  # never enlarged


def test_a_slide_can_be_pickled_and_read_by_threads(pyramid):
    with open_slide(pyramid[1]) as slide, pickle.loads(pickle.dumps(slide)) as other:
        expected = slide.read(0, 0, 90, 80, (2, 2))
        with ThreadPoolExecutor(4) as pool:
            regions = list(pool.map(lambda _: other.read(0, 0, 90, 80, (2, 2)), range(8)))
    for region in regions:
        np.testing.assert_array_equal(region, expected)


def test_nonsense_is_refused(pyramid):
    with open_slide(pyramid[1]) as slide:
        with pytest.raises(ValueError, match="-1 x 5"):
            slide.read(0, 0, -1, 5)
        with pytest.raises(ValueError, match="must be positive"):
            slide.read(0, 0, 5, 5, (0, 1))


class InMemory:
    """A source with bounds: real ones (MIRAX) are gigabytes."""

    vendor = "mirax"
    mpp = (0.25, 0.25)
    magnification = icc_profile = series = None
    samples = 3
    unused_sizes = ()

    def __init__(self, levels, bounds):
        self._levels, self.bounds = levels, bounds
        self.sizes = [(level.shape[1], level.shape[0]) for level in levels]

    def read(self, level, x, y, width, height):
        return self._levels[level][y : y + height, x : x + width]

    def close(self):
        pass


@pytest.mark.parametrize("scale", [1, 4])
def test_cropping_to_the_bounds_moves_the_origin(scale):
    full = picture(640, 480)
    source = InMemory([full, reduced(full, 4)], (101, 50, 400, 300))
    slide = Slide(Path("x.mrxs"), source, crop_to_bounds=True)
    assert (slide.width, slide.height) == (400, 300)
    cropped = full[50:350, 101:501]
    region = slide.read(0, 0, 400 // scale, 300 // scale, (scale, scale)).astype(int)
    # 101 is no multiple of 4: the level's pixels are cut, and on smooth colours that is little.
    expected = reduced(cropped, scale).astype(int)
    assert np.abs(region - expected).max() <= (0 if scale == 1 else 6)
    assert (slide.read(400, 0, 5, 5) == 255).all()  # tissue beyond the bounds is not shown

    whole = Slide(Path("x.mrxs"), source, crop_to_bounds=False)
    assert (whole.width, whole.height) == (640, 480)


# --- formats -----------------------------------------------------------------------------------


def _png(path, pixels, **options):
    Image.fromarray(pixels, **options).save(path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "deflate"},
        {"compression": "lzw", "rowsperstrip": 16},
        {"tile": (32, 48)},
        {"tile": (64, 64), "compression": "deflate", "predictor": True},
        {"planarconfig": "separate", "volumetric": False},
        {"bigtiff": True},
        {"byteorder": ">"},
    ],
    ids=str,
)
def test_rgb_tiff(tmp_path, options):
    pixels = picture(150, 90)
    file = {k: options.pop(k) for k in ("bigtiff", "byteorder") if k in options}
    stored = np.moveaxis(pixels, -1, 0) if "planarconfig" in options else pixels
    options.pop("volumetric", None)
    with tifffile.TiffWriter(tmp_path / "x.tif", **file) as tiff:
        tiff.write(stored, photometric="rgb", **options)
    with open_slide(tmp_path / "x.tif") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 150, 90), pixels)
        assert slide.mpp is None


def test_grey_and_palette(tmp_path, caplog):
    grey = picture(60, 40)[..., 0]
    tifffile.imwrite(tmp_path / "black.tif", grey, photometric="minisblack")
    tifffile.imwrite(tmp_path / "white.tif", 255 - grey, photometric="miniswhite")
    _png(tmp_path / "grey.png", grey)
    palette = Image.fromarray(picture(60, 40)).quantize(17)
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "palette.tif")
    as_rgb = np.repeat(grey[..., None], 3, axis=2)
    expected = {
        "black.tif": as_rgb,
        "white.tif": as_rgb,
        "grey.png": as_rgb,
        "palette.png": np.asarray(palette.convert("RGB")),
        "palette.tif": np.asarray(palette.convert("RGB")),
    }
    for name, pixels in expected.items():
        with open_slide(tmp_path / name) as slide:
            np.testing.assert_array_equal(slide.read(0, 0, 60, 40), pixels, err_msg=name)
        with open_slide(tmp_path / name):
            said = [r.message for r in caplog.records if f"{name} is grey" in r.message]
        assert len(said) == (0 if "palette" in name else 1)  # each file once


@pytest.mark.parametrize("name", ["x.png", "x.tif", "tiled.tif"])
def test_alpha_lies_over_white(tmp_path, name):
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, 10:20, 3] = 255
    rgba[:, 20:, 3] = 51  # one fifth
    if name.endswith("png"):
        _png(tmp_path / name, rgba)
    else:
        tile = {"tile": (16, 16)} if "tiled" in name else {}
        tifffile.imwrite(
            tmp_path / name, rgba, photometric="rgb", extrasamples=["unassalpha"], **tile
        )
    with open_slide(tmp_path / name) as slide:
        colours = slide.read(0, 0, 32, 1)[0]
    assert colours[0].tolist() == [255, 255, 255]
    assert colours[15].tolist() == [200, 0, 0]
    assert colours[31].tolist() == [244, 204, 204]  # 255 - 55 / 5, 255 * 4 / 5


def test_jpeg_and_bmp(tmp_path):
    pixels = picture(60, 40)
    _png(tmp_path / "x.bmp", pixels)
    Image.fromarray(pixels).save(tmp_path / "x.jpg", quality=95, dpi=(72, 72))
    with open_slide(tmp_path / "x.bmp") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 60, 40), pixels)
    with open_slide(tmp_path / "x.jpg") as slide:
        assert np.abs(slide.read(0, 0, 60, 40).astype(int) - pixels).mean() < 3
        assert slide.mpp is None  # a printer's resolution


@pytest.mark.parametrize(
    ("unit", "um"),
    [("pm", 1e-6), ("Å", 1e-4), ("nm", 1e-3), ("mm", 1e3), ("in", 25_400), ("ft", 304_800)]
    + [(unit, None) for unit in ("Mm", "Pm", "km", "li", "pixel")],
)
def test_every_length_unit_of_ome_is_read_or_the_pixel_size_unknown(tmp_path, unit, um):
    path = tmp_path / "x.ome.tif"
    size = 0.5 / (um or 1)
    sizes = {f"PhysicalSize{axis}": size for axis in "XY"}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    metadata = {"axes": "YXS", **sizes, **units}
    tifffile.imwrite(path, picture(64, 48), photometric="rgb", metadata=metadata)
    with open_slide(path) as slide:
        assert slide.mpp == (None if um is None else pytest.approx((0.5, 0.5)))


def test_pixel_size_of_ome_imagej_and_aperio(tmp_path):
    pixels = picture(64, 48)
    tifffile.imwrite(
        tmp_path / "x.ome.tif",
        pixels,
        photometric="rgb",
        metadata={"axes": "YXS", "PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm",
                  "PhysicalSizeY": 0.26, "PhysicalSizeYUnit": "µm"},
    )  # fmt: skip
    tifffile.imwrite(
        tmp_path / "ij.tif",
        pixels,
        imagej=True,
        resolution=(4, 4),
        metadata={"unit": "um", "axes": "YXS"},
    )
    # Saved again by another program: untiled, but with Aperio's description.
    tifffile.imwrite(
        tmp_path / "aperio.tif",
        pixels,
        photometric="rgb",
        description="Aperio Image Library v11.1.9\r\n64x48 |AppMag = 40|MPP = 0.2488|Left = 1",
        metadata=None,
    )
    with open_slide(tmp_path / "aperio.tif") as slide:
        assert slide.mpp == (0.2488, 0.2488)
    with open_slide(tmp_path / "x.ome.tif") as slide:
        assert slide.mpp == pytest.approx((0.25, 0.26))
    with open_slide(tmp_path / "ij.tif") as slide:
        assert slide.mpp == pytest.approx((0.25, 0.25))


def test_tiles_that_the_file_leaves_out_are_white(tmp_path):
    pixels = picture(192, 128)
    path = write_pyramid(tmp_path / "x.tif", [pixels])
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages.first.tags
        counts, offsets = (list(tags[t].value) for t in ("TileByteCounts", "TileOffsets"))
        counts[1] = offsets[1] = 0
        tags["TileByteCounts"].overwrite(counts)
        tags["TileOffsets"].overwrite(offsets)
    with open_slide(path) as slide:
        assert (slide.read(64, 0, 64, 64) == 255).all()
        np.testing.assert_array_equal(slide.read(0, 0, 64, 128), pixels[:, :64])


# --- what is refused ---------------------------------------------------------------------------


def _truncated(path):
    write_pyramid(path, [picture(512, 512)], compression="deflate")
    path.write_bytes(path.read_bytes()[:-20_000])


def _cut_short(path):
    write_pyramid(path, [picture(512, 512)])
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("zero.svs", lambda p: p.write_bytes(b""), "is empty"),
        ("text.svs", lambda p: p.write_text("not a slide at all"), "not a known image format"),
        ("truncated.tif", _truncated, "is truncated: it has"),
        ("cut.tif", _cut_short, "is a damaged TIFF|is truncated"),
        ("short.svs", lambda p: p.write_bytes(b"II*\0\x08\0\0\0"), "is a damaged TIFF$"),
        ("broken.png", lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\nrubbish"), "is damaged|no image"),
        ("folder.svs", lambda p: p.mkdir(), "is a folder"),
        (
            "deep.tif",
            lambda p: tifffile.imwrite(p, np.zeros((9, 9, 3), np.uint16), photometric="rgb"),
            "uint16 pixels",
        ),
        (
            "fluorescence.tif",
            lambda p: tifffile.imwrite(p, np.zeros((4, 64, 64), np.uint8), imagej=True,
                                       metadata={"axes": "CYX"}),
            "is not an RGB image: MINISBLACK with axes CYX",
        ),
        (
            "cmyk.jpg",
            lambda p: Image.new("CMYK", (9, 9)).save(p),
            "is a CMYK image",
        ),
        (
            "deep.png",
            lambda p: Image.fromarray(np.zeros((9, 9), np.uint16)).save(p),
            "16 or 32 bit",
        ),
    ],
)  # fmt: skip
def test_each_kind_of_wrong_file_is_named(tmp_path, name, make, message):
    make(tmp_path / name)
    with pytest.raises(SlideError) as caught:
        open_slide(tmp_path / name)
    assert re.search(message, caught.value.what)
    assert str(tmp_path / name) in caught.value.what
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def test_a_missing_slide_and_a_second_series(tmp_path, pyramid):
    with pytest.raises(NotFoundError, match="no such slide"):
        open_slide(tmp_path / "absent.svs")
    with pytest.raises(SlideError, match="series 2 of"):
        open_slide(pyramid[1], series=2)


def test_a_broken_tile_is_an_error_that_names_the_slide(tmp_path):
    path = write_pyramid(tmp_path / "x.tif", [picture(128, 128)], compression="deflate")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages.first.dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = b"\0" * 40
    path.write_bytes(data)
    with open_slide(path) as slide, pytest.raises(SlideError, match="cannot be decoded"):
        slide.read(0, 0, 10, 10)


# --- real slides -------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "size", "mpp"),
    [
        ("CMU-1-Small-Region.svs", (2220, 2967), (0.499, 0.499)),
        ("TCGA-CR-7395-01A-01-TS1_reduced.svs", (4443, 3567), None),
        ("84_LLM_YR4_002_aperio40x.tif", (708, 555), (0.2488, 0.2488)),
        ("instanseg_HE_example_tma_0.5mpp.tif", (1380, 1484), (0.5, 0.5)),
    ],
)
def test_real_slides(name, size, mpp):
    with open_slide(SLIDES / name) as slide:
        assert (slide.width, slide.height) == size
        assert slide.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
        region = slide.read(size[0] // 2, size[1] // 2, 256, 256)
    assert region.std() > 10  # tissue, decoded


@pytest.mark.shared
def test_real_jpeg_2000_levels_fit_each_other():
    """Level 1 of this slide is 2221 px wide, level 0 4443: the rest is cut off, not spread."""
    openslide = pytest.importorskip("openslide")
    path = SLIDES / "TCGA-CR-7395-01A-01-TS1_reduced.svs"
    with open_slide(path) as slide, openslide.OpenSlide(path) as reference_reader:
        level1 = slide.read(1500, 900, 400, 400, (2, 2)).astype(float)
        level0 = slide.read(3000, 1800, 800, 800)
        theirs = reference_reader.read_region((3000, 1800), 0, (800, 800))
    reference = reduced(level0, 2).astype(float)
    error = np.abs(level1 - reference).mean()
    shifted = np.abs(level1[:, 1:] - reference[:, :-1]).mean()
    assert error < shifted / 2
    difference = np.abs(level0.astype(int) - np.asarray(theirs)[..., :3])
    assert difference.max() <= 2  # two decoders of JPEG 2000


def test_what_was_read_once_is_read_again_as_it_is_in_the_file(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", rgb, tile=(64, 64), photometric="rgb")
    with open_slide(tmp_path / "slide.tif") as slide:
        for x, y in ((0, 0), (50, 30), (50, 30), (100, 60)):
            region = slide.read(x, y, 150, 120)
            np.testing.assert_array_equal(region, rgb[y : y + 120, x : x + 150])
            region[:] = 0
