import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from msgspec import structs
from PIL import Image

from qpnuclei.errors import NotFoundError, TrainingError, UsageError
from qpnuclei.models.checkpoint import load_model, save_model
from qpnuclei.models.metadata import NO_LABELS, NOT_STATED, model_hash, read_metadata
from qpnuclei.models.registry import DEFAULT_MODEL, network_for, resolve_model
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.training.callbacks import TrainingCallbacks
from qpnuclei.training.config import read_recipe
from qpnuclei.training.run_folder import load_state, save_state
from qpnuclei.training.sources import find_sources
from qpnuclei.training.student.labellers import AtSeveralScales, load_labellers
from qpnuclei.training.student.patches import sample_slides
from qpnuclei.training.student.recipe import StudentRecipe, student_recipe
from qpnuclei.training.student.rounds import train_student
from qpnuclei.training.student.self_training import SelfTraining
from tests.training.student.tissue import samples_of, tissue

TINY = {
    "family": "student",
    "name": "tiny",
    "base_channels": 4,
    "levels": 2,
    "max_channels": 8,
    "rounds": 2,
    "first_round_batches": 60,
    "batches_per_round": 3,
    "batch_size": 2,
    "crop_px": 64,
    "learning_rate": 0.02,
    "renditions": 1,
    "min_probability": 0.3,
    "vote_share": 0.9,  # so small a student cannot teach much
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    for sub in ("images", "labels"):
        (folder / sub).mkdir()
    for seed in range(3):
        rgb, labels = tissue(seed)
        Image.fromarray(rgb).save(folder / f"images/{seed}.png")
        Image.fromarray(labels).save(folder / f"labels/{seed}.png")
    (folder / "splits.json").write_text('{"train": ["0", "1"], "val": ["2"]}')
    return folder


@pytest.fixture(scope="module")
def run(patches, tmp_path_factory):
    """One whole run, uninterrupted."""
    folder = tmp_path_factory.mktemp("run")
    return folder, train(patches, folder)


def train(patches, folder, **more):
    sources = find_sources([patches], mpp=[0.25])
    return train_student(TINY, sources, folder, device=CPU, validation=patches, mpp=0.25, **more)


def assert_resumed_is(whole, patches, folder):
    """Resume a run, and compare it with a whole one."""
    resumed = train(patches, folder, resume=True)
    assert (resumed.best_epoch, resumed.best_score) == (whole.best_epoch, whole.best_score)
    assert resumed.model.read_bytes() == whole.model.read_bytes()


def _scores(folder):
    rows = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
    return [(float(row["validation AJI"]) + float(row["recoloured AJI"])) / 2 for row in rows]


def test_a_run_makes_a_model_that_says_where_it_comes_from(run):
    folder, result = run

    metadata = read_metadata(result.model)
    assert result.epochs == 2
    assert not result.stopped
    assert metadata.family == "student"
    assert metadata.recipe["rounds"] == 2
    assert metadata.recipe["seed"] == 0
    assert metadata.recipe["round"] == result.best_epoch
    assert metadata.data["images"] == ["0.png", "1.png"]  # never those of the split val
    assert metadata.validation["images"] == 1
    assert 0 < metadata.validation["recoloured"]["AJI"] <= 1
    assert metadata.recipe["start_sha256"] is None
    assert result.score_name == "validation AJI"
    assert result.best_score == max(_scores(folder))
    assert (folder / "pseudo-labels" / "round-02.png").is_file()


def test_the_model_finds_nuclei_it_was_never_shown(run):
    _, result = run
    rgb, labels = tissue(99)

    attention, centre = Predictor.load(result.model, "cpu").predict_image(rgb)

    assert centre is not None
    assert attention[labels > 0].mean() > attention[labels == 0].mean() + 0.15


def test_metrics_have_a_row_per_round(run):
    folder, _ = run

    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))

    assert [float(row["round"]) for row in rows] == [1, 2]
    assert all(float(row["nuclei"]) >= 9 for row in rows)
    for name in ("validation AJI", "recoloured AJI"):
        assert all(0 <= float(row[name]) <= 1 for row in rows)


