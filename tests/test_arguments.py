"""Arguments that only Python users can get wrong: the command line cannot pass them."""

from __future__ import annotations

import json
import math
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import qpnuclei
from qpnuclei.errors import MppError, QpnucleiError, UsageError
from qpnuclei.evaluation.evaluate import EvaluationOptions
from qpnuclei.pipeline.inference.units import Conduct
from qpnuclei.qupath.pixel_size import AskedMpp
from tests.evaluation.images import write_folder
from tests.paths import SAMPLES

TISSUE = qpnuclei.Selection(tissue=True)
ONE_NAME = "he small.png"
A_PNG = "set/images/a.png"
NO_NUCLEI = qpnuclei.NucleiTable.from_polygons([], {})


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SAMPLES / "0.5.1", tmp_path / "sample")) / "project"


@pytest.mark.parametrize(
    ("name", "call", "allowed"),
    [
        ("by", lambda given: qpnuclei.count(SAMPLES / "0.5.1" / "project", given), "'class'"),
        ("by", lambda given: qpnuclei.count(SAMPLES / "0.5.1" / "project", by=given), "'image'"),
        (
            "backend",
            lambda given: qpnuclei.open_project(SAMPLES / "0.5.1" / "project", given),
            "'paquo'",
        ),
        ("speed", lambda given: qpnuclei.RunOptions(TISSUE, speed=given), "'auto' or 'fast'"),
        ("precision", lambda given: qpnuclei.RunOptions(TISSUE, precision=given), "'bfloat16'"),
        ("on_existing", lambda given: qpnuclei.RunOptions(TISSUE, on_existing=given), "'skip'"),
        ("precision", lambda given: qpnuclei.EngineOptions(precision=given), "'float32'"),
        ("views", lambda given: qpnuclei.EngineOptions(views=given), "None, 1 or 8"),
        ("layout", lambda given: qpnuclei.evaluate("set", layout=given), "'folder', 'monuseg'"),
        ("speed", lambda given: qpnuclei.evaluate("set", mpp=0.5, speed=given), "'fast'"),
    ],
)
@pytest.mark.parametrize("value", ["images", 3, ["auto"], True, np.array([1, 8])])
def test_unknown_values_are_refused(
    name: str,
    call: Callable[[Any], object],
    allowed: str,
    value: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(Path("set"), ("a",))
    with pytest.raises(UsageError) as caught:
        call(value)
    assert caught.value.what == f"{name}={value!r}: no such value"
    assert allowed in caught.value.hint


@pytest.mark.parametrize("name", ["classes", "names", "ids", "excluded"])
def test_a_selection_takes_one_text(name: str) -> None:
    one = uuid.uuid4() if name == "ids" else "Tumor"
    everything = name == "excluded"
    selection = qpnuclei.Selection(everything=everything, **{name: one})  # type: ignore[arg-type]
    assert selection == qpnuclei.Selection(everything=everything, **{name: (one,)})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "one"),
    [("images", ONE_NAME), ("roi_classes", "Tumor"), ("nucleus_classes", "Not a Nucleus")],
)
def test_counts_take_one_text(name: str, one: str, project: Path) -> None:
    rows = [qpnuclei.count(project, "class", **{name: given}) for given in (one, [one])]
    assert repr(rows[0]) == repr(rows[1])  # NaN is not equal to itself
    assert len(rows[0]) > 0
    if name == "nucleus_classes":
        assert {row["nuclei"] for row in rows[0]} == {0}


@pytest.mark.parametrize(
    ("name", "one"), [("images", ONE_NAME), ("nucleus_classes", "Not a Nucleus")]
)
def test_reports_take_one_text(name: str, one: str, project: Path, tmp_path: Path) -> None:
    pages = []
    for given in (one, [one]):
        path = tmp_path / "report.html"
        qpnuclei.write_report(project, path, mpp=0.5, **{name: given})  # type: ignore[arg-type]
        # The page says when it was made.
        pages.append(re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "now", path.read_text("utf-8")))
    assert pages[0] == pages[1]
    if name == "images":
        assert "renamed" not in pages[0]


