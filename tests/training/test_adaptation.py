"""`qpnuclei adapt`: what it leaves behind, and that it forgets less than it could."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image, ImageColor
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.errors import UsageError
from qpnuclei.models.checkpoint import load_model, save_model
from qpnuclei.models.metadata import PostProcessing, model_hash, read_metadata
from qpnuclei.models.student import StudentNet
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.training.adaptation import (
    CARD_FILE,
    CHANGES_FILE,
    COLOURS,
    PICTURE_FILE,
    Adaptation,
    ImageChange,
    adapt,
    find_doubts,
    network_to_adapt,
)
from qpnuclei.training.callbacks import TrainingCallbacks
from qpnuclei.training.sources import find_sources
from qpnuclei.training.student.inheritance import move_back
from qpnuclei.training.student.recipe import ARCHITECTURE, StudentRecipe
from qpnuclei.training.student.rounds import train_student
from tests.colour_vision import least_difference
from tests.training.student.test_rounds import TINY
from tests.training.student.tissue import tissue

CPU = torch.device("cpu")
SHORT = {"first_round_batches": 3, "batch_size": 2, "crop_px": 64, "renditions": 0}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two images of 320x320 px, at 0.5 µm/px."""
    folder = tmp_path_factory.mktemp("slides")
    for seed in range(2):
        rgb = np.tile(tissue(seed)[0], (2, 2, 1))
        Image.fromarray(rgb).save(folder / f"ward {seed}.png")
    create_from_slides(folder / "project", sorted(folder.glob("*.png")), 0.5)
    return folder / "project"