def test_a_round_whose_files_are_not_complete_is_done_again(patches, tmp_path, monkeypatch):
    sources = find_sources([patches], mpp=[0.25])
    short = {**TINY, "first_round_batches": 3, "min_probability": 0.0}

    def killed(_folder, history):
        if len(history) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qpnuclei.training.student.rounds.write_metrics", killed)
        with pytest.raises(KeyboardInterrupt):
            train_student(short, sources, tmp_path, device=CPU)
    assert train_student(short, sources, tmp_path, device=CPU, resume=True).epochs == 2
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [float(row["round"]) for row in rows] == [1, 2]


class StopInRound2(TrainingCallbacks):
    """Asks to stop once the first round is done."""

    def __init__(self):
        self.rounds = 0

    def on_epoch_end(self, epoch, *_):
        self.rounds = epoch

    def stop_requested(self):
        return self.rounds >= 1


def test_a_resumed_run_equals_an_uninterrupted_one(run, patches, tmp_path):
    stopped = train(patches, tmp_path, callbacks=StopInRound2())
    assert (stopped.stopped, stopped.epochs) == (True, 1)
    assert_resumed_is(run[1], patches, tmp_path)


class StopAtBatch(TrainingCallbacks):
    """Asks to stop before a batch of a round."""

    def __init__(self, epoch, batch):
        self.at, self.last = (epoch, batch), (1, 0)

    def on_batch_end(self, epoch, batch, *_):
        self.last = (epoch, batch)

    def stop_requested(self):
        return self.last == self.at


@pytest.mark.parametrize("at", [(1, 0), (1, 31), (2, 2)])
def test_a_run_resumed_within_a_round_equals_an_uninterrupted_one(run, patches, tmp_path, at):
    stopped = train(patches, tmp_path, callbacks=StopAtBatch(*at))
    assert (stopped.stopped, stopped.epochs) == (True, at[0] - 1)
    assert (tmp_path / "state.pt").is_file()
    with pytest.raises(UsageError, match="holds a training run"):
        train(patches, tmp_path)
    assert_resumed_is(run[1], patches, tmp_path)


class StopAtLabel(TrainingCallbacks):
    """Asks to stop once so many patches of a round have labels."""

    def __init__(self, epoch, done):
        self.at, self.last, self.epochs = (epoch, done), (1, 0), 0
        self.heard = []

    def on_epoch_end(self, epoch, *_):
        self.epochs = epoch

    def on_labels(self, done, total):
        self.last = (self.epochs + 1, done)
        self.heard.append((done, total))

    def stop_requested(self):
        return self.last == self.at


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_stop_is_answered_while_patches_are_labelled(run, patches, tmp_path, epoch):
    callbacks = StopAtLabel(epoch, 1)
    stopped = train(patches, tmp_path, callbacks=callbacks)
    assert (stopped.stopped, stopped.epochs) == (True, epoch - 1)
    assert callbacks.heard == [(1, 2), (2, 2), (1, 2)][2 * (epoch == 1) :]
    assert_resumed_is(run[1], patches, tmp_path)


def test_it_says_how_many_batches_are_left(patches, tmp_path):
    class Heard(StopAtBatch):
        left = ()

        def on_estimate(self, batches, seconds_per_batch):
            self.left = (batches, seconds_per_batch)

    sources = find_sources([patches], mpp=[0.25])
    first, second = Heard(1, 31), Heard(1, 40)
    train_student(TINY, sources, tmp_path, callbacks=first, device=CPU)
    train_student(TINY, sources, tmp_path, callbacks=second, device=CPU, resume=True)
    assert (first.left[0], second.left[0]) == (63, 32)
    assert first.left[1] > 0


