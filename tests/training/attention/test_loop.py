from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from msgspec import structs
from PIL import Image

from qpnuclei.errors import TrainingError, UsageError
from qpnuclei.evaluation.tuning import predict, read_validation
from qpnuclei.models.metadata import PostProcessing, read_metadata
from qpnuclei.pipeline.image import segment
from qpnuclei.segmentation.maps_engine import MapsEngine
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.training.attention import loop
from qpnuclei.training.attention.collapse import collapse
from qpnuclei.training.attention.learner import Learner
from qpnuclei.training.attention.loop import learning_rate_factor, train_attention
from qpnuclei.training.attention.losses import TRANSFORMS
from qpnuclei.training.attention.scale import build_scale_network
from qpnuclei.training.attention.starts import epoch_batches
from qpnuclei.training.callbacks import TrainingCallbacks, TrainingResult
from qpnuclei.training.config import AttentionRecipe, attention_recipe
from qpnuclei.training.sources import Source, find_sources

PARTS = ("attention_net", "scale_net")
TINY = {
    "name": "tiny",
    "origin": "ours",
    "width": 4,
    "dilations": [1, 2],
    "scale_network": "resnet10",
    "scale_width": 4,
    "starts": 1,
    "scales": [0.25, 0.5],
    "tile_px": 112,
    "crop_px": 64,
    "batch_size": 4,
    "batches_per_epoch": 3,
    "epochs": 3,
    "anchor_weight": 1,
    "eta": 0.2,
}


def recipe(**changes: object) -> AttentionRecipe:
    return attention_recipe(TINY | changes)


def train(folder: Path, sources: list[Source], **arguments: object) -> TrainingResult:
    arguments = {"recipe": recipe(), "seed": 3} | arguments
    return train_attention(
        sources=sources, folder=folder, device=torch.device("cpu"), **arguments  # type: ignore[arg-type]
    )  # fmt: skip