@pytest.fixture(scope="module")
def start(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny student with a licence and a post-processing of its own."""
    folder = tmp_path_factory.mktemp("start")
    fields = {**TINY, "rounds": 1, "data_licence": "CC BY 4.0"}
    result = train_student(
        fields, find_sources([project.parent / "ward 0.png"], mpp=[0.25]), folder, device=CPU
    )
    assert result.model is not None
    network, metadata = load_model(result.model)
    path = folder / "tuned.safetensors"
    post_processing = PostProcessing(threshold=0.4, min_area_px=30)
    save_model(path, network, replace(metadata, post_processing=post_processing))
    return path


def command(project: Path, folder: Path, start: Path, *extra: str) -> str:
    settings = [part for k, v in SHORT.items() for part in ("--set", f"{k}={v}")]
    arguments = ["adapt", str(project), "-o", str(folder), "--model", str(start), *settings]
    result = CliRunner().invoke(
        app, [*arguments, "--device", "cpu", "--quiet", *extra], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


def test_it_leaves_a_model_with_card_licence_and_what_changed(
    project: Path, start: Path, tmp_path: Path
) -> None:
    output = command(project, tmp_path / "run", start, "--image", "ward 1*")

    model = tmp_path / "run" / "model.safetensors"
    assert str(model) in output
    metadata = read_metadata(model)
    assert metadata.name == "adapted"
    assert metadata.data["images"] == ["ward 1.png"]  # --image left the other out
    assert metadata.data["licence"] == "not stated; CC BY 4.0"
    assert metadata.recipe["start_sha256"] == model_hash(start)
    # As tuned as the model before it: counts of the two can be compared.
    assert metadata.post_processing == read_metadata(start).post_processing
    card = (tmp_path / "run" / CARD_FILE).read_text(encoding="utf-8")
    assert "ward 1.png" in card
    assert "That of the model it started from holds on:\n\n* CC BY 4.0\n" in card
    assert "That of the images above also holds, and is not stated" in card
    assert model_hash(start)[:12] in card
    content = json.loads((tmp_path / "run" / CHANGES_FILE).read_text())
    (change,) = content["changes"]
    assert change["image"] == "ward 1.png"
    assert change["area_mm2"] == pytest.approx((320 * 0.5 / 1000) ** 2)
    assert change["nuclei_before"] > 0
    assert f"| {change['nuclei_before']} | {change['nuclei_after']} |" in card
    with Image.open(tmp_path / "run" / PICTURE_FILE) as picture:
        assert picture.size == (2 * 512 + 4, 512 + 16)
        drawn = {pixel for _, pixel in picture.getcolors(picture.width * picture.height) or []}
    assert ImageColor.getrgb(COLOURS["both"]) in drawn
    assert least_difference(COLOURS.values()) > 11


def test_the_card_states_the_batches_of_all_rounds(
    project: Path, start: Path, tmp_path: Path
) -> None:
    command(project, tmp_path / "one", start, "--image", "ward 1*", "--set", "start_share=0.5")
    card = (tmp_path / "one" / CARD_FILE).read_text(encoding="utf-8")
    assert "(3 batches, seed 0; weights moved 50 % of the way back)." in card
    settings = ("rounds=3", "batches_per_round=2", "start_share=0.5", "vote_share=1")
    extra = [part for setting in settings for part in ("--set", setting)]
    command(project, tmp_path / "three", start, "--image", "ward 1*", *extra)
    card = (tmp_path / "three" / CARD_FILE).read_text(encoding="utf-8")
    assert (
        "(7 batches in 3 rounds, seed 0; weights moved 50 % of the way back after each round)."
    ) in card


def test_a_name_of_two_lines_is_one_in_the_card(project: Path, start: Path, tmp_path: Path) -> None:
    shutil.copytree(project, tmp_path / "project")
    file = tmp_path / "project" / "project.qpproj"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["images"][1]["imageName"] = "a\n* b"
    file.write_text(json.dumps(content), encoding="utf-8")
    command(file, tmp_path / "run", start, "--image", "a*")
    lines = (tmp_path / "run" / CARD_FILE).read_text(encoding="utf-8").splitlines()
    assert r"* a\n* b" in lines
    assert any(line.startswith(r"| a\n* b | ") for line in lines)


def test_the_card_says_of_labels_and_licence_what_the_metadata_say(
    project: Path, start: Path, tmp_path: Path
) -> None:
    network, metadata = load_model(start)
    older = tmp_path / "older.safetensors"
    save_model(older, network, replace(metadata, data={}))
    run = tmp_path / "run"
    command(project, run, older, "--image", "ward 1*", "--set", "data_licence=CC0 1.0")
    data = read_metadata(run / "model.safetensors").data
    assert (data["labels"], data["licence"]) == ("not stated", "CC0 1.0; not stated")
    card = (run / CARD_FILE).read_text(encoding="utf-8")
    assert "without labels" not in card
    assert "Those of the model it started from: not stated." in card
    assert "That of the model it started from holds on:\n\n* not stated\n" in card
    assert "That of the images above: CC0 1.0." in card


def test_an_unstated_licence_is_named_in_models_that_learn_from_it(
    project: Path, start: Path, tmp_path: Path
) -> None:
    adapted = tmp_path / "run" / "model.safetensors"
    command(project, tmp_path / "run", start, "--image", "ward 1*")
    fields = {**TINY, "rounds": 1, "start": str(adapted), "data_licence": "CC0 1.0"}
    images = find_sources([project.parent / "ward 0.png"], mpp=[0.25])

    result = train_student(fields, images, tmp_path / "next", device=CPU)

    assert result.model is not None
    licences = [read_metadata(path).data["licence"] for path in (adapted, result.model)]
    assert licences == ["not stated; CC BY 4.0", "CC0 1.0; not stated; CC BY 4.0"]


@pytest.mark.parametrize("mpp", [0.23, 0.27])
def test_areas_are_in_the_pixels_of_the_slide(
    project: Path, start: Path, tmp_path: Path, mpp: float
) -> None:
    """Within 10 % of the model's pixel size, slides are not resampled."""
    sources = find_sources([project.parent / "ward 0.png"], mpp=[mpp])
    settings = {**SHORT, "vote_share": 1.0}  # what the tiny model finds does not matter
    result = adapt(sources, tmp_path, model=str(start), settings=settings, device=CPU)
    (change,) = result.changes
    assert change.area_mm2 == round((320 * mpp / 1000) ** 2, 4)


@pytest.mark.parametrize("setting", ["mpp=0.5", "start=default-40x"])
def test_what_is_of_the_model_to_start_from_is_not_set(
    project: Path, start: Path, tmp_path: Path, setting: str
) -> None:
    arguments = ["adapt", str(project), "-o", str(tmp_path / "run"), "--model", str(start)]
    with pytest.raises(UsageError, match="is not a setting of adapt"):
        CliRunner().invoke(app, [*arguments, "--set", setting], catch_exceptions=False)
    assert not (tmp_path / "run").exists()


def test_a_model_that_states_only_what_is_not_the_default(
    project: Path, start: Path, tmp_path: Path
) -> None:
    network, metadata = load_model(start)
    defaults = {name: getattr(StudentRecipe(name=""), name) for name in ARCHITECTURE}
    stated = {k: v for k, v in metadata.architecture.items() if v != defaults[k]}
    older = tmp_path / "older.safetensors"
    save_model(older, network, replace(metadata, architecture=stated))
    assert {"stem_stride", "decoder", "encoder_convolutions", "subpixel"}.isdisjoint(stated)

    command(project, tmp_path / "run", older)

    assert read_metadata(tmp_path / "run" / "model.safetensors").architecture | stated == (
        metadata.architecture
    )


def test_slides_of_20x_adapt_the_network_that_a_run_gives_them(
    project: Path, tmp_path: Path
) -> None:
    fine = find_sources([project.parent / "ward 0.png"], mpp=[0.25])
    coarse = find_sources([project])
    assert network_to_adapt("default", coarse) == "default-20x"
    assert network_to_adapt("default", fine) == "default-40x"
    assert network_to_adapt("default", [*fine, *coarse]) == "default-40x"
    assert network_to_adapt("default-40x", coarse) == "default-40x"

    short = {"first_round_batches": 1, "batch_size": 2, "renditions": 0}
    result = adapt(coarse[:1], tmp_path / "run", settings=short, device=CPU)
    assert result.training.model is not None
    metadata = read_metadata(result.training.model)
    assert metadata.mpp == 0.5
    assert metadata.recipe["start"] == "default-20x"
    assert metadata.recipe["crop_px"] * metadata.mpp == 192 * 0.25


def test_slides_without_tissue_are_not_compared(
    project: Path,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor do they take the place of others."""
    monkeypatch.setattr("qpnuclei.training.adaptation._COMPARED_IMAGES", 2)
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in ("first.png", "last.png"):
        Image.fromarray(np.full((1100, 4300, 3), 245, np.uint8)).save(folder / name)
    shutil.copy(project.parent / "ward 0.png", folder / "inner.png")
    sources = find_sources([folder], mpp=[0.5])
    result = adapt(sources, tmp_path / "run", model=str(start), settings=SHORT, device=CPU)
    assert [source.name for source in sources] == ["first.png", "inner.png", "last.png"]
    assert [change.image for change in result.changes] == ["inner.png"]
    assert [caplog.text.count(f"{name}.png is left out") for name in ("first", "last")] == [1, 1]
    assert (tmp_path / "run" / PICTURE_FILE).is_file()


class _StopAtOnce(TrainingCallbacks):
    def stop_requested(self) -> bool:
        return True


def test_a_stopped_run_goes_on_to_the_same_model(
    project: Path, start: Path, tmp_path: Path
) -> None:
    sources = find_sources([project])

    def run(
        folder: str, resume: bool = False, callbacks: TrainingCallbacks | None = None
    ) -> Adaptation:
        return adapt(
            sources,
            tmp_path / folder,
            model=str(start),
            settings=SHORT,
            device=CPU,
            resume=resume,
            callbacks=callbacks,
        )

    whole = run("whole")
    stopped = run("stopped", callbacks=_StopAtOnce())
    assert stopped.training.stopped
    assert not (tmp_path / "stopped" / CARD_FILE).exists()
    # Once more, when the training is done and the comparison is not.
    resumed = run("stopped", resume=True)
    again = run("stopped", resume=True, callbacks=_StopAtOnce())

    assert again.training.stopped
    assert resumed.changes == whole.changes
    assert len(whole.changes) == 2
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert models[0] == models[1]


def test_weights_lie_between_the_start_and_what_was_learnt(
    project: Path, start: Path, tmp_path: Path
) -> None:
    def weights(share: float) -> torch.Tensor:
        folder = tmp_path / str(share)
        fields = {**SHORT, "start_share": share, "max_patches": 1}
        result = adapt(
            find_sources([project]), folder, model=str(start), settings=fields, device=CPU
        )
        assert result.training.model is not None
        network, _ = load_model(result.training.model)
        return torch.cat([parameter.detach().ravel() for parameter in network.parameters()])

    learnt, between = weights(0.0), weights(0.75)
    network, _ = load_model(start)
    before = torch.cat([parameter.detach().ravel() for parameter in network.parameters()])
    assert (learnt - before).abs().max() > 1e-5
    torch.testing.assert_close(between, before + 0.25 * (learnt - before), rtol=0, atol=1e-7)


def test_moving_back_leaves_counters_alone_and_the_start_as_it_was() -> None:
    torch.manual_seed(0)
    one, other = (StudentNet(base_channels=4, levels=2, max_channels=8) for _ in range(2))
    kept = {name: value.clone() for name, value in other.state_dict().items()}
    move_back(one, other, 1.0)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(value, kept[name])
    for name, value in other.state_dict().items():
        assert torch.equal(value, kept[name])


def test_a_change_for_the_worse_is_said() -> None:
    def change(
        nuclei: tuple[int, int], agreement: tuple[float | None, float | None]
    ) -> ImageChange:
        return ImageChange("a", 1.0, *nuclei, *agreement)

    assert find_doubts([change((100, 120), (0.5, 0.49))]) == []
    assert find_doubts([change((0, 0), (None, None))]) == []
    (fewer,) = find_doubts([change((100, 40), (0.5, 0.5))])
    assert "finds 40 nuclei where the original model finds 100" in fewer
    (less,) = find_doubts([change((100, 100), (0.5, 0.3)), change((9, 9), (None, 0.1))])
    assert "fell from 0.50 to 0.30" in less


def test_what_cannot_be_adapted_is_refused(project: Path, start: Path, tmp_path: Path) -> None:
    sources = find_sources([project])
    attention = tmp_path / "attention.safetensors"
    network, metadata = load_model(start)
    save_model(attention, network, replace(metadata, family="attention"))

    def refuse(match: str, **options: object) -> None:
        with pytest.raises(UsageError, match=match):
            adapt(sources, tmp_path / "run", **{"model": str(start), "device": CPU, **options})

    refuse("of the family 'attention'", model=str(attention))
    refuse("no field 'epochs'", settings={"epochs": 3})
    refuse("mpp is not a setting of adapt", settings={"mpp": 0.5})
    with pytest.raises(UsageError, match="no source is a QuPath project"):
        find_sources([project.parent / "ward 0.png"], images=["*"])
    with pytest.raises(UsageError, match=r"no image of .* matches 'ward 7'"):
        find_sources([project], images=["ward 7"])
    coarse = find_sources([project], mpp=[0.6])
    with pytest.raises(UsageError, match=r"coarser than the 0\.25 µm/px"):
        adapt(coarse, tmp_path / "run", model=str(start), device=CPU)