def test_images_coarser_than_the_recipe_are_refused_by_name(patches, tmp_path):
    sources = find_sources([patches / "images"], mpp=[0.5])
    with pytest.raises(
        UsageError, match=r"0\.png and 2 more: .* coarser than the 0\.25 µm/px"
    ) as e:
        train_student(TINY, sources, tmp_path / "run", device=CPU)
    assert "--set mpp=0.5" in e.value.hint
    # Adapting takes less, and what the hint says of it is so.
    assert e.value.hint.index("qpnuclei adapt") < e.value.hint.index("qpnuclei train")
    network = read_metadata(resolve_model(network_for(DEFAULT_MODEL, 1.1)))
    limit = network.mpp * read_recipe("adapted")["max_enlargement"]
    assert f"(up to {limit:g} µm/px)" in e.value.hint


def test_a_run_goes_on_from_a_model(run, patches, tmp_path):
    """The first round is taught by the model itself, and starts from its weights."""
    model = run[1].model
    fields = {**TINY, "start": str(model), "rounds": 1, "first_round_batches": 1}
    sources = find_sources([patches], mpp=[0.25])

    result = train_student({**fields, "later_learning_rate": 1e-9}, sources, tmp_path, device=CPU)

    assert read_metadata(result.model).recipe["start_sha256"] == model_hash(model)
    before, _ = load_model(model)
    after, _ = load_model(result.model)
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, msg=name, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 3}, "is another network"),
        ({"mpp": 0.5}, r"is another network .* 0\.25 µm/px\) than the recipe's .* 0\.5 µm/px"),
        ({"start": "nonesuch"}, "no model named 'nonesuch'"),
    ],
)
def test_a_model_that_does_not_fit_is_no_start(run, patches, tmp_path, changes, message):
    fields = {**TINY, "start": str(run[1].model), **changes}

    with pytest.raises((UsageError, NotFoundError), match=message):
        train_student(fields, find_sources([patches], mpp=[0.25]), tmp_path, device=CPU)


def test_other_models_at_several_scales_give_the_labels_of_the_first_round(run, patches, tmp_path):
    """They decide the labels; the weights begin at random, or at the start."""
    model = run[1].model
    labels = {"labellers": [str(model), "open-40x"], "label_scales": [1, 1.5]}
    fields = {**TINY, **labels, "batches_per_round": 1}
    recipe = student_recipe(fields)
    sources = find_sources([patches], mpp=[0.25])

    result = train_student(fields, sources, tmp_path / "run", device=CPU)

    names = ("mpp", "patch_px", "patches_per_slide", "max_patches", "min_tissue", "max_enlargement")
    samples = sample_slides(sources, **{name: getattr(recipe, name) for name in names}, seed=0)
    both = load_labellers(recipe.labellers, recipe.mpp, CPU)
    known = list(SelfTraining(recipe, samples).known(AtSeveralScales(both, [1, 1.5])))
    rows = list(csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines()))
    assert float(rows[0]["nuclei"]) == sum(labels.labels.max() for labels in known) > 0
    record = read_metadata(result.model).recipe
    assert record["labellers"] == ["model.safetensors", "open-40x"]  # without folders
    assert record["labellers_sha256"] == [model_hash(model), model_hash(resolve_model("open-40x"))]


def test_labels_that_models_do_not_state_are_not_called_drawn(run, patches, tmp_path):
    network, metadata = load_model(run[1].model)
    labellers = []
    for name in ("one", "other"):
        path = tmp_path / f"{name}.safetensors"
        save_model(path, network, structs.replace(metadata, name=name, data={}))
        labellers.append(str(path))
    fields = {**TINY, "labellers": labellers, "rounds": 1}
    sources = find_sources([patches], mpp=[0.25])

    result = train_student(fields, sources, tmp_path / "run", device=CPU)

    data = read_metadata(result.model).data
    assert (data["labels"], data["licence"]) == (NOT_STATED, NOT_STATED)


