import json

import numpy as np
import pytest
import shapely
import torch
from PIL import Image
from skimage.draw import disk

from qpnuclei.errors import FormatError, MppError
from qpnuclei.evaluation.tuning import (
    LabelledImage,
    PredictedImage,
    predict,
    read_validation,
    recoloured,
    summarise,
    tune_post_processing,
    validation_digest,
    validation_doubts,
)
from qpnuclei.models.metadata import ModelMetadata, PostProcessing
from qpnuclei.models.student import StudentNet
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.writing import write_objects
from qpnuclei.segmentation.predictor import Predictor
from tests.evaluation.images import write_folder


def _image(specks: bool, threshold: float) -> PredictedImage:
    """Four nuclei where the attention passes a threshold; around them it is a little lower."""
    labels = np.zeros((120, 120), np.int32)
    attention = np.full(labels.shape, threshold - 0.02, np.float32)
    for number, (y, x) in enumerate([(30, 30), (30, 90), (90, 30), (90, 90)], start=1):
        labels[disk((y, x), 12)] = number
    attention[labels > 0] = threshold + 0.02
    if specks:
        for y, x in [(60, 20), (60, 60), (60, 100), (10, 60), (110, 60)]:
            attention[disk((y, x), 4)] = threshold + 0.02
    return PredictedImage(labels, attention, None)


def test_tuning_finds_the_threshold_that_tells_nuclei_from_the_rest():
    images = [_image(specks=False, threshold=0.5)]
    assert images[0].score(PostProcessing(threshold=0.4)).AJI < 0.1

    tuned = tune_post_processing(images, PostProcessing(threshold=0.4))

    assert tuned.threshold == 0.5
    assert images[0].score(tuned).AJI > 0.95


def test_tuning_drops_specks():
    images = [_image(specks=True, threshold=0.5)]  # specks of about 45 px
    start = PostProcessing(threshold=0.5, coarse_radius_px=0)
    assert images[0].score(start).precision < 0.5

    tuned = tune_post_processing(images, start)

    assert images[0].score(tuned).precision == 1


def test_tuning_gives_up_at_most_a_hundredth_of_what_it_started_with():
    images = [_image(specks=True, threshold=0.47)]
    start = PostProcessing(threshold=0.47, min_area_px=57)
    seen = {}

    tuned = tune_post_processing(images, start, seen.__setitem__)

    assert next(iter(seen)) == start
    assert seen[tuned] >= max(seen.values()) - 0.01


def test_of_what_is_as_good_tuning_takes_the_least_strict():
    """Nuclei of attention .9 on a ground of .1: thresholds between them find the same."""
    labels = np.zeros((120, 120), np.int32)
    for number, (y, x) in enumerate([(30, 30), (30, 90), (90, 30), (90, 90)], start=1):
        labels[disk((y, x), 12)] = number
    attention = np.where(labels > 0, 0.9, 0.1).astype(np.float32)
    strict = PostProcessing(threshold=0.7, min_mean_attention=0.8, min_area_px=100)

    tuned = tune_post_processing([PredictedImage(labels, attention, None)], strict)

    assert (tuned.threshold, tuned.min_mean_attention, tuned.min_area_px) == (0.3, 0.0, 0)


def test_sizes_that_are_tried_are_as_large_in_coarser_pixels():
    """At 0.5 µm/px, 22 px are a nucleus, and 11 px are dropped."""
    seen = {}
    start = PostProcessing().at_resolution(0.25, 0.5)

    tune_post_processing([_image(specks=True, threshold=0.5)], start, seen.__setitem__, mpp=0.5)

    assert {p.min_area_px for p in seen} == {0, 10, 20, 30}
    assert {p.maxima_radius_px for p in seen} == {2, 3, 4, 5}
    assert {p.smoothing_sigma_px for p in seen} == {0.5, 1.0, 1.5}


def test_a_best_value_at_the_end_of_the_grid_is_logged(caplog):
    """Attention of .72 in nuclei and .68 around: the highest threshold tried is the best."""
    with caplog.at_level("INFO", "qpnuclei"):
        tuned = tune_post_processing([_image(specks=False, threshold=0.7)], PostProcessing())

    assert tuned.threshold == 0.7
    assert "the best value of threshold, 0.7, is at the end of its range" in caplog.text


