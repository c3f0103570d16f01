import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from qpnuclei.errors import FormatError, NotFoundError, SlideError, UsageError
from qpnuclei.evaluation.datasets import (
    doubts_about_labels,
    read_folder,
    read_instance_map,
    read_rgb,
)
from qpnuclei.evaluation.formats import read_dataset


@pytest.fixture
def folder(tmp_path):
    """Three images in three formats, their labels in three others."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    rgb = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(rgb).save(images / "a.png")
    tifffile.imwrite(images / "b.tif", rgb, photometric="rgb")
    Image.fromarray(rgb).save(images / "c.jpg", quality=100, subsampling=0)
    instances = np.full((4, 5), 300, np.uint16)  # more than fits 8 bits
    np.save(labels / "a.npy", instances)
    Image.fromarray(instances).save(labels / "b.png")
    tifffile.imwrite(labels / "c.tif", instances)
    (tmp_path / "splits.json").write_text(json.dumps({"train": ["a"], "val": ["c", "b"]}))
    return tmp_path


def test_a_label_map_with_one_wrong_bit_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, (40, 50)).astype(np.uint16)
    path = tmp_path / "a.png"
    Image.fromarray(labels).save(path)
    assert np.array_equal(read_instance_map(path), labels)
    content = path.read_bytes()
    start = content.index(b"IDAT") + 4
    for place in range(start, len(content) - 16, 23):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(FormatError, match=r"a\.png"):
            read_instance_map(path)


def test_matches_images_and_labels_by_stem_whatever_their_format(folder):
    found = list(read_folder(folder))

    assert [image.name for image in found] == ["a", "b", "c"]
    for image in found:
        assert image.read_image().shape == (4, 5, 3)
        assert image.read_image().dtype == np.uint8
        np.testing.assert_array_equal(image.read_labels(), np.full((4, 5), 300))
    np.testing.assert_array_equal(found[0].read_image(), found[1].read_image())


@pytest.mark.parametrize(
    ("kind", "values", "is_doubtful"),
    [
        (np.uint8, [1, 2, 255], True),
        (np.uint16, [1, 2, 65535], True),
        (np.dtype(">u2"), [1, 2, 65535], True),
        (np.uint8, [1, 254, 255], False),  # as many nuclei as there are numbers
        (np.uint8, [255], False),  # a mask
        (np.uint16, [1, 2, 255], False),
        (np.int32, [1, 2, 65535], False),
    ],
)
def test_a_label_that_seems_to_mark_ignored_pixels(folder, kind, values, is_doubtful):
    instances = np.zeros((4, 5), kind)
    instances[0, : len(values)] = values
    np.save(folder / "labels" / "a.npy", instances)
    found = list(read_folder(folder))
    assert (doubts_about_labels(found) != []) == is_doubtful
    if is_doubtful:
        tifffile.imwrite(folder / "labels" / "c.tif", instances.astype(instances.dtype.name))
        (note,) = doubts_about_labels(found)
        assert f"{folder / 'labels' / 'a.npy'} and 1 more file: the label {values[-1]}" in note
    np.testing.assert_array_equal(found[0].read_labels(), instances)  # nothing is changed


def test_a_split_and_names_select(folder):
    assert [i.name for i in read_dataset(folder, split="val")[1]] == ["b", "c"]
    assert [i.name for i in read_folder(folder, ["c"])] == ["c"]


def test_what_is_missing_is_named(folder):
    (folder / "labels" / "b.png").unlink()

    with pytest.raises(NotFoundError, match="labels: no file for 'b'"):
        read_folder(folder)
    with pytest.raises(NotFoundError, match="images: no file for 'nobody'"):
        read_folder(folder, ["nobody"])
    with pytest.raises(NotFoundError, match="no such folder"):
        read_folder(folder / "elsewhere")
    assert [i.name for i in read_folder(folder, ["a"])] == ["a"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("images/a.png", "images/a.tif"),
        ("labels/a.geojson", "labels/a.npy"),
        ("labels/a.geojson.gz", "labels/a.npy"),
    ],
)
def test_two_files_of_one_name_are_refused(folder, first, second):
    for name in (first, second):
        (folder / name).touch()

    with pytest.raises(FormatError, match=f"{second}: .*{first} has the same name"):
        read_folder(folder)


def test_hidden_files_of_a_mac_are_not_images(folder):
    for name in ("images/._a.png", "labels/._a.npy", "labels/._b.png"):
        (folder / name).write_bytes(b"\0\5\x16\7")

    assert [image.name for image in read_folder(folder)] == ["a", "b", "c"]


def test_an_unknown_split_names_those_there_are(folder):
    with pytest.raises(UsageError, match=r"no split 'test' \(it has train, val\)"):
        read_dataset(folder, split="test")
    (folder / "splits.json").unlink()
    with pytest.raises(NotFoundError, match=r"splits\.json: no such file"):
        read_dataset(folder, split="val")


@pytest.mark.parametrize("text", ["{", "[]", '{"val": "a"}'])
def test_broken_splits_are_refused(folder, text):
    (folder / "splits.json").write_text(text)

    with pytest.raises(FormatError, match=r"splits\.json"):
        read_dataset(folder, split="val")


def test_nothing_selected_is_an_error(folder):
    with pytest.raises(UsageError, match="no annotated image is selected"):
        read_folder(folder, [])


def test_what_is_no_image_or_no_instance_map_is_refused(folder):
    (folder / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    np.save(folder / "labels" / "a.npy", np.zeros((4, 5)))
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(folder / "labels" / "b.png")
    a, b, _ = read_folder(folder)

    with pytest.raises(SlideError, match=r"a\.png is damaged"):
        a.read_image()
    with pytest.raises(FormatError, match=r"a\.npy: an array of float64\(4, 5\)"):
        a.read_labels()
    with pytest.raises(FormatError, match=r"b\.png: an array of uint8\(4, 5, 3\)"):
        b.read_labels()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_labels_are_read_by_content(folder, kind):
    instances = np.arange(20, dtype=kind).reshape(4, 5)
    (folder / "labels" / "a.npy").unlink()
    tifffile.imwrite(folder / "labels" / "a.png", instances)
    (folder / "labels" / "b.png").unlink()
    Image.fromarray(instances).save(folder / "labels" / "b.tif", format="PNG")
    a, b, _ = read_folder(folder)
    np.testing.assert_array_equal(a.read_labels(), instances)
    np.testing.assert_array_equal(b.read_labels(), instances)


def test_a_label_image_beyond_pillows_limit_is_named(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)  # the limit is twice as many
    _, b, _ = read_folder(folder)

    with pytest.raises(FormatError, match=r"b\.png is too large for an untiled image") as caught:
        b.read_labels()
    assert "TIFF or NPY" in caught.value.hint
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert b.read_labels().shape == (4, 5)  # without Pillow's warning


@pytest.mark.parametrize("kind", [np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_large_labels_stay_apart(folder, kind, suffix):
    largest = min(2**32 + 1, np.iinfo(kind).max - 1)
    instances = np.array([[0, 1, 2, largest], [largest - 7, 0, 0, 2]], kind)
    (folder / "labels" / "a.npy").unlink()
    path = folder / "labels" / f"a{suffix}"
    np.save(path, instances) if suffix == ".npy" else tifffile.imwrite(path, instances)

    labels = next(read_folder(folder)).read_labels()

    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, [[0, 1, 2, 4], [3, 0, 0, 2]])


@pytest.mark.parametrize(
    ("kind", "ignored", "message"),
    [
        (np.int32, -1, "has the label -1, which"),
        (np.int64, -(2**40), "has the label -1099511627776, which"),
        (np.uint32, 2**32 - 1, r"has the label 4294967295 \(-1 without a sign\), which"),
        (np.uint64, 2**64 - 1, r"has the label 18446744073709551615 \(-1 without a sign\), which"),
    ],
)
def test_labels_below_0_are_refused(folder, kind, ignored, message):
    np.save(folder / "labels" / "a.npy", np.array([[0, 1, ignored]], kind))

    with pytest.raises(FormatError, match=rf"a\.npy: {message}"):
        next(read_folder(folder)).read_labels()


@pytest.mark.parametrize("name", ["a.npy", "a.png", "a.tif"])
@pytest.mark.parametrize("content", [b"", b"rubbish", b"\x93NUMPY\1\0\0\0"])
def test_broken_labels_are_named(folder, name, content):
    (folder / "labels" / "a.npy").unlink()
    (folder / "labels" / name).write_bytes(content)

    with pytest.raises(FormatError, match=f"{name} cannot be read as an instance map"):
        next(read_folder(folder)).read_labels()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cmyk.jpg", "is a CMYK image, not RGB"),
        ("cmyk.tif", "is a CMYK image, not RGB"),
        ("lab.tif", "is not an RGB image: CIELAB"),
        ("deep.tif", r"has uint16 pixels \(16 bit\), not 8-bit RGB"),
        ("deep.png", "16 or 32 bit"),
    ],
)
def test_other_colours_are_not_taken_for_rgb(tmp_path, name, message):
    path, four, rgb = tmp_path / name, np.full((8, 9, 4), 7, np.uint8), np.full((8, 9, 3), 7)
    match name:
        case "cmyk.jpg":
            Image.new("CMYK", (9, 8), (7, 7, 7, 7)).save(path)
        case "cmyk.tif":
            tifffile.imwrite(path, four, photometric="separated")
        case "lab.tif":
            tifffile.imwrite(path, rgb.astype(np.uint8), photometric="cielab")
        case "deep.tif":
            tifffile.imwrite(path, rgb.astype(np.uint16), photometric="rgb")
        case "deep.png":
            Image.fromarray(four[..., 0].astype(np.uint16)).save(path)

    with pytest.raises(SlideError, match=message) as caught:
        read_rgb(path)
    assert name in caught.value.what


def test_colours_are_those_of_a_run(tmp_path):
    rgba = np.full((8, 9, 4), (100, 50, 200, 255), np.uint8)
    rgba[:4, :, 3] = 0  # transparent: white, like glass
    expected = rgba[..., :3].copy()
    expected[:4] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    Image.fromarray(expected).quantize(2).save(tmp_path / "palette.png")
    tifffile.imwrite(tmp_path / "planes.tif", expected.transpose(2, 0, 1), photometric="rgb")
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_rgb(path), expected, err_msg=path.name)

    grey = np.full((8, 9), 70, np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert (read_rgb(tmp_path / "grey.png") == 70).all()

    ycbcr = np.full((8, 9, 3), (81, 90, 240), np.uint8)
    tifffile.imwrite(tmp_path / "ycbcr.tif", ycbcr, photometric="ycbcr", subsampling=(1, 1))
    red = Image.new("YCbCr", (9, 8), (81, 90, 240)).convert("RGB")
    np.testing.assert_allclose(read_rgb(tmp_path / "ycbcr.tif"), np.asarray(red), atol=1)


def test_a_large_tiled_image_is_read_whole(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", rgb, photometric="rgb", tile=(64, 64))

    np.testing.assert_array_equal(read_rgb(tmp_path / "x.tif"), rgb)