@pytest.mark.parametrize("as_path", [False, True])
def test_new_projects_take_one_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_path: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64), "white").save(name)
    first, second = (Path(name) if as_path else name for name in ("a.png", "b.png"))
    made = qpnuclei.create_project("project", first, mpp=0.25)  # type: ignore[arg-type]
    assert [image.name for image in made.images] == ["a.png"]
    extended = qpnuclei.add_slides("project", second, mpp=0.25)  # type: ignore[arg-type]
    assert [image.name for image in extended.images] == ["a.png", "b.png"]


@pytest.mark.parametrize("start", [qpnuclei.run, qpnuclei.plan])
@pytest.mark.parametrize("given", [TISSUE, "Tumor", ()])
def test_runs_refuse_what_is_no_options(
    start: Callable[..., object], given: object, project: Path
) -> None:
    with pytest.raises(UsageError, match="the options are not RunOptions, but") as caught:
        start(project, given)
    assert caught.value.hint == "give RunOptions(selection)"
    assert not (project / "qpnuclei").exists()


def test_runs_take_one_text(project: Path) -> None:
    options = qpnuclei.RunOptions(TISSUE, mpp=0.5, images=ONE_NAME)  # type: ignore[arg-type]
    assert options == qpnuclei.RunOptions(TISSUE, mpp=0.5, images=(ONE_NAME,))
    tumor = qpnuclei.RunOptions(qpnuclei.Selection(classes=("Tumor",)), mpp=0.5, device="cpu")
    # A run with the same options continues in the same folder.
    folder = qpnuclei.plan(project, tumor, images=ONE_NAME)
    assert qpnuclei.plan(project, tumor, images=[ONE_NAME]) == folder
    summary = qpnuclei.run(project, tumor, images=ONE_NAME)
    assert [image.name for image in summary.images] == [ONE_NAME]
    for start in (qpnuclei.run, qpnuclei.plan):
        with pytest.raises(UsageError, match="no annotation of class 'Nowhere'"):
            start(project, roi="Nowhere")


@pytest.mark.parametrize(
    "more",
    [
        {"roi": "Nowhere"},
        {"images": "nowhere"},
        {"corrections": "Nowhere"},
        {"corrections": "Tumor", "truth_class": "Nowhere"},
    ],
)
def test_adapting_takes_one_text(more: dict[str, str], project: Path, tmp_path: Path) -> None:
    said = []
    for sources, given in ((str(project), more), ([project], {k: [v] for k, v in more.items()})):
        with pytest.raises(QpnucleiError) as caught:
            qpnuclei.adapt(sources, tmp_path / "ours", mpp=0.5, device="cpu", **given)  # type: ignore[arg-type]
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert next(reversed(more.values())) in said[0]


def test_none_is_nothing_chosen(project: Path, tmp_path: Path) -> None:
    chosen: dict[str, Any] = {"roi": None, "truth_class": None}
    write_folder(tmp_path / "set", ("a",))
    (tmp_path / "set" / "splits.json").write_text('{"a": ["a"]}')
    with pytest.raises(UsageError, match="no split 'b'"):
        qpnuclei.evaluate(tmp_path / "set", split="b", mpp=0.25, **chosen)
    with pytest.raises(QpnucleiError, match="nowhere"):
        qpnuclei.train("nowhere", tmp_path / "ours", roi=None)  # type: ignore[arg-type]
    with pytest.raises(QpnucleiError, match="nowhere"):
        qpnuclei.adapt("nowhere", tmp_path / "ours", images=None, corrections=None, **chosen)
    assert repr(qpnuclei.count(project, images=None)) == repr(qpnuclei.count(project))  # type: ignore[arg-type]