@pytest.mark.parametrize(
    ("learns_from", "licence"),
    [
        ({"start": "a"}, "not stated; CC BY 4.0"),
        ({"teacher": "b"}, "not stated; CC0 1.0; 2 of ours"),
        ({"teacher": "a", "start": "a"}, "not stated; CC BY 4.0"),
        ({"start": "a", "labellers": ["b", "a"]}, "not stated; CC BY 4.0; CC0 1.0; 2 of ours"),
        ({"start": "a", "data_licence": "own"}, "own; CC BY 4.0"),
        ({"start": "a", "data_licence": "CC BY 4.0"}, "CC BY 4.0"),
        ({"start": "child of a", "data_licence": "own"}, "own; CC BY 4.0"),
        ({"start": "child of a", "data_licence": "CC BY 4.0"}, "own; CC BY 4.0"),
        ({"start": "child of a", "labellers": ["a"]}, "not stated; own; CC BY 4.0"),
        ({"start": "a", "labellers": ["child of a"]}, "not stated; own; CC BY 4.0"),
        # Only whole licences are the same.
        ({"start": "b", "data_licence": "CC0"}, "CC0; CC0 1.0; 2 of ours"),
    ],
)
def test_the_licence_of_what_a_model_learns_from_holds_on(
    run, patches, tmp_path, learns_from, licence
):
    network, metadata = load_model(run[1].model)
    paths = {}
    for name, stated in (
        ("a", "CC BY 4.0"),
        ("b", "CC0 1.0; 2 of ours"),
        ("child of a", "own; CC BY 4.0"),
    ):
        paths[name] = str(tmp_path / f"{name}.safetensors")
        save_model(
            tmp_path / f"{name}.safetensors",
            network,
            structs.replace(metadata, name=name, data={"labels": NO_LABELS, "licence": stated}),
        )
    named = {
        key: [paths[name] for name in value] if key == "labellers" else paths.get(str(value), value)
        for key, value in learns_from.items()
    }
    own_labels = ("vote_share", "min_probability") if "teacher" in named else ()
    tiny = {name: value for name, value in TINY.items() if name not in own_labels}
    fields = {**tiny, "rounds": 1, "first_round_batches": 1, **named}

    result = train_student(
        fields, find_sources([patches], mpp=[0.25]), tmp_path / "run", device=CPU
    )

    assert read_metadata(result.model).data["licence"] == licence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labellers": ["default-20x"]}, "labeller 'default-20x' .* at 0.5 µm/px"),
        ({"labellers": ["nonesuch"]}, "no model named 'nonesuch'"),
        ({"labellers": ["open-40x"], "teacher": "default"}, "labellers: has no effect with a"),
    ],
)
def test_a_model_that_cannot_label_is_refused(patches, tmp_path, changes, message):
    fields = {k: v for k, v in TINY.items() if k not in ("vote_share", "min_probability")}

    with pytest.raises((UsageError, NotFoundError), match=message):
        train_student(
            {**fields, **changes}, find_sources([patches], mpp=[0.25]), tmp_path, device=CPU
        )


@pytest.mark.parametrize("scales", [[], [0], [-1], [5], [float("nan")], ["big"]])
def test_scales_that_make_no_sense_are_refused(scales):
    with pytest.raises(UsageError, match="label_scales"):
        student_recipe({**TINY, "label_scales": scales})


def test_scales_are_refused_where_a_vote_gives_all_labels():
    fields = {**TINY, "label_scales": [1, 2]}
    student_recipe({**fields, "rounds": 2})
    student_recipe({**fields, "rounds": 1, "start": "default"})

    with pytest.raises(UsageError, match="label_scales has no effect on the only round"):
        student_recipe({**fields, "rounds": 1})


def test_resuming_with_another_recipe_is_refused(run, patches):
    folder, _ = run
    sources = find_sources([patches], mpp=[0.25])

    with pytest.raises(UsageError, match=r"recipe\.crop_px was 64 and is now 128"):
        train_student({**TINY, "crop_px": 128}, sources, folder, device=CPU, resume=True)


