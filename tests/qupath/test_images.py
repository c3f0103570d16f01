"""From a project's entry to its pixels: server arguments, wrappers, several images of a file."""

import json

import numpy as np
import pytest
import tifffile
from PIL import ImageCms

from qpnuclei.errors import SlideError
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.native import open_project
from qpnuclei.training.sources import find_sources
from tests.slides.dicom import write_series
from tests.slides.pictures import picture, reduced, write_png

SCENES = picture(256, 192, 1), picture(192, 128, 2)


@pytest.fixture
def project(tmp_path):
    """Of one OME-TIFF with two scenes; returns the path of its JSON."""
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as tiff:
        for number, pixels in enumerate(SCENES, 1):
            tiff.write(
                pixels, photometric="rgb", tile=(64, 64),
                metadata={"axes": "YXS", "Name": f"scene {number}",
                          "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25},
            )  # fmt: skip
    create_from_slides(tmp_path / "project", [tmp_path / "x.ome.tif"])
    return tmp_path / "project" / "project.qpproj"


def change(project, edit):
    """Edit the server builder of the first image."""
    content = json.loads(project.read_text(encoding="utf-8"))
    builder = content["images"][0]["serverBuilder"]
    content["images"][0]["serverBuilder"] = edit(builder) or builder
    project.write_text(json.dumps(content), encoding="utf-8")


def set_args(project, args, scene=0):
    def edit(builder):
        builder["args"] = args
        height, width = SCENES[scene].shape[:2]
        builder["metadata"].update(width=width, height=height)

    change(project, edit)


def pixels_of(project):
    (entry,) = open_project(project).images
    with open_image(entry) as slide:
        return slide.read(0, 0, slide.width, slide.height)


@pytest.mark.parametrize(
    ("args", "scene"),
    [
        ([], 0),
        (["--series", "0"], 0),
        (["--series", "1"], 1),
        (["--series=1"], 1),
        (["-s", "1"], 1),
        (["-s=1"], 1),
        (["--no-crop", "-s", "1"], 1),
        (["--series", "-1"], 0),
        (["--no-crop"], 0),
    ],
)
def test_the_series_of_the_arguments_is_read(project, args, scene):
    set_args(project, args, scene)
    np.testing.assert_array_equal(pixels_of(project), SCENES[scene])


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--name", "scene 2"], "--name"),
        (["-n", "scene 2"], "-n"),
        (["--series", "0", "--dims", "XYZCT"], "--dims"),
        (["--bfOptions", "zeissczi.autostitch=false"], "--bfOptions"),
        (["--background-color", "FF0000"], "--background-color"),
        (["--icc-profile-source=/x.icc"], "--icc-profile-source=/x.icc"),
        (["--anything"], "--anything"),
        (["stray"], "stray"),
    ],
)
def test_arguments_that_are_not_known_are_refused_by_name(project, args, named):
    set_args(project, args)
    with pytest.raises(SlideError, match="server argument") as caught:
        pixels_of(project)
    assert repr(named) in caught.value.what
    assert "image 'x.ome.tif' (entry 1)" in caught.value.what


@pytest.mark.parametrize("args", [["--series"], ["--series", "first"], ["--series=-2"]])
def test_a_series_that_is_no_number_is_refused(project, args):
    set_args(project, args)
    with pytest.raises(SlideError, match="which is not a number"):
        pixels_of(project)


def test_a_series_that_is_not_there_is_refused(project):
    set_args(project, ["--series", "2"])
    with pytest.raises(SlideError, match=r"series 2 of .* cannot be read"):
        pixels_of(project)


def test_the_series_goes_along_into_training(project):
    set_args(project, ["--series", "1"], scene=1)
    (source,) = find_sources([project])
    with source.open() as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 192, 128), SCENES[1])


def test_the_colour_profile_is_applied_where_the_project_says_so(tmp_path):
    rgb = picture(128, 96)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")
    write_png(tmp_path / "x.png", rgb, icc_profile=swapped)
    create_from_slides(tmp_path / "project", [tmp_path / "x.png"])
    project = tmp_path / "project" / "project.qpproj"
    np.testing.assert_array_equal(pixels_of(project), rgb)
    change(project, lambda builder: builder.update(args=["--icc-profile"]))
    assert np.abs(pixels_of(project).astype(int) - rgb[..., [1, 0, 2]]).max() <= 2


@pytest.mark.parametrize(
    "wrapper",
    [
        {"builderType": "pyramidize"},
        {"builderType": "rotated", "rotation": "ROTATE_NONE"},
        {"builderType": "affine", "transform": [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]},
        {"builderType": "affine",
         "transform": {"m00": 1.0, "m10": 0.0, "m01": 0.0, "m11": 1.0, "m02": 0.0, "m12": 0.0}},
    ],
)  # fmt: skip
def test_wrappers_that_change_no_pixel_are_looked_through(project, wrapper):
    def wrap(builder):
        return {**wrapper, "builder": builder, "metadata": builder["metadata"]}

    change(project, wrap)
    np.testing.assert_array_equal(pixels_of(project), SCENES[0])
    change(project, lambda builder: {"builderType": "pyramidize", "builder": builder})
    np.testing.assert_array_equal(pixels_of(project), SCENES[0])


@pytest.mark.parametrize(
    "wrapper",
    [
        {"builderType": "rotated", "rotation": "ROTATE_180"},
        {"builderType": "rotated"},
        {"builderType": "affine", "transform": [1.0, 0.0, 0.0, 1.0, 5.0, 0.0]},
        {"builderType": "affine", "transform": None},
        {"builderType": "cropped", "region": {"x": 5, "y": 5, "width": 10, "height": 10}},
        {"builderType": "color_deconvolved"},
        {"builderType": "swapRedBlue"},
        {"builderType": "flipped"},
    ],
)
def test_wrappers_that_change_pixels_are_refused_by_name(project, wrapper):
    change(project, lambda builder: {**wrapper, "builder": builder})
    with pytest.raises(SlideError, match=f"transformed view of its file .{wrapper['builderType']}"):
        pixels_of(project)


def test_dicom_files_of_one_slide_become_one_image_of_a_project(tmp_path):
    full = picture(256, 192)
    files = write_series(tmp_path, [full, reduced(full, 2)], 0.25)
    project = create_from_slides(tmp_path / "project", files)
    assert [entry.path for entry in project.images] == [files[0]]


def test_the_magnification_is_written(tmp_path):
    description = "Aperio Image Library v1\n128x96 (64x64) JPEG/RGB|AppMag = 40|MPP = 0,25"
    tifffile.imwrite(
        tmp_path / "x.svs", picture(128, 96), photometric="rgb", tile=(64, 64),
        description=description, metadata=None,
    )  # fmt: skip
    create_from_slides(tmp_path / "project", [tmp_path / "x.svs"])
    content = json.loads((tmp_path / "project" / "project.qpproj").read_text(encoding="utf-8"))
    metadata = content["images"][0]["serverBuilder"]["metadata"]
    assert metadata["magnification"] == 40
    assert metadata["pixelCalibration"]["pixelWidth"]["value"] == 0.25
