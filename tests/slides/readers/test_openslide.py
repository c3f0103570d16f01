"""The formats for which OpenSlide is chosen, and files that it must not open."""

import os

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from qpnuclei.errors import SlideError
from qpnuclei.slides.files import one_per_slide
from qpnuclei.slides.readers.openslide import OpenSlideReader
from qpnuclei.slides.slide import Slide, open_slide
from tests.slides.dicom import write_series
from tests.slides.pictures import picture, reduced, write_png, write_pyramid


def test_openslide_reads_the_same(tmp_path):
    full = picture(1024, 640)
    # 1024 / 410 and 640 / 256: a fractional downsample, read in fixed blocks.
    with open_slide(write_png(tmp_path / "full.png", full)) as plain:
        level = plain.read(0, 0, 410, 256, (1024 / 410, 2.5))
    path = write_pyramid(tmp_path / "x.tif", [full, level])
    source = OpenSlideReader(openslide.OpenSlide(path))
    assert source.mpp == pytest.approx((0.5, 0.5))
    slide = Slide(path, source, crop_to_bounds=False)
    np.testing.assert_array_equal(slide.read(100, 50, 300, 200), full[50:250, 100:400])
    with open_slide(path) as other:
        expected = other.read(3, 5, 150, 90, (5.0, 5.0)).astype(int)
    region = slide.read(3, 5, 150, 90, (5.0, 5.0)).astype(int)
    assert np.abs(region - expected).max() <= 3
    np.testing.assert_array_equal(slide.read(40, 30, 20, 20, (5.0, 5.0)), region[25:45, 37:57])


SCN = """<?xml version="1.0"?>
<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:0">
 <collection name="c" uuid="urn:uuid:1" sizeX="400000" sizeY="300000" barcode="">
  <barcode></barcode>
  <image name="macro" uuid="urn:uuid:2">
   <creationDate>2020-01-01T00:00:00Z</creationDate>
   <device model="x" version="1"/>
   <pixels sizeX="100" sizeY="75"><dimension sizeX="100" sizeY="75" r="0" ifd="0"/></pixels>
   <view sizeX="400000" sizeY="300000" offsetX="0" offsetY="0" spacingZ="0"/>
   <scanSettings><objectiveSettings><objective>1</objective></objectiveSettings>
    <illuminationSettings><illuminationSource>brightfield</illuminationSource>
    <numericalAperture>0.1</numericalAperture></illuminationSettings></scanSettings>
  </image>
  {areas}
 </collection>
</scn>"""
SCN_AREA = """
  <image name="area" uuid="urn:uuid:3">
   <creationDate>2020-01-01T00:00:00Z</creationDate>
   <device model="x" version="1"/>
   <pixels sizeX="128" sizeY="96">
    <dimension sizeX="128" sizeY="96" r="0" ifd="{ifd}"/>
    <dimension sizeX="32" sizeY="24" r="1" ifd="{next}"/>
   </pixels>
   <view sizeX="64000" sizeY="48000" offsetX="{x}" offsetY="{y}" spacingZ="0"/>
   <scanSettings><objectiveSettings><objective>20</objective></objectiveSettings>
    <illuminationSettings><illuminationSource>brightfield</illuminationSource>
    <numericalAperture>0.4</numericalAperture></illuminationSettings></scanSettings>
  </image>"""