def test_training_takes_one_text(project: Path, tmp_path: Path) -> None:
    said = []
    for sources, roi in ((str(project), "Nowhere"), ([str(project)], ["Nowhere"])):
        with pytest.raises(QpnucleiError, match="Nowhere") as caught:
            qpnuclei.train(sources, tmp_path / "ours", mpp=0.5, roi=roi, device="cpu")
        said.append(str(caught.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("more", [{"roi": "Nowhere"}, {"roi": "Tumor", "truth_class": "Nowhere"}])
def test_evaluating_takes_one_text(more: dict[str, str], project: Path) -> None:
    said = []
    for given in (more, {name: [one] for name, one in more.items()}):
        with pytest.raises(QpnucleiError, match="Nowhere") as caught:
            qpnuclei.evaluate(project, mpp=0.5, device="cpu", **given)
        said.append(str(caught.value))
    assert said[0] == said[1]


def with_tissue(**given: Any) -> qpnuclei.RunOptions:
    return qpnuclei.RunOptions(TISSUE, **given)


def planned() -> Path:
    """Plan a run of one image of the project in the working folder."""
    return qpnuclei.plan("project", with_tissue(mpp=0.5), ONE_NAME)


@pytest.mark.parametrize(
    ("options", "name", "too_small", "too_large", "allowed"),
    [
        (with_tissue, "tile_px", 127, 8193, 128),
        (with_tissue, "tile_px", 100.5, 1000.5, 8192),
        (with_tissue, "batch_size", 0, 1.5, 1),
        (with_tissue, "workers", 0, 2.5, 1),
        (with_tissue, "max_nucleus_um", 0.9, 200.1, 1),
        (with_tissue, "simplify_um", -0.1, 5.1, 0),
        (with_tissue, "threshold", 0.009, 0.991, 0.5),
        (with_tissue, "min_area_um2", -0.1, 1000.1, 1000),
        (with_tissue, "cell_expansion_um", -0.1, 50.1, 50),
        (with_tissue, "positive_thresholds", 0, 5.1, 0.2),
        (qpnuclei.EngineOptions, "workers", -1, math.inf, 1),
        (qpnuclei.EngineOptions, "batch_size", 0, math.inf, 3),
        (qpnuclei.EngineOptions, "threshold", -3, 2, 0.5),
        (Conduct, "unit_minutes", 0.009, 10_001, 1),
        (Conduct, "unit_gib", 0.09, 10_001, 1),
    ],
)
def test_numbers_are_within_the_limits_of_the_command_line(
    options: Callable[..., object], name: str, too_small: float, too_large: float, allowed: float
) -> None:
    for wrong in (too_small, too_large, math.nan, str(allowed), True):
        with pytest.raises(UsageError, match=re.escape(repr(wrong).strip("'"))) as caught:
            options(**{name: wrong})
        assert caught.value.hint
    # Those of NumPy count like Python's.
    made = options(**{name: allowed})
    number = np.int64(allowed) if isinstance(allowed, int) else np.float64(allowed)
    for same in (number, np.float32(allowed)) if isinstance(allowed, float) else (number,):
        value = getattr(options(**{name: same}), name)
        assert value == pytest.approx(getattr(made, name), rel=1e-6)
        json.dumps(value)  # as in the plan


@pytest.mark.parametrize("name", ["tta", "mpp_only_missing", "tissue_annotation", "qc", "force"])
def test_a_text_is_neither_true_nor_false(name: str) -> None:
    for wrong in ("no", "", 2):
        with pytest.raises(UsageError, match=f"{name}={wrong!r}: no such value"):
            with_tissue(**{name: wrong})
    assert getattr(with_tissue(**{name: np.bool_(True)}), name) is True
    assert with_tissue(tta=None).tta is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (EvaluationOptions, "tta"),
        (EvaluationOptions, "tune"),
        (Conduct, "resume"),
        (Conduct, "extend"),
        (Conduct, "retry_failed"),
        (Conduct, "fail_fast"),
        (AskedMpp, "only_missing"),
    ],
)
def test_only_true_and_false_are_flags(options: Callable[..., object], name: str) -> None:
    for wrong in ("no", "", 3, np.array([1, 2])):
        with pytest.raises(UsageError, match=f"^{name}=.*: no such value"):
            options(**{name: wrong})
    assert getattr(options(**{name: np.bool_(True)}), name) is True


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("derived", lambda given: qpnuclei.Selection(classes="Tumor", derived=given)),
        ("everything", lambda given: qpnuclei.Selection(everything=given)),
        ("tissue", lambda given: qpnuclei.Selection(tissue=given)),
        ("resume", lambda given: qpnuclei.run("project", with_tissue(), resume=given)),
        ("retry_failed", lambda given: qpnuclei.run("project", with_tissue(), retry_failed=given)),
        ("resume", lambda given: qpnuclei.plan("project", with_tissue(), resume=given)),
        ("retry_failed", lambda given: qpnuclei.plan("project", with_tissue(), retry_failed=given)),
        ("retry_failed", lambda given: qpnuclei.infer(planned(), retry_failed=given)),
        ("force", lambda given: qpnuclei.commit(planned(), force=given)),
        ("crop_to_bounds", lambda given: qpnuclei.open_slide(A_PNG, crop_to_bounds=given)),
        ("apply_icc", lambda given: qpnuclei.open_slide(A_PNG, apply_icc=given)),
    ],
)
@pytest.mark.parametrize("wrong", ["no", "", 3])
def test_no_text_is_true(
    name: str,
    call: Callable[[Any], object],
    wrong: object,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(project.parent)
    write_folder(Path("set"), ("a",))
    with pytest.raises(UsageError) as caught:
        call(wrong)
    assert caught.value.what == f"{name}={wrong!r}: no such value"


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("device", lambda given: with_tissue(device=given)),
        ("class_name", lambda given: with_tissue(class_name=given)),
        ("images", lambda given: with_tissue(images=[given])),
        ("device", lambda given: qpnuclei.EngineOptions(device=given)),
        ("device", lambda given: EvaluationOptions(device=given)),
        ("device", lambda given: qpnuclei.infer(planned(), device=given)),
        ("classes", lambda given: qpnuclei.Selection(classes=("Tumor", given))),
        ("names", lambda given: qpnuclei.Selection(names=[given])),
        ("excluded", lambda given: qpnuclei.Selection(everything=True, excluded=[given])),
        ("images", lambda given: qpnuclei.count("project", images=[given])),
        ("roi_classes", lambda given: qpnuclei.count("project", roi_classes=[given])),
        ("nucleus_classes", lambda given: qpnuclei.count("project", nucleus_classes=[given])),
        ("images", lambda given: qpnuclei.write_report("project", "a.html", images=[given])),
        (
            "nucleus_classes",
            lambda given: qpnuclei.write_report("project", "a.html", nucleus_classes=[given]),
        ),
        ("images", lambda given: qpnuclei.run("project", with_tissue(), images=[given])),
        ("roi", lambda given: qpnuclei.run("project", roi=[given])),
        ("images", lambda given: qpnuclei.plan("project", with_tissue(), images=[given])),
        ("roi", lambda given: qpnuclei.plan("project", roi=[given])),
        ("roi", lambda given: qpnuclei.evaluate("set", roi=[given])),
        ("truth_class", lambda given: qpnuclei.evaluate("project", truth_class=[given])),
        ("device", lambda given: qpnuclei.train(A_PNG, "training", mpp=0.25, device=given)),
        ("roi", lambda given: qpnuclei.train(A_PNG, "training", mpp=0.25, roi=[given])),
        ("device", lambda given: qpnuclei.adapt(A_PNG, "training", mpp=0.25, device=given)),
        ("roi", lambda given: qpnuclei.adapt(A_PNG, "training", roi=[given])),
        ("images", lambda given: qpnuclei.adapt("project", "training", images=[given])),
        (
            "corrections",
            lambda given: qpnuclei.adapt(A_PNG, "training", mpp=0.25, corrections=[given]),
        ),
        (
            "truth_class",
            lambda given: qpnuclei.adapt(A_PNG, "training", mpp=0.25, truth_class=[given]),
        ),
        ("class_name", lambda given: qpnuclei.write_nuclei(NO_NUCLEI, "a.geojson", given)),
    ],
)
@pytest.mark.parametrize("wrong", [5, None, b"cpu", ["cpu"]])
def test_what_is_no_text_is_one_error(
    name: str,
    call: Callable[[Any], object],
    wrong: object,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(project.parent)
    write_folder(Path("set"), ("a",))
    with pytest.raises(UsageError) as caught:
        call(wrong)
    assert str(caught.value) == f"{name}={wrong!r}: not a text (give a str)"
    assert not {"training", "a.html", "a.geojson"} & {path.name for path in Path().iterdir()}


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("model", lambda given: with_tissue(model=given)),
        ("model", lambda given: EvaluationOptions(given)),
        ("model", lambda given: qpnuclei.evaluate("set", given)),
        ("model", qpnuclei.load_engine),
        ("model", lambda given: qpnuclei.adapt(A_PNG, "training", given, mpp=0.25)),
        ("config", lambda given: qpnuclei.train(A_PNG, "training", given, mpp=0.25)),
    ],
)
@pytest.mark.parametrize("wrong", [3, True, b"default", ["default"]])
def test_a_model_is_a_name_or_a_path(
    name: str,
    call: Callable[[Any], object],
    wrong: object,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(project.parent)
    write_folder(Path("set"), ("a",))
    with pytest.raises(UsageError) as caught:
        call(wrong)
    assert str(caught.value) == f"{name}={wrong!r}: not a name or path (give a str or a Path)"
    assert not Path("training").exists()


def test_texts_and_paths_are_kept_as_plain_texts() -> None:
    options = with_tissue(model=Path("ours.safetensors"), device=np.str_("cpu"), images="a")
    assert (options.model, options.device, options.images) == ("ours.safetensors", "cpu", ("a",))
    assert type(options.device) is str


@pytest.mark.parametrize("start", [qpnuclei.train, qpnuclei.adapt])
def test_a_training_is_not_resumed_by_a_text(
    start: Callable[..., object], project: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="resume='no': no such value"):
        start([project], tmp_path / "ours", mpp=0.5, device="cpu", resume="no")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("start", [qpnuclei.train, qpnuclei.adapt])
@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"seed": -1}, "seed=-1: not in the range"),
        ({"seed": 1.5}, "seed=1.5: not an integer"),
        ({"seed": "x"}, "seed='x': not a number"),
        ({"settings": "x"}, "settings='x': no fields of a recipe"),
    ],
)
def test_a_training_with_wrong_arguments_does_not_begin(
    start: Callable[..., object], wrong: dict[str, Any], what: str, project: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(what)):
        start([project], tmp_path / "ours", mpp=0.5, device="cpu", **wrong)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("start", [qpnuclei.run, qpnuclei.plan])
