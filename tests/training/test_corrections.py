"""Drawn nuclei teach beside what needs no labels."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.errors import TrainingError, UsageError
from qpnuclei.evaluation.boxes import read_boxes, read_corrected
from qpnuclei.models.metadata import read_metadata
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import open_project
from qpnuclei.segmentation.engine import engine_spec
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.training.adaptation import CARD_FILE, adapt
from qpnuclei.training.sources import find_sources
from qpnuclei.training.student.batches import TrainingExample, random_batch
from qpnuclei.training.student.corrections import correction_examples, digest, read_corrections
from qpnuclei.training.student.recipe import student_recipe
from qpnuclei.training.student.rounds import train_student
from tests.training.student.test_rounds import TINY
from tests.training.student.tissue import tissue
from tests.training.test_adaptation import SHORT, project, start

__all__ = ["project", "start"]  # fixtures

CPU = torch.device("cpu")
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@pytest.fixture
def drawn(project: Path, tmp_path: Path) -> Path:
    """The project, and in the first image a box in which one nucleus of nine is drawn."""
    place = Path(shutil.copytree(project.parent, tmp_path / "slides")) / "project"
    labels = tissue(0)[1]
    y, x = np.nonzero(labels == 5)
    nucleus = shapely.Point(x.mean() + 0.5, y.mean() + 0.5).buffer(np.sqrt(len(x) / np.pi))
    image = open_project(place).images[0]
    edit = Edit(
        annotations=[
            NewAnnotation(shapely.box(10, 10, 150, 150), uuid.uuid4(), None, PathClass("Box")),
            NewAnnotation(nucleus, uuid.uuid4(), None, PathClass("Nucleus")),
        ]
    )
    image.write(edit, image.read().fingerprint)
    return place


def test_the_boxes_of_a_project_are_read_once_however_it_is_named(drawn: Path) -> None:
    paths = [drawn, drawn / "project.qpproj", drawn / ".." / "project"]
    assert len(read_corrected(paths, ["Box"]).images) == 1


@pytest.mark.parametrize("mpp", [0.5, 0.25])
def test_a_box_is_known_inside_and_nothing_around_it(drawn: Path, mpp: float) -> None:
    (correction,) = read_corrections(read_boxes(drawn, ["Box"]).images, mpp)
    factor = round(0.5 / mpp)
    # 30 µm around, as far as the image goes.
    assert correction.rgb.shape == (210 * factor, 210 * factor, 3)
    weight, labels = correction.known.weight, correction.known.labels
    assert weight.shape == correction.rgb.shape[:2]
    assert weight.dtype == np.float32
    assert weight.sum() == (140 * factor) ** 2
    assert weight[10 * factor : 150 * factor, 10 * factor : 150 * factor].all()
    area = np.count_nonzero(tissue(0)[1] == 5) * factor**2
    assert np.count_nonzero(labels) == pytest.approx(area, rel=0.06)
    assert correction.nuclei == labels.max() == 1


def test_crops_of_boxes_are_as_many_as_the_share_says(drawn: Path) -> None:
    corrections = read_corrections(read_boxes(drawn, ["Box"]).images, 0.5)
    recipe = student_recipe({**TINY, "mpp": 0.5, "corrections_share": 0.2, "renditions": 2})
    dark = np.zeros((300, 400, 3), np.uint8)
    others = [TrainingExample(dark, dark)] * 2
    examples = [*correction_examples(corrections, others, recipe, np.random.default_rng(0))]
    assert len(examples) == 3
    areas = [np.prod(example.rgb.shape[:2]) * example.likelihood for example in examples]
    assert sum(areas) / (sum(areas) + 2 * 300 * 400) == pytest.approx(0.2)
    images, _ = random_batch(
        [*others, *examples],
        400,
        32,
        np.random.default_rng(1),
        MEAN,
        STD,
        strong_colours=0,
        borrowed_colours=0,
    )
    bright = (images.mean(dim=(1, 2, 3)) > 0.3).double().mean()
    assert 0.12 < bright < 0.28


def found(model: Path, seed: int) -> np.ndarray:
    """Return the mean attention in each of the nine nuclei of a piece of tissue."""
    rgb, labels = tissue(seed)
    attention, _ = Predictor.load(model, "cpu").predict_image(rgb)
    return np.array([attention[labels == label].mean() for label in range(1, 10)])


def test_what_is_drawn_is_learned(drawn: Path, start: Path, tmp_path: Path) -> None:
    """Eight nuclei of nine are said to be none: a model that is told so believes less in all."""
    settings = {
        **SHORT,
        "first_round_batches": 30,
        "corrections_share": 0.9,
        "start_share": 0.0,
        "later_learning_rate": 0.02,
    }
    made = []
    for boxes in ((), read_boxes(drawn, ["Box"]).images):
        result = adapt(
            find_sources([drawn]),
            tmp_path / f"run {len(boxes)}",
            model=str(start),
            settings=settings,
            device=CPU,
            corrections=boxes,
        )
        assert result.training.model is not None
        made.append(result.training.model)
    without, with_them = (found(model, 0) for model in made)
    assert (with_them < without - 0.05).all()
    first, second = (read_metadata(model).data for model in made)
    assert (first["labels"], second["labels"]) == ("none", "1 nucleus drawn in 1 box")
    assert second["corrections"] == {"boxes": 1, "nuclei": 1}
    cards = [(model.parent / CARD_FILE).read_text(encoding="utf-8") for model in made]
    assert "no label of any of them was read" in cards[0]
    assert "; with 1 nucleus drawn in 1 box:" in cards[1]
    assert "without labels" not in cards[1]

    # Whoever goes on from it, or is taught by it, has learned from the nuclei, too.
    child = adapt(
        find_sources([drawn]),
        tmp_path / "child",
        model=str(made[1]),
        settings={**SHORT, "vote_share": 1.0},
        device=CPU,
    )
    own_labels = ("vote_share", "min_probability")
    fields = {name: value for name, value in TINY.items() if name not in own_labels}
    taught = train_student(
        {**fields, "rounds": 1, "max_enlargement": 2.2, "teacher": str(made[1])},
        find_sources([drawn]),
        tmp_path / "taught",
        device=CPU,
    )
    for model in (child.training.model, taught.model):
        assert model is not None
        data = read_metadata(model).data
        assert data["labels"] == "1 nucleus drawn in 1 box"
        assert "corrections" not in data
        assert engine_spec(str(model)).details["labels"] == "1 nucleus drawn in 1 box"
    card = (tmp_path / "child" / CARD_FILE).read_text(encoding="utf-8")
    assert "no label of any of them was read" in card
    assert "Those of the model it started from: 1 nucleus drawn in 1 box." in card
    assert "without labels" not in card
    assert "that needs labels that it did not learn from" in card

    # The same through what another model predicts.
    labelled = adapt(
        find_sources([drawn]),
        tmp_path / "labelled",
        model=str(start),
        settings={**SHORT, "vote_share": 1.0, "labellers": [str(made[1])]},
        device=CPU,
    )
    assert labelled.training.model is not None
    data = read_metadata(labelled.training.model).data
    assert data["labels"] == "1 nucleus drawn in 1 box"
    card = (tmp_path / "labelled" / CARD_FILE).read_text(encoding="utf-8")
    assert "without labels" not in card
    assert "It also learned from what other models predict: `adapted`." in card
    assert "Those of the models it learned from: 1 nucleus drawn in 1 box." in card


def test_the_command(drawn: Path, start: Path, tmp_path: Path) -> None:
    settings = [part for k, v in SHORT.items() for part in ("--set", f"{k}={v}")]

    def command(*extra: str, code: int = 0) -> str:
        arguments = ["adapt", str(drawn), "-o", str(tmp_path / "run"), "--model", str(start)]
        arguments += [*settings, "--device", "cpu", "--quiet", *extra]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == code
        return result.output

    output = command("--corrections", "Box", "--truth-class", "Nucleus")
    assert "Truth: 1 nucleus of class Nucleus in 1 box of class Box." in output
    # Going on with other nuclei would be another run.
    with pytest.raises((UsageError, TrainingError), match="corrections"):
        command("--resume")
    with pytest.raises(UsageError, match="--truth-class was given without --corrections"):
        command("--truth-class", "Nucleus")
    with pytest.raises(UsageError, match="no annotation of class 'Bax' with an area in"):
        command("--corrections", "Bax")
    with pytest.raises(UsageError, match="no source is a QuPath project"):
        read_corrected([drawn.parent / "ward 0.png"], ["Box"])


def test_another_outline_is_another_digest(drawn: Path) -> None:
    boxes = read_boxes(drawn, ["Box"]).images
    one, again, coarser = (digest(read_corrections(boxes, mpp)) for mpp in (0.5, 0.5, 1.0))
    assert one == again != coarser