def test_resuming_with_other_validation_images_is_refused(run, patches, tmp_path):
    folder, _ = run
    sources = find_sources([patches], mpp=[0.25])
    others = shutil.copytree(patches, tmp_path / "others")
    arguments = {"device": CPU, "resume": True, "mpp": 0.25}

    def refuse():
        with pytest.raises(UsageError, match=r"resume: validation was '1 image, .* is now"):
            train_student(TINY, sources, folder, **arguments)

    refuse()  # without any
    arguments["validation"] = others
    labels = np.asarray(Image.open(others / "labels/2.png")).copy()
    labels[labels == 1] = 0
    Image.fromarray(labels).save(others / "labels/2.png")
    refuse()
    arguments |= {"validation": patches, "mpp": 0.26}
    refuse()


def test_a_finished_run_is_not_tuned_again(run, patches, tmp_path):
    """Also where its validation images are read from another folder now."""
    folder = shutil.copytree(run[0], tmp_path / "run")
    others = shutil.copytree(patches, tmp_path / "others")
    before = (folder / "model.safetensors").read_bytes()

    for _ in range(2):
        result = train_student(
            TINY,
            find_sources([patches], mpp=[0.25]),
            folder,
            device=CPU,
            validation=others,
            mpp=0.25,
            resume=True,
        )
        assert result.model.read_bytes() == before


def test_tuning_that_was_interrupted_begins_where_it_began(run, patches, tmp_path):
    """A model that is tuned already, but not yet noted as such, becomes the same."""
    folder = shutil.copytree(run[0], tmp_path / "run")
    before = (folder / "model.safetensors").read_bytes()
    state = load_state(folder)
    assert state.progress.tuned
    state.progress.tuned = False
    save_state(folder, state)

    result = train_student(
        TINY,
        find_sources([patches], mpp=[0.25]),
        folder,
        device=CPU,
        validation=patches,
        mpp=0.25,
        resume=True,
    )

    assert result.model.read_bytes() == before
    assert load_state(folder).progress.tuned


class _AfterTheLastRound(TrainingCallbacks):
    """Asks to stop for the first time after so many questions that follow the last round."""

    def __init__(self, questions):
        self.left, self.is_over = questions, False

    def on_epoch_end(self, epoch, *_):
        self.is_over = epoch == TINY["rounds"]

    def stop_requested(self):
        self.left -= self.is_over
        return self.left < 0


@pytest.mark.parametrize("questions", [0, 2, 8])
def test_a_stop_is_answered_while_the_post_processing_is_chosen(run, patches, tmp_path, questions):
    folder = tmp_path / "run"
    callbacks = _AfterTheLastRound(questions)
    stopped = train(patches, folder, callbacks=callbacks)
    assert (stopped.stopped, stopped.epochs) == (True, TINY["rounds"])
    assert not load_state(folder).progress.tuned
    result = train(patches, folder, resume=True)
    assert not result.stopped
    assert result.model.read_bytes() == (run[0] / "model.safetensors").read_bytes()


def test_slides_without_tissue_are_left_out(tmp_path, caplog):
    folder = tmp_path / "slides"
    folder.mkdir()
    Image.fromarray(np.full((1100, 4300, 3), 245, np.uint8)).save(folder / "blank.png")
    sources = find_sources([folder], mpp=[0.25])
    with pytest.raises(UsageError, match=r"the only image has no part .* 70% tissue") as refused:
        train_student(TINY, sources, tmp_path / "run", device=CPU)
    assert "min_tissue" in refused.value.hint

    Image.fromarray(tissue(0)[0]).save(folder / "good.png")
    Image.fromarray(tissue(1)[0][:, :4]).save(folder / "speck.png")
    caplog.clear()
    fields = {**TINY, "rounds": 1, "first_round_batches": 1}
    sources = find_sources([folder], mpp=[0.25])
    sources = [replace(s, mpp=(0.06, 0.06)) if s.name == "speck.png" else s for s in sources]
    result = train_student(fields, sources, tmp_path / "run", device=CPU)

    assert read_metadata(result.model).data["images"] == ["good.png"]
    assert "blank.png is left out: no part of 1024 px at 0.25 µm/px is 70 % tissue" in caplog.text
    assert "speck.png is left out: it is less than a pixel at 0.25 µm/px" in caplog.text