def test_classes_are_given_once(start: Callable[..., object], project: Path) -> None:
    with pytest.raises(UsageError, match="roi and options were both given"):
        start(project, qpnuclei.RunOptions(TISSUE), roi="Tumor")


def test_no_progress_is_none(tmp_path: Path) -> None:
    Image.new("RGB", (80, 80), "white").save(tmp_path / "a.png")
    project = qpnuclei.create_project(tmp_path / "project", [tmp_path / "a.png"], mpp=0.25)
    options = qpnuclei.RunOptions(TISSUE, device="cpu")
    assert qpnuclei.run(project, options, progress=None).failures == []


def test_a_class_of_truth_needs_corrections(project: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="truth-class was given without"):
        qpnuclei.adapt(project, tmp_path / "ours", truth_class="Nucleus", device="cpu")
    assert not (tmp_path / "ours").exists()


def test_an_image_in_memory_is_an_array() -> None:
    rgb = np.full((64, 64, 3), 243, np.uint8)
    engine = qpnuclei.load_engine("default", qpnuclei.EngineOptions(device="cpu"))
    for wrong in (rgb.tolist(), Image.fromarray(rgb), "a.png", None):
        with pytest.raises(UsageError, match=r"rgb=.*not an array"):
            qpnuclei.segment(engine, wrong, 0.25)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="engine='default-40x': not an engine"):
        qpnuclei.segment("default-40x", rgb, 0.25)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="stains=None: not Stains"):
        qpnuclei.segment(engine, rgb, 0.25, stains=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 1, ["project"]])