def test_recoloured_images_are_others_of_the_same_nuclei_and_repeatable():
    rng = np.random.default_rng(0)
    labels = np.zeros((32, 32), np.int32)
    images = [
        LabelledImage(name, rng.integers(60, 220, (32, 32, 3), np.uint8), labels) for name in "ab"
    ]

    first, again, other = recoloured(images, 0), recoloured(images, 0), recoloured(images, 1)

    for image, one, same, another in zip(images, first, again, other, strict=True):
        assert one.name == image.name
        assert one.labels is labels
        assert one.rgb.dtype == np.uint8
        np.testing.assert_array_equal(one.rgb, same.rgb)
        assert np.abs(one.rgb.astype(int) - image.rgb).mean() > 3
        assert np.abs(one.rgb.astype(int) - another.rgb).mean() > 3


def test_summary_has_mean_spread_and_interval():
    images = [_image(specks=False, threshold=0.5), _image(specks=True, threshold=0.5)]
    parameters = PostProcessing(threshold=0.5, coarse_radius_px=0)
    each = [image.score(parameters) for image in images]

    summary = summarise(images, parameters)

    assert summary["images"] == 2
    assert summary["mean"]["PQ"] == pytest.approx(np.mean([s.PQ for s in each]), abs=1e-4)
    assert summary["sd"]["PQ"] == pytest.approx(np.std([s.PQ for s in each], ddof=1), abs=1e-4)
    low, high = summary["interval"]["PQ"]
    assert low == pytest.approx(min(s.PQ for s in each), abs=1e-4)
    assert high == pytest.approx(max(s.PQ for s in each), abs=1e-4)
    json.dumps(summary)  # it goes into the header of a model file


@pytest.fixture
def folder(tmp_path):
    for sub in ("images", "labels"):
        (tmp_path / sub).mkdir()
    labels = np.zeros((64, 48), np.uint16)
    labels[8:40, 8:24] = 9
    for stem in ("a", "b"):
        Image.fromarray(np.zeros((64, 48, 3), np.uint8)).save(tmp_path / f"images/{stem}.png")
        Image.fromarray(labels).save(tmp_path / f"labels/{stem}.png")
    (tmp_path / "splits.json").write_text('{"train": ["a"], "val": ["b"]}')
    return tmp_path


def test_validation_reads_the_split_val_at_the_models_resolution(folder):
    (image,) = read_validation(folder, 0.25, 0.5)

    assert image.name == "b"
    assert image.rgb.shape == (32, 24, 3)
    expected = np.zeros((32, 24), np.int32)
    expected[4:20, 4:12] = 9
    np.testing.assert_array_equal(image.labels, expected)


def test_validation_wants_a_resolution_and_labels_of_the_images_size(folder):
    with pytest.raises(MppError):
        read_validation(folder, None, 0.25)
    Image.fromarray(np.zeros((3, 3), np.uint16)).save(folder / "labels/b.png")
    with pytest.raises(FormatError, match=r"b\.png: nuclei on 3 x 3 px do not fit .* 48 x 64"):
        read_validation(folder, 0.25, 0.25)


def test_predict_gives_maps_of_the_images_size(folder):
    architecture = {"base_channels": 4, "levels": 2, "max_channels": 8}
    metadata = ModelMetadata(name="random", family="student", architecture=architecture, mpp=0.25)
    network = StudentNet(**architecture)

    (predicted,) = predict(
        Predictor.of_network(network, metadata, torch.device("cpu")),
        read_validation(folder, 0.25, 0.25),
    )

    assert predicted.attention.shape == predicted.labels.shape == (64, 48)
    assert predicted.centre is not None
    assert predicted.centre.shape == (64, 48)


def test_validation_takes_every_kind_of_labels_that_an_evaluation_takes(tmp_path):
    folder = write_folder(tmp_path / "set", ("a",))
    (folder / "splits.json").unlink()
    (folder / "labels" / "a.png").unlink()
    outline = GeoJsonObject("detection", shapely.box(10, 10, 30, 30))
    write_objects(folder / "labels" / "a.geojson", [outline])

    (image,) = read_validation(folder, 0.25, 0.25)

    assert image.labels.sum() == 400
    assert validation_doubts(folder) == []
    assert validation_digest(folder, 0.25).startswith("1 image, ")