def test_leica_areas_lie_on_white(tmp_path):
    """Two areas of 64 x 48 µm at 0.5 µm/px, with 36 µm of nothing between them."""
    areas = [picture(128, 96, seed=1), picture(128, 96, seed=2)]
    xml = SCN.format(
        areas=SCN_AREA.format(ifd=1, next=2, x=100_000, y=50_000)
        + SCN_AREA.format(ifd=3, next=4, x=200_000, y=60_000)
    )
    options = {
        "tile": (32, 32),
        "photometric": "rgb",
        "metadata": None,
        "resolution": (20000, 20000),
        "resolutionunit": "CENTIMETER",
    }
    with tifffile.TiffWriter(tmp_path / "x.scn", bigtiff=True) as tiff:
        tiff.write(picture(100, 75), description=xml, **options)
        for area in areas:
            tiff.write(area, **options)
            tiff.write(reduced(area, 4), **options)
    with open_slide(tmp_path / "x.scn") as slide:
        assert (slide.width, slide.height, slide.vendor) == (800, 600, "leica")
        assert slide.magnification == 20
        assert slide.mpp == (0.5, 0.5)
        whole = slide.read(0, 0, 800, 600)
        small = slide.read(0, 0, 200, 150, (4, 4))
    with open_slide(tmp_path / "x.scn", crop_to_bounds=True) as slide:
        # From (100, 50) to (264, 108) µm.
        assert (slide.width, slide.height) == (328, 116)
        np.testing.assert_array_equal(slide.read(0, 0, 328, 116), whole[100:216, 200:528])
    expected = np.full((600, 800, 3), 255, np.uint8)
    expected[100:196, 200:328], expected[120:216, 400:528] = areas
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(small, reduced(expected, 4))


def test_aperio_jpeg_2000_in_ycbcr(tmp_path):
    rgb = picture(512, 384)
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    tiles = [
        imagecodecs.jpeg2k_encode(
            np.ascontiguousarray(ycbcr[y : y + 128, x : x + 128]),
            level=0,
            codecformat="J2K",
            mct=False,
        )
        for y in range(0, 384, 128)
        for x in range(0, 512, 128)
    ]
    tifffile.imwrite(
        tmp_path / "x.svs", iter(tiles), shape=rgb.shape, dtype=np.uint8, tile=(128, 128),
        photometric="rgb", compression=33003, metadata=None,
        description="Aperio Image Library v11.0.37\n512x384 [0,0 512x384] (128x128) J2K/YUV16 Q=70"
        "|AppMag = 40|MPP = 0.25",
    )  # fmt: skip
    with open_slide(tmp_path / "x.svs") as slide:
        assert (slide.vendor, slide.mpp, slide.magnification) == ("aperio", (0.25, 0.25), 40)
        assert np.abs(slide.read(0, 0, 512, 384).astype(int) - rgb).max() <= 3


def _attribute(name, group, element, kind, value):
    return (
        f'<Attribute Name="{name}" Group="{group}" Element="{element}" PMSVR="{kind}">{value}'
        "</Attribute>"
    )


def _objects(name, element, *objects):
    """A Philips attribute that holds an array of objects, each (type, content)."""
    array = "".join(
        f'<DataObject ObjectType="{kind}">{content}</DataObject>' for kind, content in objects
    )
    return _attribute(name, "0x301D", element, "IDataObjectArray", f"<Array>{array}</Array>")


def _spacing(mm):
    value = f"&quot;{mm}&quot; &quot;{mm}&quot;"
    return _attribute("DICOM_PIXEL_SPACING", "0x0028", "0x0030", "IDoubleArray", value)


def test_a_philips_tiff_that_does_not_name_its_maker(tmp_path):
    full = picture(512, 512)
    levels = [("PixelDataRepresentation", _spacing(mm)) for mm in (0.00025, 0.0005)]
    scanned = (
        _attribute("PIM_DP_IMAGE_TYPE", "0x301D", "0x1004", "IString", "WSI")
        + _spacing(0.00025)
        + _objects("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", "0x8B01", *levels)
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
        + _objects("PIM_DP_SCANNED_IMAGES", "0x1003", ("DPScannedImage", scanned))
        + "</DataObject>"
    )
    with tifffile.TiffWriter(tmp_path / "x.tiff") as tiff:
        for pixels, text in ((full, xml), (reduced(full, 2), "level=1")):
            tiff.write(
                pixels, tile=(256, 256), photometric="rgb", compression="jpeg",
                compressionargs={"level": 95}, description=text, software="Philips DP v1.0",
                metadata=None, subfiletype=int(text != xml),
            )  # fmt: skip
    with open_slide(tmp_path / "x.tiff") as slide:
        assert (slide.vendor, slide.mpp) == ("philips", (0.25, 0.25))
        assert [level.downsample for level in slide.levels] == [1, 2]
        assert np.abs(slide.read(0, 0, 512, 512).astype(int) - full).mean() < 3


