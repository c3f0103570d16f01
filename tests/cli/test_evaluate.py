from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.errors import (
    FormatError,
    MppError,
    NotFoundError,
    QpnucleiError,
    SaveError,
    SlideError,
    UsageError,
)
from qpnuclei.evaluation import evaluate as evaluation
from qpnuclei.evaluation.datasets import read_folder
from qpnuclei.evaluation.tuning import at_resolution, predict, recoloured
from qpnuclei.models.metadata import PostProcessing, model_hash, read_metadata
from qpnuclei.models.registry import WEIGHTS_FOLDER, resolve_model
from qpnuclei.pipeline.image import segment
from qpnuclei.segmentation.engine import EngineOptions, load_engine
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.system.checked import as_json
from tests.evaluation.images import write_folder
from tests.masks import mask_of

FLOOR = "hematoxylin + Otsu"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set")


def evaluate(dataset: Path, *extra: str) -> str:
    arguments = ["evaluate", str(dataset), "--device", "cpu", "--quiet", *extra]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refuse(error: type[QpnucleiError], match: str, dataset: Path, *extra: str) -> None:
    arguments = ["evaluate", str(dataset), "--quiet", *extra]
    with pytest.raises(error, match=match):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_a_label_that_seems_to_mark_ignored_pixels_is_said_once(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "report.json"
    command = ("--method", "hematoxylin", "--mpp", "0.25", "-o", str(output))
    evaluate(dataset, *command)
    before = json.loads(output.read_text())
    for path in (dataset / "labels").iterdir():
        labels = np.array(Image.open(path))
        labels[labels == labels.max()] = np.iinfo(labels.dtype).max
        Image.fromarray(labels).save(path)
    evaluate(dataset, *command)
    (note,) = json.loads(output.read_text())["notes"]
    assert note.startswith(f"{dataset / 'labels' / 'a.png'} and 1 more file: the label 65535")
    assert caplog.text.count("the label 65535") == 1
    assert json.loads(output.read_text())["mean"] == before["mean"]


def test_a_model_is_shown_beside_the_floor(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "results" / "report.json"
    printed = evaluate(dataset, "--mpp", "0.25", "-o", str(output))

    content = json.loads(output.read_text())
    assert content["method"] == "default"
    assert content["mean"]["F1"] > 0.8  # sixteen dark discs: nobody should miss them
    assert set(content["others"]) == set(content["difference"]) == {FLOOR}
    assert [image["name"] for image in content["images"]] == ["a", "b"]
    assert content["dataset"] == {
        "path": str(dataset), "format": "folder", "split": None, "limit": None
    }  # fmt: skip
    assert content["models"][0]["sha256"]
    assert content["arguments"]["mpp"] == 0.25
    assert content["versions"]["torch"]
    assert printed.strip() == output.with_suffix(".md").read_text().strip()
    assert f"| difference to {FLOOR} |" in printed
    assert output.with_suffix(".html").read_text().count("<figure") == 2


@pytest.mark.parametrize(
    ("model", "views", "options"),
    [("default-40x", 1, ("--model", "default-40x")), ("default-20x", 8, ("--tta",))],
)
def test_the_scores_are_those_of_what_a_run_finds(
    dataset: Path, tmp_path: Path, model: str, views: int, options: tuple[str, ...]
) -> None:
    from qpnuclei.evaluation.formats import read_dataset
    from qpnuclei.evaluation.metrics import score

    # Half the resolution of the first: images are enlarged, and nuclei come back smaller.
    output = str(tmp_path / "r.json")
    evaluate(dataset, "--mpp", "0.5", "--split", "val", "-o", output, *options)

    (image,) = read_dataset(dataset, split="val")[1]
    rgb, true = image.read()
    found = true * 0
    engine = load_engine(model, EngineOptions("cpu", views))
    nuclei = segment(engine, rgb, 0.5)
    for label, polygon in enumerate(nuclei.polygons(), start=1):
        found[mask_of(polygon, true.shape)] = label
    (reported,) = json.loads((tmp_path / "r.json").read_text())["images"]
    assert reported["predicted_count"] == len(nuclei)
    assert reported["AJI"] == pytest.approx(score(true, found).AJI, abs=1e-3)


def test_the_baseline_alone(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "baseline.json"
    arguments = ("--method", "hematoxylin", "--mpp", "0.25", "--limit", "1", "--pictures", "0")
    evaluate(dataset, *arguments, "-o", str(output))

    content = json.loads(output.read_text())
    assert content["method"] == FLOOR
    assert content["mean"]["AJI"] > 0.8
    assert content["others"] == {}
    assert len(content["images"]) == 1
    assert "model" not in content
    assert "<figure" not in output.with_suffix(".html").read_text()


@pytest.mark.slow
def test_tuning_goes_into_a_copy_of_the_model(dataset: Path, tmp_path: Path) -> None:
    output, model = tmp_path / "tuned.json", tmp_path / "tuned.safetensors"
    before = resolve_model("default").read_bytes()
    one = ("--mpp", "0.25", "--limit", "1", "-o", str(output))
    printed = evaluate(dataset, *one, "--tune", "--write-model", str(model))

    content = json.loads(output.read_text())
    assert content["method"] == "default, tuned"
    assert set(content["others"]) == {FLOOR, "default"}
    assert "tuned on these images: expect" in printed
    shipped, tuned = read_metadata(resolve_model("default")), read_metadata(model)
    assert as_json(tuned.post_processing) == content["models"][0]["post_processing"]
    assert content["models"][0]["sha256"] == model_hash(resolve_model("default"))
    assert tuned.validation["post_processing"] == "tuned on these images"
    assert tuned.validation["mean"]["AJI"] == pytest.approx(content["mean"]["AJI"])
    # Tuning looks at the images as they are and recoloured, and gives up .01 for a less strict
    # choice, never more.
    labelled = at_resolution(list(read_folder(dataset))[:1], 0.25, 0.25)
    predicted = predict(Predictor.load("default", "cpu"), [*labelled, *recoloured(labelled)])

    def quality(parameters: PostProcessing) -> float:
        scores = [image.score(parameters) for image in predicted]
        return float(np.mean([(s.AJI + s.PQ) / 2 for s in scores]))

    assert quality(tuned.post_processing) >= quality(shipped.post_processing) - 0.01
    assert tuned.architecture == shipped.architecture
    assert resolve_model("default").read_bytes() == before

    # The copy is a model like any other, and gives these figures.
    evaluate(dataset, *one, "--model", str(model))
    again = json.loads(output.read_text())
    assert again["method"] == f"tuned.safetensors ({again['models'][0]['sha256'][:8]})"
    assert again["mean"] == content["mean"]


def test_what_is_asked_for_wrongly_is_refused(dataset: Path, tmp_path: Path) -> None:
    out = ("-o", str(tmp_path / "r.json"))
    refuse(NotFoundError, "no such folder", tmp_path / "absent", *out)
    refuse(UsageError, "not in the layout of a known data set", tmp_path, *out)
    refuse(UsageError, r"does not end in \.json", dataset, "-o", str(tmp_path / "r.html"))
    refuse(UsageError, "uses no model", dataset, *out, "--method", "hematoxylin", "--tune")
    refuse(UsageError, "uses no model", dataset, *out, "--method", "hematoxylin", "--model", "x")
    refuse(UsageError, "needs --tune", dataset, *out, "--write-model", "m.safetensors")
    refuse(UsageError, "without --split", dataset, *out, "--splits", "s.json")
    refuse(UsageError, "no split 'test'", dataset, *out, "--split", "test")
    refuse(NotFoundError, "no model named 'best'", dataset, *out, "--model", "best")
    named = ("--speed", "fast", "--model", "default-40x", "--mpp", "0.25")
    refuse(UsageError, "chooses a network of the default model", dataset, *out, *named)
    refuse(MppError, "has no pixel size", dataset, *out)
    tune = (*out, "--tune", "--mpp", "0.25", "--write-model")
    packaged = WEIGHTS_FOLDER / "mine.safetensors"
    refuse(UsageError, "come with qpnuclei", dataset, *tune, str(packaged))
    refuse(UsageError, r"does not end in \.safetensors", dataset, *tune, str(tmp_path / "m.pt"))
    assert not (tmp_path / "r.json").exists()


@pytest.mark.parametrize(
    ("report", "model", "refused"),
    [
        ("r.json", "file/m.safetensors", "m.safetensors cannot be written: .*file is not a folder"),
        ("r.json", "folder.safetensors", "folder.safetensors cannot be written: it is a folder"),
        ("file/r.json", "m.safetensors", "r.json cannot be written: .*file is not a folder"),
        ("folder.json", "m.safetensors", "folder.json cannot be written: it is a folder"),
        ("page.json", "m.safetensors", "page.html cannot be written: it is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_an_image_is_read(
    dataset: Path, tmp_path: Path, report: str, model: str, refused: str
) -> None:
    (tmp_path / "file").touch()
    for name in ("folder.json", "page.html", "folder.safetensors"):
        (tmp_path / name).mkdir()
    for path in dataset.glob("*/*.png"):
        path.write_bytes(b"damaged")
    before = sorted(tmp_path.iterdir())
    targets = ("-o", str(tmp_path / report), "--write-model", str(tmp_path / model))
    refuse(SaveError, refused, dataset, *targets, "--mpp", "0.25", "--tune")
    assert sorted(tmp_path.iterdir()) == before


def test_the_report_is_written_without_a_reader_of_the_table(
    dataset: Path,
    tmp_path: Path,
    without_reader: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    output = tmp_path / "r.json"
    arguments = ("--mpp", "0.25", "--method", "hematoxylin", "-o", output)
    done = without_reader("evaluate", dataset, *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert json.loads(output.read_text())["method"] == FLOOR
    assert output.with_suffix(".md").exists()
    assert output.with_suffix(".html").exists()


def test_the_table_is_printed_if_the_report_cannot_be_written(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "r.json"
    evaluate_model = evaluation.evaluate_model

    def meanwhile(*arguments: Any) -> Any:
        output.mkdir()  # after the check of the outputs
        return evaluate_model(*arguments)

    monkeypatch.setattr(evaluation, "evaluate_model", meanwhile)
    arguments = ("--mpp", "0.25", "--method", "hematoxylin", "-o", str(output), "--quiet")
    result = CliRunner().invoke(app, ["evaluate", str(dataset), *arguments])
    assert isinstance(result.exception, SaveError)
    assert "r.json cannot be written" in result.exception.what
    assert f"| {FLOOR} |" in result.stdout


def test_a_broken_image_is_named(dataset: Path, tmp_path: Path) -> None:
    image = dataset / "images" / "a.png"
    image.write_bytes(image.read_bytes()[:200])
    arguments = ("--mpp", "0.25", "--method", "hematoxylin", "-o", str(tmp_path / "r.json"))
    refuse(SlideError, r"images/a\.png is damaged", dataset, *arguments)
    shutil.rmtree(dataset / "labels")
    (dataset / "labels").mkdir()
    refuse(NotFoundError, "labels: no file for 'a' and 1 more", dataset, *arguments)


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from qpnuclei.cli.evaluate import evaluate; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'cv2', 'skimage')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_mask_is_not_one_nucleus(dataset: Path, tmp_path: Path) -> None:
    for path in (dataset / "labels").iterdir():
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.where(labels > 0, 255, 0).astype(np.uint8)).save(path)
    arguments = ("--mpp", "0.25", "--method", "hematoxylin", "-o", str(tmp_path / "r.json"))
    with pytest.raises(FormatError, match="a mask with one value in 16 parts") as caught:
        evaluate(dataset, *arguments)
    assert "--components" in caught.value.hint

    assert "2 images, 32 annotated nuclei" in evaluate(dataset, *arguments, "--components")

    assert json.loads((tmp_path / "r.json").read_text())["dataset"]["components"]


def test_one_image_has_no_interval(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    printed = evaluate(
        dataset, "--mpp", "0.25", "--method", "hematoxylin", "--limit", "1", "-o", str(output)
    )

    assert set(json.loads(output.read_text())["interval"].values()) == {None}
    assert "One image, 16 annotated nuclei: too few to generalise to other images." in printed
    for text in (printed, output.with_suffix(".html").read_text()):
        assert "interval" not in text
        assert "chance" not in text