class StopAt(TrainingCallbacks):
    """Asks to stop after so many batches; it is asked once before each."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def stop_requested(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, sources: list[Source], dataset: Path
) -> tuple[Path, TrainingResult]:
    """A run of three epochs that nothing interrupted, with validation."""
    folder = tmp_path_factory.mktemp("run") / "whole"
    return folder, train(folder, sources, validation=dataset, mpp=0.25)


def test_a_run_leaves_all_it_should(finished: tuple[Path, TrainingResult]) -> None:
    folder, result = finished
    assert result.epochs == 3
    assert not result.stopped
    assert result.model == folder / "model.safetensors"
    names = {re.sub("-[0-9a-f]{16}", "", path.name) for path in folder.iterdir()}
    assert names == {
        "attention", "metrics.csv", "model.safetensors", "state.pt", "tensorboard", "tiles.parquet"
    }  # fmt: skip
    assert len(list((folder / "attention").iterdir())) == 3
    assert list((folder / "tensorboard").iterdir())
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1.0", "2.0", "3.0"]
    assert {
        "loss", "scale loss", "smoothness loss", "equivariance loss", "anchor loss",
        "scale accuracy", "tau", "attention fraction", "anchor agreement", "learning rate",
        "validation dice", "validation pixel_auc",
    } <= set(rows[0])  # fmt: skip


def test_the_best_epoch_is_kept(finished: tuple[Path, TrainingResult]) -> None:
    folder, result = finished
    with (folder / "metrics.csv").open() as file:
        dice = [float(row["validation dice"]) for row in csv.DictReader(file)]
    assert result.best_epoch == 1 + int(np.argmax(dice))
    assert result.best_score == max(dice)
    metadata = read_metadata(folder / "model.safetensors")
    assert metadata.recipe["epoch"] == result.best_epoch
    assert metadata.validation["dice"] == max(dice)


def test_the_post_processing_is_chosen_on_the_validation_images(
    finished: tuple[Path, TrainingResult], dataset: Path
) -> None:
    folder, _ = finished
    predictor = Predictor.load(folder / "model.safetensors", device="cpu")
    metadata = predictor.metadata
    predicted = predict(predictor, read_validation(dataset, 0.25, metadata.mpp))
    default = PostProcessing().at_resolution(0.25, metadata.mpp)
    best, usual = (predicted[0].score(p) for p in (metadata.post_processing, default))
    assert best.AJI + best.PQ >= usual.AJI + usual.PQ
    recorded = metadata.validation["mean"]["AJI"]
    assert recorded == pytest.approx(best.AJI, abs=1e-4)


@pytest.mark.parametrize("questions", [9, 14], ids=["before the images", "between trials"])
def test_a_stop_while_the_post_processing_is_chosen(
    finished: tuple[Path, TrainingResult],
    sources: list[Source],
    dataset: Path,
    tmp_path: Path,
    questions: int,
) -> None:
    arguments = {"validation": dataset, "mpp": 0.25}
    stopped = train(tmp_path / "run", sources, callbacks=StopAt(questions), **arguments)
    assert (stopped.stopped, stopped.epochs) == (True, 3)
    metadata = read_metadata(tmp_path / "run" / "model.safetensors")
    assert metadata.post_processing == PostProcessing().at_resolution(0.25, metadata.mpp)
    assert "mean" not in metadata.validation

    result = train(tmp_path / "run", sources, resume=True, **arguments)
    assert not result.stopped
    assert result.model is not None
    assert result.model.read_bytes() == (finished[0] / "model.safetensors").read_bytes()


def test_the_post_processing_is_chosen_once_and_again_for_a_better_epoch(
    sources: list[Source], dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def trained(epochs: int) -> tuple[int | None, int]:
        """Return the best epoch, and how often a post-processing was chosen."""
        caplog.clear()
        result = train(
            tmp_path,
            sources,
            recipe=recipe(epochs=epochs),
            validation=dataset,
            mpp=0.25,
            resume=(tmp_path / "state.pt").exists(),
        )
        return result.best_epoch, caplog.text.count("choosing the post-processing")

    assert [trained(epochs) for epochs in (1, 1)] == [(1, 1), (1, 0)]
    assert trained(2) in [(1, 0), (2, 1)]


def test_the_model_says_how_it_was_made_and_runs(
    finished: tuple[Path, TrainingResult], sources: list[Source]
) -> None:
    folder, _ = finished
    predictor = Predictor.load(folder / "model.safetensors", device="cpu")
    metadata = predictor.metadata
    assert (metadata.name, metadata.family) == ("tiny", "attention")
    assert metadata.mpp == pytest.approx(0.25 / 1.5)  # its F works at half resolution
    assert metadata.recipe["seed"] == 3
    assert metadata.recipe["anchor_weight"] == 1
    assert metadata.data == {
        "images": ["a.png", "b.png"],
        "tiles": {"0.25 µm/px": 32, "0.5 µm/px": 8},
    }
    assert metadata.colour.method == "reinhard"
    assert metadata.colour.target_mean is not None
    assert metadata.tau is not None
    assert {"qpnuclei", "torch"} <= set(metadata.versions)
    rgb = np.asarray(Image.open(sources[0].path))
    assert segment(MapsEngine(predictor), rgb, mpp=0.25).measurements


@pytest.mark.parametrize("batches", [3, 4])  # at the end of an epoch, and within one
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path,
    sources: list[Source],
    dataset: Path,
    finished: tuple[Path, TrainingResult],
    batches: int,
) -> None:
    whole, expected = finished
    folder = tmp_path / "resumed"
    arguments = {"validation": dataset, "mpp": 0.25}
    first = train(folder, sources, callbacks=StopAt(batches), **arguments)
    assert first.stopped
    assert first.epochs == 1
    second = train(folder, sources, resume=True, **arguments)
    assert (second.best_epoch, second.best_score) == (expected.best_epoch, expected.best_score)
    one, other = (safetensors.torch.load_file(f / "model.safetensors") for f in (whole, folder))
    assert all(torch.equal(one[name], other[name]) for name in one)
    states = [torch.load(f / "state.pt", weights_only=True) for f in (whole, folder)]
    for part in ("scale_net", "activation", "attention_net", "average", "average_activation"):
        one, other = (s["learner"][part] for s in states)
        assert all(torch.equal(one[name], other[name]) for name in one)
    rows = []
    for f in (whole, folder):
        with (f / "metrics.csv").open() as file:
            rows.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    assert rows[0] == rows[1]


def test_a_run_stopped_before_its_first_epoch_has_no_model_but_goes_on(
    tmp_path: Path, sources: list[Source]
) -> None:
    short = recipe(epochs=1)
    first = train(tmp_path, sources, recipe=short, callbacks=StopAt(1))
    assert (first.model, first.epochs, first.stopped) == (None, 0, True)
    second = train(tmp_path, sources, recipe=short, resume=True)
    assert (second.epochs, second.best_epoch, second.best_score) == (1, 1, None)


def test_the_model_names_only_images_that_it_learned_from(
    tmp_path: Path, sources: list[Source]
) -> None:
    path = tmp_path / "blank.png"
    Image.fromarray(np.full((400, 400, 3), 250, np.uint8)).save(path)
    blank = find_sources([path], mpp=[0.25])
    result = train(tmp_path / "run", [sources[0], *blank, sources[1]], recipe=recipe(epochs=1))
    assert result.model is not None
    assert read_metadata(result.model).data["images"] == ["a.png", "b.png"]


def test_a_finished_run_can_be_given_more_epochs(tmp_path: Path, sources: list[Source]) -> None:
    train(tmp_path, sources, recipe=recipe(epochs=1))
    more = train(tmp_path, sources, recipe=recipe(epochs=2), resume=True)
    assert more.epochs == 2
    assert more.best_epoch == 2  # without validation the last epoch is kept


def test_what_is_saved_is_the_running_mean_and_its_tau(
    tmp_path: Path, sources: list[Source]
) -> None:
    train(tmp_path, sources, recipe=recipe(epochs=1))
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    learner = torch.load(tmp_path / "state.pt", weights_only=True)["learner"]
    average = {
        name.removeprefix("module."): value
        for name, value in learner["average"].items()
        if name.startswith("module.")
    }
    assert saved.keys() == average.keys()
    assert all(torch.equal(saved[name], average[name]) for name in saved)
    weights = [name for name in saved if name.endswith(".weight")]
    assert not any(torch.equal(saved[name], learner["attention_net"][name]) for name in weights)
    tau = read_metadata(tmp_path / "model.safetensors").tau
    assert tau == float(learner["average_activation"]["tau"]) != float(learner["activation"]["tau"])


def test_resuming_with_another_recipe_is_refused(tmp_path: Path, sources: list[Source]) -> None:
    train(tmp_path, sources, recipe=recipe(epochs=1))
    with pytest.raises(UsageError, match=r"recipe\.learning_rate was 0\.001 and is now 0\.1"):
        train(tmp_path, sources, recipe=recipe(learning_rate=0.1), resume=True)


def test_resuming_with_other_validation_images_is_refused(
    finished: tuple[Path, TrainingResult], sources: list[Source], dataset: Path
) -> None:
    folder, _ = finished
    others: tuple[dict[str, object], ...] = (
        {},
        {"validation": dataset, "mpp": 0.3},
    )
    for arguments in others:
        with pytest.raises(UsageError, match=r"resume: validation was '1 image, .* is now"):
            train(folder, sources, resume=True, **arguments)


def test_a_diverging_run_stops_and_says_what_is_kept(tmp_path: Path, sources: list[Source]) -> None:
    with pytest.raises(TrainingError, match=r"epoch 1, batch \d: .* became NaN") as caught:
        # No recipe may have such a weight: it overflows at once.
        train(tmp_path, sources, recipe=structs.replace(recipe(), smoothness_weight=1e39))
    assert "no epoch was finished" in caught.value.what


def test_a_collapsed_run_keeps_its_last_good_epoch(tmp_path: Path, sources: list[Source]) -> None:
    train(tmp_path, sources, recipe=recipe(epochs=1))
    before = (tmp_path / "model.safetensors").read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        # Whatever eta makes of it, the attention of the next epoch counts as a collapse.
        patch.setattr("qpnuclei.training.attention.collapse._HOLDS_EVERYTHING", 0.01)
        with pytest.raises(TrainingError, match=r"epoch 2: .*it holds \d+.*of epoch 1") as caught:
            train(tmp_path, sources, recipe=recipe(epochs=2), resume=True)
    assert "anchored" in caught.value.hint
    assert (tmp_path / "model.safetensors").read_bytes() == before
    result = train(tmp_path, sources, recipe=recipe(epochs=2, stop_on_collapse=False), resume=True)
    assert result.epochs == 2


def test_what_counts_as_collapse() -> None:
    good = {"attention fraction": 0.2, "scale accuracy": 0.9}
    assert collapse(good, 3, 10_000) == ""
    assert "holds 0.01%" in collapse(good | {"attention fraction": 1e-4}, 3, 1)
    assert "holds 99.00%" in collapse(good | {"attention fraction": 0.99}, 3, 1)
    guessing = good | {"scale accuracy": 0.35}
    assert collapse(guessing, 3, 100) == ""  # it has hardly begun
    assert "35% of cases, by chance it would be 33%" in collapse(guessing, 3, 1000)


def test_the_learning_rate_drops_at_each_step() -> None:
    steps = recipe(lr_steps=[3, 6], lr_factor=0.1)
    factors = [learning_rate_factor(steps, epoch) for epoch in range(8)]
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_of_several_starts_the_one_goes_on_that_agrees_best_with_haematoxylin(
    tmp_path: Path, sources: list[Source], caplog: pytest.LogCaptureFixture
) -> None:
    several = recipe(starts=3, start_batches=8, epochs=1)
    with caplog.at_level("INFO", "qpnuclei"):
        result = train(tmp_path / "several", sources, recipe=several)
    said = [re.findall(r"[-.\d]+", m) for m in caplog.messages if m.startswith("start ")]
    # All three; the better two after a quarter of the batches; the best one after half of them.
    assert [int(batches) for _, _, batches, _ in said] == [2, 2, 2, 4, 4, 8]
    order = [float(agreement) for *_, agreement in said]
    assert order == [*sorted(order[:3], reverse=True), *sorted(order[3:5], reverse=True), order[5]]
    assert len(set(order[:3])) > 1  # of different random weights
    assert {start for start, *_ in said[3:5]} == {start for start, *_ in said[:2]}
    assert (said[5][0], order[5]) == (said[3][0], order[5])
    assert f"training continues from the start with agreement {order[5]:.2f}" in caplog.messages
    assert [m for m in caplog.messages if m.startswith("scale network")] == [
        "scale network resnet10 starts from random weights"
    ]
    again = train(tmp_path / "again", sources, recipe=several)
    assert result.model is not None
    assert again.model is not None
    assert result.model.read_bytes() == again.model.read_bytes()


def test_what_the_scale_network_starts_from_is_said_once_and_not_when_a_run_goes_on(
    tmp_path: Path, sources: list[Source], caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "g.safetensors"
    safetensors.torch.save_file(build_scale_network("resnet10", 2, width=4).state_dict(), file)
    several = recipe(starts=2, start_batches=4, epochs=1)
    folder = tmp_path / "run"
    with caplog.at_level("INFO", "qpnuclei"):
        # The starts take five batches, so this one is stopped within its epoch.
        train(folder, sources, recipe=several, backbone_weights=file, callbacks=StopAt(7))
        assert train(folder, sources, recipe=several, resume=True).epochs == 1
    said = [m for m in caplog.messages if m.startswith("scale network")]
    assert said == [f"scale network resnet10 starts from {file}"]


def test_the_starts_have_a_share_of_attention_of_their_own(
    tmp_path: Path, sources: list[Source]
) -> None:
    held: dict[int, list[float]] = {0: [], 1: []}

    class Listener(TrainingCallbacks):
        def on_batch_end(self, epoch: int, batch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
            held[epoch].append(metrics["attention fraction"])

    several = recipe(starts=2, start_batches=4, epochs=1, eta=0.1, start_eta=0.6)
    train(tmp_path, sources, recipe=several, callbacks=Listener())
    assert np.mean(held[0]) > 0.5
    assert np.mean(held[1]) < 0.2


def test_a_run_stopped_anywhere_goes_on_as_if_it_had_not_been(
    tmp_path: Path, sources: list[Source]
) -> None:
    several = recipe(starts=2, start_batches=4, epochs=1)
    file = tmp_path / "g.safetensors"
    safetensors.torch.save_file(build_scale_network("resnet10", 2, width=4).state_dict(), file)

    def trained(name: str, **arguments: object) -> TrainingResult:
        return train(tmp_path / name, sources, recipe=several, backbone_weights=file, **arguments)

    whole = trained("whole").model
    assert whole is not None
    for questions in range(8):  # before each of the 5 batches of the starts and the 3 of the epoch
        name = f"stopped-{questions}"
        first = trained(name, callbacks=StopAt(questions))
        assert (first.model, first.epochs, first.stopped) == (None, 0, True)
        second = trained(name, resume=True)
        assert second.model is not None
        assert second.model.read_bytes() == whole.read_bytes()


def test_a_run_stopped_among_its_starts_goes_on_from_the_same_backbone(
    tmp_path: Path, sources: list[Source]
) -> None:
    file = tmp_path / "g.safetensors"
    safetensors.torch.save_file(build_scale_network("resnet10", 2, width=4).state_dict(), file)
    folder, several = tmp_path / "run", recipe(starts=2, start_batches=4)
    train(folder, sources, recipe=several, backbone_weights=file, callbacks=StopAt(2))
    with pytest.raises(UsageError, match=r"backbone was '.*g\.safetensors' and is now None"):
        train(folder, sources, recipe=several, resume=True)
    with pytest.raises(UsageError, match="holds a training run"):
        train(folder, sources, recipe=several, backbone_weights=file)


def test_the_starts_tell_how_many_batches_they_see(tmp_path: Path, sources: list[Source]) -> None:
    class Listener(TrainingCallbacks):
        expected = 0
        numbers: list[int] = []  # noqa: RUF012

        def on_starts_begin(self, batches: int) -> None:
            self.expected = batches

        def on_batch_end(self, epoch: int, batch: int, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
            if epoch == 0:
                self.numbers.append(batch)

    listener = Listener()
    several = recipe(starts=5, start_batches=8, epochs=1)
    train(tmp_path, sources, recipe=several, callbacks=listener)
    # 2 batches of 5 starts, 2 more of the better 3, 4 more of the best 2.
    assert listener.numbers == list(range(1, 25))
    assert listener.expected == 24


def test_epochs_never_see_the_batches_of_the_starts_however_many_they_are() -> None:
    fields = {"batches_per_epoch": 100, "start_batches": 50}
    assert list(epoch_batches(recipe(epochs=5, starts=1, **fields))) == list(range(500))
    # With the published models of four epochs, the starts saw batches 400 to 449.
    assert list(epoch_batches(recipe(epochs=4, starts=8, **fields))) == list(range(400))
    more = list(epoch_batches(recipe(epochs=6, starts=8, **fields)))
    assert more == [*range(400), *range(450, 650)]


def test_more_epochs_after_several_starts_are_the_same_as_all_at_once(
    tmp_path: Path, sources: list[Source]
) -> None:
    two, one = (recipe(starts=2, start_batches=4, epochs=epochs) for epochs in (2, 1))
    whole = train(tmp_path / "whole", sources, recipe=two).model
    assert whole is not None
    train(tmp_path / "extended", sources, recipe=one)
    extended = train(tmp_path / "extended", sources, recipe=two, resume=True).model
    assert extended is not None
    weights = [safetensors.torch.load_file(path) for path in (whole, extended)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_an_epoch_whose_files_are_not_complete_is_done_again(
    tmp_path: Path, sources: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = recipe(epochs=2)

    def killed(_folder: Path, history: list[dict[str, float]]) -> None:
        if len(history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qpnuclei.training.attention.loop.write_metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, sources, recipe=short)
    assert train(tmp_path, sources, recipe=short, resume=True).epochs == 2
    with (tmp_path / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1.0", "2.0"]


@pytest.mark.parametrize(
    "name", ["validate", "save_model", "write_metrics", "write_attention_grid"]
)
def test_a_run_killed_while_its_first_epoch_is_kept_goes_on(
    tmp_path: Path,
    sources: list[Source],
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    short = {"recipe": recipe(epochs=1), "validation": dataset, "mpp": 0.25}
    whole = train(tmp_path / "whole", sources, **short).model
    complete = getattr(loop, name)

    def killed_after(*arguments: object) -> None:
        complete(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, name, killed_after)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed", sources, **short)
    resumed = train(tmp_path / "killed", sources, **short, resume=True).model
    assert whole is not None
    assert resumed is not None
    assert resumed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("starts", [1, 2])
def test_a_seed_of_more_than_64_bits(tmp_path: Path, sources: list[Source], starts: int) -> None:
    large = {"recipe": recipe(epochs=1, starts=starts, start_batches=4), "seed": 2**64 + 3}
    result = train(tmp_path, sources, **large)
    assert result.model is not None
    assert read_metadata(result.model).recipe["seed"] == 2**64 + 3
    assert train(tmp_path, sources, **large, resume=True).epochs == 1


def test_patches_only_refuses_whole_slides(tmp_path: Path, sources: list[Source]) -> None:
    slide = dataclasses.replace(sources[0], width=50_000)
    with pytest.raises(UsageError, match=r"a\.png \(50000x400 px\) is a whole slide"):
        train(tmp_path, [slide], recipe=recipe(patches_only=True))


def test_the_two_networks_have_learning_rates_of_their_own() -> None:
    rgb = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    labels = torch.tensor([0, 0, 1, 1])
    still = recipe(scale_learning_rate=1e-12, weight_decay=0)
    learner = Learner(still, torch.device("cpu"), seed=0)
    before = {part: [p.clone() for p in getattr(learner, part).parameters()] for part in PARTS}
    learner.step(rgb, labels, TRANSFORMS["transpose"])
    moved = {
        part: max(
            (new - old).abs().max().item()
            for old, new in zip(before[part], getattr(learner, part).parameters(), strict=True)
        )
        for part in PARTS
    }
    assert moved["attention_net"] > 0.9 * still.learning_rate  # Adam's first step
    assert moved["scale_net"] < 1e-6


def test_a_step_moves_both_networks_and_a_clipped_one_less() -> None:
    rgb = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    labels = torch.tensor([0, 0, 1, 1])
    for part in PARTS:
        learner = Learner(recipe(), torch.device("cpu"), seed=0)
        before = [p.clone() for p in getattr(learner, part).parameters()]
        metrics = learner.step(rgb, labels, TRANSFORMS["transpose"])
        after = getattr(learner, part).parameters()
        assert any(not torch.equal(b, a) for b, a in zip(before, after, strict=True))
        terms = [v for name, v in metrics.items() if name.endswith(" loss")]
        assert metrics["loss"] == pytest.approx(sum(terms), rel=1e-5)


def test_initial_weights_follow_from_the_seed_and_leave_torchs_generator_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    one, same, other = (Learner(recipe(), torch.device("cpu"), seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(1), expected)
    weights = [learner.attention_net.stem.weight for learner in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