def test_trestle(tmp_path):
    rgb = picture(256, 192)
    write_pyramid(
        tmp_path / "x.tif", [rgb], software="MedScan v1",
        description="Objective Power=20;Background Color=E6E6E6;OverlapsXY= 0 0",
    )  # fmt: skip
    with open_slide(tmp_path / "x.tif") as slide:
        assert (slide.vendor, slide.magnification) == ("trestle", 20)
        np.testing.assert_array_equal(slide.read(0, 0, 256, 192), rgb)


def test_dicom_files_of_one_series_are_one_slide(tmp_path):
    full = picture(512, 320)
    files = write_series(tmp_path, [full, reduced(full, 2), reduced(full, 4)], 0.25)
    for file in files:
        with open_slide(file) as slide:
            assert (slide.width, slide.height, slide.vendor) == (512, 320, "dicom")
            assert slide.mpp == pytest.approx((0.25, 0.25))
            assert [level.downsample for level in slide.levels] == [1, 2, 4]
            assert np.abs(slide.read(0, 0, 512, 320).astype(int) - full).mean() < 2
    (tmp_path / "other").mkdir()
    (other,) = write_series(tmp_path / "other", [picture(128, 64)], 0.5)
    assert one_per_slide([*files, other]) == [files[0], other]


def test_dicom_is_known_by_its_content(tmp_path):
    (file,) = write_series(tmp_path, [picture(128, 64)], 0.5)
    renamed = file.rename(tmp_path / "slide")
    with open_slide(renamed) as slide:
        assert (slide.width, slide.height, slide.vendor) == (128, 64, "dicom")


def test_the_images_of_a_hamamatsu_index_are_not_slides(tmp_path):
    (tmp_path / "x.vms").write_text("[Virtual Microscope Specimen]\nImageFile=x.jpg\nNoLayers=1\n")
    paths = [tmp_path / name for name in ("x.jpg", "x.vms", "y.jpg", "absent.dcm")]
    assert one_per_slide(paths) == [tmp_path / name for name in ("x.vms", "y.jpg", "absent.dcm")]


def test_a_broken_mirax_slide_names_openslide(tmp_path):
    (tmp_path / "x.mrxs").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(SlideError, match="MIRAX slide, and OpenSlide cannot read it"):
        open_slide(tmp_path / "x.mrxs")


@pytest.mark.parametrize("suffix", [".bif", ".scn", ".svslide", ".czi", ".vms", ".dcm"])
def test_a_name_alone_makes_no_slide(tmp_path, suffix):
    """OpenSlide would open it as a generic TIFF, whatever picture lies first in it."""
    path = write_pyramid(tmp_path / f"x{suffix}", [picture(128, 96)])
    with pytest.raises(SlideError, match="but OpenSlide takes it for 'generic-tiff'"):
        open_slide(path)


def test_openslide_is_not_tried_where_the_reader_of_the_format_refuses(tmp_path):
    """OpenSlide opens this one, and shows its first channel as grey."""
    tifffile.imwrite(
        tmp_path / "x.tif", np.zeros((4, 64, 64), np.uint8), tile=(32, 32),
        photometric="minisblack", metadata={"axes": "CYX"},
    )  # fmt: skip
    with openslide.OpenSlide(tmp_path / "x.tif") as other:
        assert other.dimensions == (64, 64)
    with pytest.raises(SlideError, match="not an RGB image: MINISBLACK with axes CYX"):
        open_slide(tmp_path / "x.tif")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_beside_a_slide_of_several_files_is_refused(tmp_path):
    (file,) = write_series(tmp_path, [picture(128, 64)], 0.5)
    os.mkfifo(tmp_path / "pipe.dcm")
    with pytest.raises(SlideError, match=r"pipe.dcm is a pipe or a device"):
        open_slide(file)
    (tmp_path / "x.mrxs").write_bytes(b"\xff\xd8\xff\xe0")
    (tmp_path / "x").mkdir()
    os.mkfifo(tmp_path / "x" / "Slidedat.ini")
    with pytest.raises(SlideError, match=r"Slidedat.ini is a pipe or a device"):
        open_slide(tmp_path / "x.mrxs")