def test_nothing_that_looks_like_a_nucleus_is_an_error(tmp_path):
    Image.fromarray(np.full((160, 160, 3), 240, np.uint8)).save(tmp_path / "blank.png")
    sources = find_sources([tmp_path / "blank.png"], mpp=[0.25])

    with pytest.raises(TrainingError, match="nothing in any of the images"):
        train_student(TINY, sources, tmp_path / "run", device=CPU)


def test_the_recipe_that_comes_with_the_package_is_valid():
    recipe = student_recipe(read_recipe("student"))

    assert recipe == StudentRecipe(name="student", description=recipe.description)


@pytest.mark.parametrize(("name", "made"), [("continued", "default-40x"), ("fast", "default-20x")])
def test_recipes_that_begin_with_the_packaged_model_make_its_networks(
    patches, tmp_path, name, made
):
    """Of one batch: the recipe's network is that of the weights it names, or inherits from it."""
    fields = {**read_recipe(name), "rounds": 1, "first_round_batches": 1, "batch_size": 2}
    sources = find_sources([patches], mpp=[0.25])

    result = train_student(fields, sources, tmp_path, device=CPU)

    metadata = read_metadata(result.model)
    assert metadata.recipe["start"] == "default"
    assert metadata.recipe["start_sha256"] == model_hash(resolve_model("default"))
    packaged = read_metadata(resolve_model(made))
    assert (metadata.architecture, metadata.mpp) == (packaged.architecture, packaged.mpp)


def test_a_model_travels_without_the_folders_of_its_makers(run, patches, tmp_path):
    model = run[1].model
    fields = {**TINY, "start": str(model), "rounds": 1, "first_round_batches": 1}

    result = train_student(fields, find_sources([patches], mpp=[0.25]), tmp_path, device=CPU)

    assert read_metadata(result.model).recipe["start"] == model.name
    assert str(tmp_path.parent) not in str(read_metadata(result.model))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epochs": 3}, "no field 'epochs' in a recipe of the student family"),
        ({"crop_px": 100}, "crop_px 100 must be a multiple of 16"),
        ({"mpp": 9}, "recipe: 'mpp' is 9"),
    ],
)
def test_a_wrong_recipe_is_refused_by_field(fields, message):
    with pytest.raises(UsageError, match=message):
        student_recipe({"name": "x", **fields})


def test_patches_are_cut_into_equal_parts_without_overlap(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (300, 520, 3), np.uint8)
    Image.fromarray(rgb).save(tmp_path / "wide.png")

    (sample,) = samples_of(tmp_path / "wide.png", 256)

    assert [patch.shape for patch in sample.patches] == [(300, 260, 3)] * 2
    np.testing.assert_array_equal(np.hstack(sample.patches), rgb)


def test_many_slides_are_thinned_out(patches):
    samples = samples_of(patches / "images", 80, max_patches=7)

    assert sum(len(sample.patches) for sample in samples) == 7  # of 3 times 4
    assert len({sample.name for sample in samples}) == len(samples)


def test_whole_slides_are_sampled_where_tissue_is(tmp_path):
    """A slide too large for a patch: its right half is glass."""
    rgb = np.full((600, 4200, 3), 245, np.uint8)
    rgb[:, :2100] = np.tile(tissue(0)[0], (4, 14, 1))[:600, :2100]
    Image.fromarray(rgb).save(tmp_path / "slide.png")

    (sample,) = samples_of(tmp_path / "slide.png", 512, 3)

    assert [patch.shape for patch in sample.patches] == [(512, 512, 3)] * 3
    assert all((patch < 240).any(axis=-1).mean() > 0.7 for patch in sample.patches)
