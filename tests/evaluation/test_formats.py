"""Every layout is read as its authors wrote it; what is broken is named."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import shapely
import tifffile
from PIL import Image

from qpnuclei.errors import FormatError, NotFoundError, UsageError
from qpnuclei.evaluation.datasets import doubts_about_labels
from qpnuclei.evaluation.formats import read_dataset
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.writing import write_objects
from tests.evaluation.images import write_folder


def pink(height: int = 10, width: int = 12) -> np.ndarray:
    return np.full((height, width, 3), (230, 170, 200), np.uint8)


def region(*vertices: tuple[float, float]) -> str:
    points = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in vertices)
    return f'<Region Id="1" NegativeROA="0"><Vertices>{points}</Vertices></Region>'


def image_scope(*regions: str) -> str:
    return (
        '<?xml version="1.0"?><Annotations MicronsPerPixel="0.252000"><Annotation Id="1">'
        f"<Regions>{''.join(regions)}</Regions></Annotation></Annotations>"
    )


@pytest.fixture
def monuseg(tmp_path: Path) -> Path:
    (tmp_path / "Tissue Images").mkdir()
    (tmp_path / "Annotations").mkdir()
    tifffile.imwrite(tmp_path / "Tissue Images" / "TCGA-1.tif", pink(), photometric="rgb")
    xml = image_scope(
        region((1, 2), (5, 2), (5, 6), (1, 6)),
        region((4, 4), (8, 4), (8, 8), (4, 8)),  # overlaps the first
        region((9, 0), (11, 0)),  # a line encloses nothing
        region((9.2, 8.2), (30, 8.2), (30, 30), (9.2, 30)),  # leaves the image
    )
    (tmp_path / "Annotations" / "TCGA-1.xml").write_text(xml)
    return tmp_path


def test_monuseg_is_pixels_whose_centre_lies_in_an_outline(
    monuseg: Path, caplog: pytest.LogCaptureFixture
) -> None:
    layout, (image,) = read_dataset(monuseg)
    rgb, labels = image.read()

    assert (layout, image.name, image.mpp) == ("monuseg", "TCGA-1", 0.25)
    np.testing.assert_array_equal(rgb, pink())
    expected = np.zeros((10, 12), int)
    expected[4:8, 4:8] = 2
    expected[2:6, 1:5] = 1  # where two overlap, the first of the file
    expected[8:, 9:] = 4
    np.testing.assert_array_equal(labels, expected)
    assert "TCGA-1.xml: outlines without a pixel in the image TCGA-1.tif of 12 x 10 px: 1 of 4" in (
        caplog.text
    )


def write_outlines(path: Path, *outlines: shapely.Geometry) -> None:
    if path.suffix == ".xml":
        regions = [region(*outline.exterior.coords[:-1]) for outline in outlines]
        path.write_text(image_scope(*regions))
    else:
        write_objects(path, [GeoJsonObject("detection", outline) for outline in outlines])


@pytest.mark.parametrize("suffix", [".xml", ".geojson"])
def test_outlines_without_a_pixel_of_the_image_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    tifffile.imwrite(images / "a.tif", pink(), photometric="rgb")
    inside, hidden = shapely.box(1, 1, 5, 5), shapely.box(2, 2, 4, 4)
    outside, across = shapely.box(100, 100, 120, 120), shapely.box(8, 8, 40, 40)

    write_outlines(labels / f"a{suffix}", inside, hidden, outside, across)
    _, (image,) = read_dataset(tmp_path, "monuseg" if suffix == ".xml" else "folder")
    assert np.unique(image.read_labels()).tolist() == [0, 1, 4]
    image.read_labels()
    said = f"a{suffix}: outlines without a pixel in the image a.tif of 12 x 10 px: 2 of 4"
    assert caplog.text.count(said) == 1

    write_outlines(labels / f"a{suffix}", outside)
    with pytest.raises(
        FormatError, match=rf"a\{suffix}: no outline with an area lies in .* a\.tif of 12 x 10 px"
    ) as caught:
        image.read_labels()
    assert "in px of this image" in caught.value.hint


@pytest.mark.parametrize(
    "regions",
    [
        [region((1, 1), (5, 5))],  # a ruler
        [region((1, 1), (5, 5), (3, 3))],
        [region((100, 100), (120, 120)), region((1, 1), (1.2, 1), (1.2, 1.2))],
    ],
)
def test_regions_without_an_area_do_not_make_an_image_another(
    monuseg: Path, caplog: pytest.LogCaptureFixture, regions: list[str]
) -> None:
    (monuseg / "Annotations" / "TCGA-1.xml").write_text(image_scope(*regions))
    _, (image,) = read_dataset(monuseg)
    assert not image.read_labels().any()
    assert f"12 x 10 px: {len(regions)} of {len(regions)} (outside of it" in caplog.text


def test_regions_without_an_area_do_not_hide_that_the_others_are_of_another_image(
    monuseg: Path,
) -> None:
    outside = region((100, 100), (120, 100), (120, 120))
    xml = image_scope(region((1, 1), (5, 5)), outside)
    (monuseg / "Annotations" / "TCGA-1.xml").write_text(xml)
    _, (image,) = read_dataset(monuseg)
    with pytest.raises(FormatError, match="no outline with an area lies in the image TCGA-1"):
        image.read_labels()


def test_the_areas_of_a_geometry_collection_are_drawn(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", ("a",))
    (folder / "labels" / "a.png").unlink()
    parts = [shapely.box(1, 1, 5, 5), shapely.Point(9, 9)]
    write_outlines(folder / "labels" / "a.geojson", shapely.GeometryCollection(parts))
    assert read_dataset(folder)[1][0].read_labels().sum() == 16


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("<Annotations>", "not an XML file of ImageScope"),
        ("<annotation/>", "XML of <annotation>"),
        (image_scope('<Region><Vertex X="one" Y="2"/></Region>'), "not an XML file of ImageScope"),
        (image_scope('<Region><Vertex Y="2"/></Region>'), "not an XML file of ImageScope"),
        (image_scope(region((1, 2), (np.nan, 2), (3, 4))), "a vertex is at nan"),
    ],
)
def test_what_is_not_of_image_scope_is_refused(monuseg: Path, xml: str, message: str) -> None:
    (monuseg / "Annotations" / "TCGA-1.xml").write_text(xml)
    _, (image,) = read_dataset(monuseg)
    with pytest.raises(FormatError, match=message) as caught:
        image.read_labels()
    assert "TCGA-1.xml" in caught.value.what


@pytest.fixture
def tnbc(tmp_path: Path) -> Path:
    mask = np.zeros((10, 12), np.uint8)
    mask[1:4, 1:4] = 255
    mask[4, 4] = 255  # touches at a corner: the same nucleus
    mask[6:9, 6:9] = 255
    opaque = np.dstack([pink(), np.full((10, 12), 255, np.uint8)])
    for number in ("01", "02"):
        for kind, pixels in (("Slide", opaque), ("GT", mask)):
            (tmp_path / f"{kind}_{number}").mkdir()
            Image.fromarray(pixels).save(tmp_path / f"{kind}_{number}" / f"{number}_1.png")
    return tmp_path


def test_tnbc_is_the_components_of_a_mask(tnbc: Path) -> None:
    layout, images = read_dataset(tnbc)

    assert (layout, [i.name for i in images], images[0].mpp) == ("tnbc", ["01_1", "02_1"], 0.25)
    rgb, labels = images[0].read()
    np.testing.assert_array_equal(rgb, pink())  # without its alpha channel
    assert labels.max() == 2
    assert labels[1, 1] == labels[4, 4] != labels[6, 6] != 0


def test_tnbc_takes_one_bit_masks_and_other_values_too(tnbc: Path) -> None:
    one_bit, classes = np.zeros((10, 12), bool), np.zeros((10, 12), np.uint8)
    one_bit[:2, :2] = True
    classes[:2, :2], classes[:2, 2:4], classes[6:8, 6:8] = 3, 7, 3  # two touch, two are of a class
    Image.fromarray(one_bit).save(tnbc / "GT_01" / "01_1.png")
    Image.fromarray(classes).save(tnbc / "GT_02" / "02_1.png")

    first, second = (image.read_labels() for image in read_dataset(tnbc)[1])

    np.testing.assert_array_equal(first, one_bit)
    np.testing.assert_array_equal(second > 0, classes > 0)
    assert len({second[0, 0], second[0, 2], second[6, 6]}) == 3


@pytest.fixture
def consep(tmp_path: Path) -> Path:
    instances = np.zeros((10, 12))
    instances[2:5, 2:5] = 41
    for part in ("Train", "Test"):
        for kind in ("Images", "Labels"):
            (tmp_path / part / kind).mkdir(parents=True)
        name = f"{part.lower()}_1"
        Image.fromarray(pink()).save(tmp_path / part / "Images" / f"{name}.png")
        # MATLAB stores whole numbers as doubles.
        content = {"inst_map": instances, "type_map": np.zeros((10, 12)), "inst_type": [[1]]}
        scipy.io.savemat(tmp_path / part / "Labels" / f"{name}.mat", content)
    return tmp_path


def test_consep_is_inst_map(consep: Path) -> None:
    layout, images = read_dataset(consep)

    assert (layout, [i.name for i in images]) == ("consep", ["test_1", "train_1"])
    _, labels = images[0].read()
    assert labels.dtype == np.int32
    assert np.unique(labels).tolist() == [0, 41]
    assert (images[0].mpp, labels.sum()) == (0.25, 9 * 41)
    assert [i.name for i in read_dataset(consep / "Test")[1]] == ["test_1"]


def test_consep_without_inst_map_is_refused(consep: Path) -> None:
    path = consep / "Test" / "Labels" / "test_1.mat"
    scipy.io.savemat(path, {"type_map": np.zeros((10, 12))})
    with pytest.raises(FormatError, match=r"test_1\.mat: has no .* 'inst_map', only \['type_map'"):
        read_dataset(consep)[1][0].read_labels()
    path.write_bytes(b"not a MATLAB file" * 20)
    with pytest.raises(FormatError, match=r"test_1\.mat cannot be read as a MATLAB file"):
        read_dataset(consep)[1][0].read_labels()


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e300, -np.inf, 1j, "text"])
def test_consep_with_other_values_is_refused(consep: Path, value: object) -> None:
    instances = np.full((10, 12), value)
    scipy.io.savemat(consep / "Test" / "Labels" / "test_1.mat", {"inst_map": instances})
    with pytest.raises(FormatError, match=r"test_1\.mat: has no 2-D array of whole numbers"):
        read_dataset(consep)[1][0].read_labels()


def test_consep_keeps_large_labels_apart_and_refuses_negative_ones(consep: Path) -> None:
    path = consep / "Test" / "Labels" / "test_1.mat"
    instances = np.zeros((10, 12))
    instances[0, :3] = 1, 2, 2**32 + 1
    scipy.io.savemat(path, {"inst_map": instances})
    assert read_dataset(consep)[1][0].read_labels()[0, :4].tolist() == [1, 2, 3, 0]
    scipy.io.savemat(path, {"inst_map": instances - 1})
    with pytest.raises(FormatError, match=r"test_1\.mat: has the label -1"):
        read_dataset(consep)[1][0].read_labels()


def test_a_label_of_consep_that_seems_to_mark_ignored_pixels(consep: Path) -> None:
    path = consep / "Test" / "Labels" / "test_1.mat"
    instances = np.zeros((10, 12))
    for largest, notes in ((255, 1), (65535, 1), (41, 0)):
        instances[0, :3] = 1, 2, largest
        scipy.io.savemat(path, {"inst_map": instances})
        assert len(doubts_about_labels(read_dataset(consep)[1])) == notes


def test_a_matlab_file_of_version_7_3_is_named(consep: Path) -> None:
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    (consep / "Test" / "Labels" / "test_1.mat").write_bytes(header + bytes(512))
    with pytest.raises(
        FormatError, match=r"test_1\.mat: is a MATLAB file of version 7\.3"
    ) as caught:
        read_dataset(consep)[1][0].read_labels()
    assert "save it in version 7" in caught.value.hint


def write_mask(path: Path, mask: np.ndarray) -> None:
    match path.suffix:
        case ".png":
            Image.fromarray(mask).save(path)
        case ".tif":
            tifffile.imwrite(path, mask)
        case ".npy":
            np.save(path, mask)
        case ".mat":
            scipy.io.savemat(path, {"inst_map": mask})


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".mat"])
@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_a_mask_is_no_instance_map_in_any_file(
    tmp_path: Path, consep: Path, suffix: str, kind: type
) -> None:
    mask = np.zeros((10, 12), kind)
    mask[1:4, 1:4] = mask[6:9, 6:9] = kind(255)
    if suffix == ".mat":
        folder, path = consep / "Test", consep / "Test" / "Labels" / "test_1.mat"
    else:
        folder = write_folder(tmp_path / "set", ("a",))
        (folder / "labels" / "a.png").unlink()
        path = folder / "labels" / f"a{suffix}"
    write_mask(path, mask)

    with pytest.raises(FormatError, match="a mask with one value in 2 parts") as caught:
        read_dataset(folder)[1][0].read_labels()
    assert "--components" in caught.value.hint
    (image,) = read_dataset(folder, components=True)[1]
    labels = image.read_labels()
    assert np.unique(labels).tolist() == [0, 1, 2]
    np.testing.assert_array_equal(labels > 0, mask > 0)


def test_a_mask_of_classes_is_no_instance_map(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", ("a",))
    (folder / "labels" / "a.png").unlink()
    labels = np.zeros((60, 60), np.uint8)
    for number, (y, x) in enumerate(itertools.product(range(0, 60, 20), repeat=2)):
        labels[y : y + 9, x : x + 9] = 1 + number % 2
    np.save(folder / "labels" / "a.npy", labels)
    with pytest.raises(FormatError, match="a mask with 2 values in 9 parts, not an instance map"):
        read_dataset(folder)[1][0].read_labels()
    # Some nuclei in several parts are no classes.
    labels[labels == 2] = 0
    labels[20:29, 20:29], labels[40:49, 40:49] = 3, 4
    np.save(folder / "labels" / "a.npy", labels)
    assert read_dataset(folder)[1][0].read_labels().max() == 4


def test_a_truncated_matlab_file_is_named(consep: Path) -> None:
    path = consep / "Test" / "Labels" / "test_1.mat"
    noise = np.random.default_rng(0).integers(1, 9, (10, 12))
    scipy.io.savemat(path, {"inst_map": noise}, do_compression=True)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"test_1\.mat"):
            read_dataset(consep)[1][0].read_labels()
    path.write_bytes(whole[:150] + bytes(40) + whole[190:])
    with pytest.raises(FormatError, match=r"test_1\.mat cannot be read"):
        read_dataset(consep)[1][0].read_labels()


def test_a_plain_folder_by_split(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", ("a", "b", "c"))

    layout, images = read_dataset(folder, split="val")

    assert (layout, [i.name for i in images], images[0].mpp) == ("folder", ["c"], None)
    other = tmp_path / "other.json"
    other.write_text('{"mine": ["a", "b"]}')
    assert [i.name for i in read_dataset(folder, "folder", "mine", other)[1]] == ["a", "b"]
    with pytest.raises(UsageError, match=r"splits\.json: no split 'test'"):
        read_dataset(folder, split="test")


def test_splits_go_with_any_layout(tnbc: Path) -> None:
    (tnbc / "splits.json").write_text('{"val": ["02_1"], "gone": ["99_1"]}')

    assert [i.name for i in read_dataset(tnbc, split="val")[1]] == ["02_1"]
    with pytest.raises(NotFoundError, match="no image '99_1' of the split 'gone'"):
        read_dataset(tnbc, split="gone")


@pytest.mark.parametrize("layout", ["monuseg", "tnbc", "consep"])
def test_an_image_that_a_split_names_twice_is_selected_once(
    layout: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(layout)
    name = read_dataset(folder)[1][0].name
    (folder / "splits.json").write_text(json.dumps({"val": [name, name]}))
    found, images = read_dataset(folder, split="val")
    assert (found, [image.name for image in images]) == (layout, [name])


def test_images_of_the_same_name_in_two_parts_of_consep_are_refused(consep: Path) -> None:
    for kind, suffix in (("Images", ".png"), ("Labels", ".mat")):
        path = consep / "Train" / kind / f"train_1{suffix}"
        shutil.copy(path, consep / "Test" / kind)
    with pytest.raises(
        FormatError,
        match=r"Train/Images/train_1\.png: .*Test/Images/train_1\.png has the same name",
    ):
        read_dataset(consep)


def test_the_slides_of_tnbc_tell_images_of_the_same_name_apart(tnbc: Path) -> None:
    for path in sorted(tnbc.glob("*/*.png")):
        path.rename(path.with_name("1.png"))
    (tnbc / "splits.json").write_text('{"val": ["Slide_02/1"], "any": ["1"]}')
    assert [i.name for i in read_dataset(tnbc)[1]] == ["Slide_01/1", "Slide_02/1"]
    (image,) = read_dataset(tnbc, split="val")[1]
    assert image.labels_path == tnbc / "GT_02" / "1.png"
    with pytest.raises(NotFoundError, match="no image '1' of the split 'any'"):
        read_dataset(tnbc, split="any")


def test_half_a_pair_is_named(tnbc: Path) -> None:
    (tnbc / "GT_02" / "02_1.png").unlink()
    with pytest.raises(NotFoundError, match=r"Slide_02/02_1\.png: there is no mask in GT_02"):
        read_dataset(tnbc)
    (tnbc / "GT_01" / "01_2.png").touch()
    with pytest.raises(NotFoundError, match=r"GT_01/01_2\.png: there is no image"):
        read_dataset(tnbc)


def test_two_files_of_one_name_are_refused(monuseg: Path) -> None:
    tifffile.imwrite(monuseg / "TCGA-1.tiff", pink(), photometric="rgb")
    with pytest.raises(FormatError, match="has the same name"):
        read_dataset(monuseg)


def test_hidden_files_of_a_mac_are_not_images(monuseg: Path) -> None:
    (monuseg / "Annotations" / "._TCGA-1.xml").write_bytes(b"\0\5\x16\7")
    assert len(read_dataset(monuseg)[1]) == 1


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent: no such folder"):
        read_dataset(tmp_path / "absent")
    with pytest.raises(UsageError, match="not in the layout of a known data set") as caught:
        read_dataset(tmp_path)
    assert "images/" in caught.value.hint
    with pytest.raises(UsageError, match="contains no image in the layout of monuseg"):
        read_dataset(tmp_path, "monuseg")


def test_labels_of_another_size_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set")
    Image.fromarray(np.zeros((5, 7), np.uint16)).save(folder / "labels" / "a.png")
    with pytest.raises(FormatError, match=r"a\.png: nuclei on 7 x 5 px do not fit .* 128 x 128"):
        read_dataset(folder)[1][0].read()
