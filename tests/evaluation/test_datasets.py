import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from qpnuclei.errors import FormatError, NotFoundError, UsageError
from qpnuclei.evaluation.datasets import read_folder, read_rgb


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


def test_matches_images_and_labels_by_stem_whatever_their_format(folder):
    found = list(read_folder(folder))

    assert [image.name for image in found] == ["a", "b", "c"]
    for image in found:
        assert image.read_image().shape == (4, 5, 3)
        assert image.read_image().dtype == np.uint8
        np.testing.assert_array_equal(image.read_labels(), np.full((4, 5), 300))
    np.testing.assert_array_equal(found[0].read_image(), found[1].read_image())


def test_a_split_and_names_select(folder):
    assert [i.name for i in read_folder(folder, split="val")] == ["b", "c"]
    assert [i.name for i in read_folder(folder, names=["c"])] == ["c"]
    assert [i.name for i in read_folder(folder, split="val", names=["a", "c"])] == ["c"]


def test_what_is_missing_is_named(folder):
    (folder / "labels" / "b.png").unlink()

    with pytest.raises(NotFoundError, match="labels: no file for 'b'"):
        read_folder(folder)
    with pytest.raises(NotFoundError, match="images: no file for 'nobody'"):
        read_folder(folder, names=["nobody"])
    with pytest.raises(NotFoundError, match="no such folder"):
        read_folder(folder / "elsewhere")
    assert [i.name for i in read_folder(folder, names=["a"])] == ["a"]


def test_an_unknown_split_names_those_there_are(folder):
    with pytest.raises(UsageError, match=r"no split 'test' \(it has train, val\)"):
        read_folder(folder, split="test")
    (folder / "splits.json").unlink()
    with pytest.raises(NotFoundError, match=r"splits\.json: no such file"):
        read_folder(folder, split="val")


@pytest.mark.parametrize("text", ["{", "[]", '{"val": "a"}'])
def test_broken_splits_are_refused(folder, text):
    (folder / "splits.json").write_text(text)

    with pytest.raises(FormatError, match=r"splits\.json"):
        read_folder(folder, split="val")


def test_nothing_selected_is_an_error(folder):
    with pytest.raises(UsageError, match="no annotated image is selected"):
        read_folder(folder, split="val", names=["a"])


def test_what_is_no_image_or_no_instance_map_is_refused(folder):
    (folder / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / "images" / "c.jpg")
    np.save(folder / "labels" / "a.npy", np.zeros((4, 5)))
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(folder / "labels" / "b.png")
    a, b, c = read_folder(folder)

    with pytest.raises(FormatError, match=r"a\.png: cannot be read as an image"):
        a.read_image()
    with pytest.raises(FormatError, match=r"c\.jpg: an image of uint8\(4, 5\) is not 8-bit RGB"):
        c.read_image()
    with pytest.raises(FormatError, match=r"a\.npy: an array of float64\(4, 5\)"):
        a.read_labels()
    with pytest.raises(FormatError, match=r"b\.png: an array of uint8\(4, 5, 3\)"):
        b.read_labels()


def test_an_alpha_channel_is_dropped(tmp_path):
    rgba = np.full((2, 2, 4), 7, np.uint8)
    Image.fromarray(rgba).save(tmp_path / "x.png")

    np.testing.assert_array_equal(read_rgb(tmp_path / "x.png"), rgba[..., :3])