def test_a_project_is_a_path_or_a_project(wrong: Any, tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: qpnuclei.count(wrong),
        lambda: qpnuclei.add_slides(wrong, ["a.png"]),
        lambda: qpnuclei.write_report(wrong, tmp_path / "r.html"),
        lambda: qpnuclei.run(wrong, qpnuclei.RunOptions(TISSUE)),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r"project=.*not a project"):
            call()


def test_slides_are_added_to_an_open_project(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (80, 80), "white").save(tmp_path / name)
    project = qpnuclei.create_project(tmp_path / "project", [tmp_path / "a.png"], mpp=0.25)
    grown = qpnuclei.add_slides(project, [tmp_path / "b.png"], mpp=0.25)
    assert [image.name for image in grown.images] == ["a.png", "b.png"]
    with pytest.raises(UsageError, match="image=1: not a text"):
        grown.nuclei(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("mpp_by_image", lambda given: with_tissue(mpp_by_image=given)),
        ("by_id", lambda given: AskedMpp(by_id=given)),
        ("of_new", lambda given: AskedMpp(of_new=given)),
    ],
)
@pytest.mark.parametrize("wrong", [None, [("a", 0.25)], 0.25, "a"])
def test_pixel_sizes_by_image_are_a_mapping(
    name: str, call: Callable[[Any], object], wrong: object
) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{name}={wrong!r}: not a mapping")) as caught:
        call(wrong)
    assert caught.value.hint == "give {image: µm/px}"


