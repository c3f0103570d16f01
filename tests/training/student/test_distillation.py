from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.errors import UsageError
from qpnuclei.models.checkpoint import build_network, save_model
from qpnuclei.models.metadata import ModelMetadata, model_hash, read_metadata
from qpnuclei.models.registry import resolve_model
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.training.config import read_recipe
from qpnuclei.training.sources import find_sources
from qpnuclei.training.student.batches import TrainingExample
from qpnuclei.training.student.distillation import Distillation, soften
from qpnuclei.training.student.fit import has_bfloat16
from qpnuclei.training.student.labellers import AtSeveralScales
from qpnuclei.training.student.recipe import StudentRecipe, student_recipe
from qpnuclei.training.student.rounds import train_student
from tests.training.student.tissue import samples_of, tissue

CPU = torch.device("cpu")
TINY = {
    "base_channels": 16,
    "levels": 2,
    "max_channels": 16,
    "encoder_convolutions": [1, 2],
    "rounds": 1,
    "first_round_batches": 40,
    "batch_size": 2,
    "crop_px": 64,
    "learning_rate": 0.02,
    "renditions": 1,
    "teacher_views": 1,
}


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patches")
    for seed in range(2):
        Image.fromarray(tissue(seed)[0]).save(folder / f"{seed}.png")
    return folder


def recipe(**fields: object) -> StudentRecipe:
    return student_recipe({**read_recipe("light"), **TINY, **fields})


def distillation(patches: Path, **fields: object) -> Distillation:
    return Distillation(recipe(**fields), samples_of(patches, 256), CPU)


def test_from_the_command_line_to_a_model_that_says_who_taught_it(
    patches: Path, tmp_path: Path
) -> None:
    settings = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]
    command = ["train", str(patches), "-o", str(tmp_path / "run"), "--config", "light", *settings]

    result = CliRunner().invoke(
        app, [*command, "--mpp", "0.25", "--device", "cpu", "--quiet"], catch_exceptions=False
    )

    assert result.exit_code == 0, result.output
    model = tmp_path / "run" / "model.safetensors"
    metadata = read_metadata(model)
    assert (metadata.name, metadata.family) == ("light", "student")
    assert metadata.architecture["stem_stride"] == 4
    assert metadata.recipe["teacher"] == "default"
    assert metadata.recipe["teacher_sha256"] == model_hash(resolve_model("default"))
    assert (tmp_path / "run" / "pseudo-labels" / "round-01.png").is_file()
    rgb, labels = tissue(99)
    attention, centre = Predictor.load(model, "cpu").predict_image(rgb)
    assert centre is not None
    assert attention[labels > 0].mean() > attention[labels == 0].mean() + 0.3


@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.5)])
def test_examples_hold_what_the_teacher_sees(patches: Path, scales: tuple[float, ...]) -> None:
    example_source = distillation(patches, renditions=0, label_scales=scales)

    examples = list(
        example_source.examples(list(example_source.known(None)), np.random.default_rng(0))
    )

    device = torch.device("cpu")
    precision = "bfloat16" if has_bfloat16(device) else "auto"
    teacher = Predictor.load("default", "cpu", precision=precision)
    at_scales = AtSeveralScales(teacher, scales)
    for seed, example in enumerate(examples):
        maps = np.stack(at_scales.predict_image(tissue(seed)[0]), axis=-1)
        np.testing.assert_array_equal(example.rgb, tissue(seed)[0])
        np.testing.assert_allclose(example.targets[..., :2] / 255, maps, atol=0.5 / 255 + 1e-6)
        assert set(np.unique(example.targets[..., 2])) <= {85, 255}  # 255 between nuclei


def test_every_round_draws_its_renditions_anew_from_the_same_nuclei(patches: Path) -> None:
    example_source = distillation(patches, pastes_per_mm2=0)
    known = list(example_source.known(None))

    again = list(example_source.known(None))
    first, second = (
        list(example_source.examples(known, np.random.default_rng(seed))) for seed in (1, 2)
    )

    assert [len(np.unique(labels.labels)) - 1 for labels in known] == [9, 9]
    assert again == known  # the same objects: labelled once
    np.testing.assert_array_equal(first[0].rgb, second[0].rgb)
    assert (first[1].rgb != second[1].rgb).any()
    for a, b in zip(first, second, strict=True):  # repainting changes no outline
        np.testing.assert_array_equal(a.targets, b.targets)


def test_only_what_was_pasted_is_taught_by_its_outline() -> None:
    rgb = np.zeros((2, 2, 3), np.uint8)
    original = TrainingExample(rgb, np.array([[[0, 0, 255], [255, 90, 255]]] * 2, np.uint8))
    pasted = TrainingExample(
        rgb, np.array([[[255, 70, 255], [255, 90, 255]], [[0, 0, 0]] * 2], np.uint8)
    )
    maps = np.array([[[3, 4], [200, 80]]] * 2, np.uint8)

    softened = soften(pasted, original, maps)

    assert softened.targets.tolist() == [
        [[255, 70, 255], [200, 80, 255]],  # a new nucleus; as it was
        [[3, 4, 0], [0, 0, 0]],  # of no weight any more
    ]
    assert pasted.targets[0, 1].tolist() == [255, 90, 255]  # not changed in place


@pytest.fixture
def attention_model(tmp_path: Path) -> Path:
    metadata = ModelMetadata(
        name="paper", family="attention", architecture={"width": 4, "dilations": [1]}, mpp=0.25
    )
    path = tmp_path / "paper.safetensors"
    save_model(path, build_network(metadata), metadata)
    return path


def test_teachers_that_cannot_teach_it_are_refused(patches: Path, attention_model: Path) -> None:
    with pytest.raises(UsageError, match="'paper' is of the family 'attention': it has no centre"):
        distillation(patches, teacher=str(attention_model))
    with pytest.raises(UsageError, match=r"'default-40x' works at 0\.25 µm/px, coarser"):
        distillation(patches, mpp=0.2)


def test_a_teacher_of_finer_pixels_teaches_their_means(patches: Path) -> None:
    fine = distillation(patches, renditions=1)
    coarse = distillation(patches, renditions=1, mpp=0.5)
    rng = np.random.default_rng

    pairs = zip(
        fine.examples(list(fine.known(None)), rng(0)),
        coarse.examples(list(coarse.known(None)), rng(0)),
        strict=True,
    )

    for example, reduced in pairs:
        for before, after in ((example.rgb, reduced.rgb), (example.targets, reduced.targets)):
            means = before.reshape(80, 2, 80, 2, 3).mean(axis=(1, 3))
            np.testing.assert_allclose(after, means, atol=0.51)


def test_fields_without_effect_are_refused() -> None:
    with pytest.raises(UsageError, match="min_solidity, vote_share: has no effect"):
        recipe(vote_share=0.1, min_solidity=0.8)


def test_a_run_goes_on_with_the_same_teacher_only(
    patches: Path, tmp_path: Path, attention_model: Path
) -> None:
    sources = find_sources([patches], mpp=[0.25])
    fields = {**read_recipe("light"), **TINY, "first_round_batches": 1}
    train_student(fields, sources, tmp_path / "run", device=CPU)
    replaced = tmp_path / "replaced.safetensors"
    replaced.write_bytes(attention_model.read_bytes())

    with pytest.raises(UsageError, match=r"recipe\.teacher was 'default' and is now"):
        train_student(
            {**fields, "teacher": str(replaced)}, sources, tmp_path / "run", device=CPU, resume=True
        )