@pytest.mark.parametrize("wrong", ["0.25", 0.04, 2.6, math.nan, math.inf, True, (0.25, 9.0), [0.5]])
@pytest.mark.parametrize(
    "call",
    [
        lambda mpp: with_tissue(mpp=mpp),
        lambda mpp: with_tissue(mpp_by_image={ONE_NAME: mpp}),
        lambda mpp: EvaluationOptions(mpp=mpp),
        lambda mpp: qpnuclei.count("project", "image", mpp=mpp),
        lambda mpp: qpnuclei.write_report("project", "report.html", mpp=mpp),
        lambda mpp: qpnuclei.evaluate("set", mpp=mpp),
        lambda mpp: qpnuclei.create_project("new", ["set/images/a.png"], mpp=mpp),
        lambda mpp: qpnuclei.add_slides("project", ["set/images/a.png"], mpp=mpp),
        lambda mpp: qpnuclei.train(["set/images/a.png"], "training", mpp=mpp, device="cpu"),
        lambda mpp: qpnuclei.adapt(["set/images/a.png"], "training", mpp=mpp, device="cpu"),
        lambda mpp: qpnuclei.segment(
            qpnuclei.load_engine("default-20x", qpnuclei.EngineOptions("cpu")),
            np.full((64, 64, 3), 240, np.uint8),
            mpp,
        ),
    ],
)
def test_impossible_pixel_sizes_are_one_error(
    call: Callable[[Any], object], wrong: object, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.parent)
    write_folder(Path("set"), ("a",))
    with pytest.raises(MppError, match=r"possible: 0\.05 to 2\.5"):
        call(wrong)
    assert not Path("new").exists()
    assert not Path("training").exists()


def test_pixel_sizes_of_numpy_are_pixel_sizes(project: Path) -> None:
    for number in (np.float32(0.25), np.float64(0.25)):
        options = with_tissue(mpp=number, mpp_by_image={"a": number})
        assert json.dumps([options.mpp, options.mpp_by_image]) == '[0.25, {"a": 0.25}]'
        rows = [qpnuclei.count(project, "image", mpp=mpp) for mpp in (number, 0.25)]
        assert repr(rows[0]) == repr(rows[1])


def test_a_split_is_one_text(tmp_path: Path) -> None:
    write_folder(tmp_path, ("a",))
    (tmp_path / "splits.json").write_text('{"val": ["a"]}')
    with pytest.raises(UsageError, match=r"no split \['val'\]") as caught:
        qpnuclei.evaluate(tmp_path, split=["val"], mpp=0.5)  # type: ignore[arg-type]
    assert caught.value.hint == "it has val"


@pytest.mark.parametrize("wrong", [5, b"local:1", ["local:1"]])
def test_a_cluster_is_one_text(wrong: Any, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.parent)
    with pytest.raises(UsageError, match=re.escape(f"dask={wrong!r}: not a text")):
        qpnuclei.infer(planned(), dask=wrong, device="cpu")
