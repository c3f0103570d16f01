"""A command that waited for another works on the project as the other one left it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import pytest

import qpnuclei as package
from qpnuclei import RunOptions, Selection
from qpnuclei.cli import slides
from qpnuclei.errors import LockedError, QpnucleiError
from qpnuclei.pipeline.planning.plan_file import RunPlan
from qpnuclei.qupath import create
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.results_folder import ResultsFolder
from qpnuclei.report import page
from qpnuclei.system.locks import locked
from tests.cli.conftest import Outcome
from tests.cli.slide_runs import RUN, counts
from tests.slides.pictures import paint

Call = Callable[..., Outcome]

COMMAND = (sys.executable, "-m", "qpnuclei")
BOTH = ["a.png", "b.png"]
SQUARE = [[[9, 9], [40, 9], [40, 40], [9, 40], [9, 9]]]
ANNOTATION = {
    "type": "Feature",
    "geometry": {"type": "Polygon", "coordinates": SQUARE},
    "properties": {"objectType": "annotation"},
}
TISSUE = Selection(tissue=True)
HOLD = """
import sys
from pathlib import Path
from qpnuclei.system.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
IN_PYTHON = """
import json, sys, qpnuclei
options = qpnuclei.RunOptions(qpnuclei.Selection(tissue=True), device="cpu", workers=1)
summary = qpnuclei.run(sys.argv[1], options)
print(json.dumps([image.name for image in summary.images]))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project of one slide; another slide is beside it."""
    monkeypatch.chdir(tmp_path)
    slide = paint(tmp_path / "a.png", (80, 80), (170, 160))
    paint(tmp_path / "b.png", (120, 120))
    return package.create_project(tmp_path / "p", [slide], mpp=0.25).path


def started(*command: object) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([*map(str, command)], stdout=pipe, stderr=pipe, text=True)


def read_until_it_waits(stderr: IO[str] | None) -> None:
    assert stderr is not None
    said = []
    for line in stderr:
        said.append(line)
        if " is in use by " in line:
            return
    pytest.fail(f"it did not wait: {''.join(said)}")


def after_waiting(
    project: Path, change: Callable[[], object], *command: object
) -> subprocess.CompletedProcess[str]:
    """Return what a command does that waits for a project while it is changed."""
    with locked(project.parent):
        process = started(*command)
        read_until_it_waits(process.stderr)
        change()
    with process:
        stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    """Let another process hold a folder within the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:  # it ends with its standard input
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield


def change_mpp(project: Path) -> None:
    """Change the pixel size from 0.25 to 0.5 µm/px, as QuPath does."""
    text = project.read_text(encoding="utf-8")
    changed = re.sub(r'"value": ?0\.25\b', '"value": 0.5', text)
    assert changed != text
    project.write_text(changed, encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "key", "names"),
    [
        ((*COMMAND, "run", "p", "--tissue", "--json", *RUN), "name", BOTH),
        ((*COMMAND, "filter", "p", "--min-certainty", "0.5", "--json"), "image", BOTH),
        ((*COMMAND, "qc", "p", "--json"), "image", BOTH),
        ((*COMMAND, "geojson", "import", "p", "b.png.geojson", "--json"), "image", ["b.png"]),
        ((sys.executable, "-c", IN_PYTHON, "p"), "", BOTH),
    ],
    ids=["run", "filter", "qc", "import", "Python"],
)
def test_an_image_that_was_added_meanwhile_is_there(
    command: tuple[str, ...], key: str, names: list[str], project: Path
) -> None:
    features = {"type": "FeatureCollection", "features": [ANNOTATION]}
    Path("b.png.geojson").write_text(json.dumps(features))
    done = after_waiting(project, lambda: package.add_slides(project, ["b.png"], 0.25), *command)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    images = content["images"] if isinstance(content, dict) else content
    found = [image if isinstance(image, str) else image[key] for image in images]
    assert found == names


def test_a_backup_of_an_image_that_was_added_meanwhile_is_searched(project: Path) -> None:
    command = (*COMMAND, "project", "restore", "p", "--image", "b.png", "--latest")
    done = after_waiting(project, lambda: package.add_slides(project, ["b.png"], 0.25), *command)
    assert "the image has no backups" in done.stderr


@pytest.mark.parametrize("options", [("plan", "--backend", "native"), ("run", *RUN)])
def test_a_pixel_size_that_was_changed_meanwhile_is_that_of_the_plan(
    options: tuple[str, ...], project: Path
) -> None:
    command = (*COMMAND, *options, "p", "--tissue", "--run-dir", "the-run")
    done = after_waiting(project, partial(change_mpp, project), *command)
    assert done.returncode == 0, done.stderr
    (image,) = RunPlan.read(Path("the-run", "plan.json")).images
    assert (image.mpp, image.project_mpp) == ((0.5, 0.5), (0.5, 0.5))


def test_commit_refuses_an_image_whose_pixel_size_was_changed_meanwhile(project: Path) -> None:
    options = RunOptions(Selection(tissue=True), device="cpu", workers=1, run_dir=Path("run"))
    folder = package.infer(package.plan(project, options), device="cpu")
    (entry,) = open_project(project).images
    before = entry.data_path.read_bytes()
    change = partial(change_mpp, project)
    done = after_waiting(project, change, *COMMAND, "commit", folder, "--backend", "native")
    assert done.returncode == 1
    assert "the pixel size of image a.png changed in the project" in done.stderr
    assert entry.data_path.read_bytes() == before


@pytest.mark.parametrize("in_phases", [False, True])
def test_an_open_project_that_was_changed_in_qupath_is_analysed_as_it_is_now(
    in_phases: bool, project: Path
) -> None:
    options = RunOptions(Selection(tissue=True), device="cpu", workers=1, run_dir=Path("run"))
    opened = package.open_project(project, backend="native")
    change_mpp(project)
    if in_phases:
        folder = package.infer(package.plan(opened, options), device="cpu")
        summary = package.commit(folder, opened)
    else:
        summary = package.run(opened, options)
    assert summary.failures == []
    assert [image.mpp for image in summary.images] == [(0.5, 0.5)]
    (image,) = RunPlan.read(Path("run", "plan.json")).images
    assert (image.mpp, image.project_mpp) == ((0.5, 0.5), (0.5, 0.5))


def test_commit_into_an_open_project_sees_an_image_that_was_added_meanwhile(project: Path) -> None:
    options = RunOptions(Selection(tissue=True), device="cpu", workers=1)
    opened = package.open_project(project, backend="native")
    package.add_slides(project, ["b.png"], 0.25)
    folder = package.infer(package.plan(project, options), device="cpu")
    assert [image.name for image in package.commit(folder, opened).images] == BOTH


HELD = {
    "tile": (("run", "p", "--tissue", "--tile", "7"), "--tile"),
    "choices": (("run", "p", "--tissue", "--roi", "Tumor"), "--tissue"),
    "model": (("run", "p", "--tissue", "--model", "nothing"), "nothing"),
    "device": (("run", "p", "--tissue", "--device", "nothing"), "'nothing'"),
    "absent device": (("run", "p", "--tissue", "--device", "cuda:99"), "'cuda:99' was requested"),
    "limit": (("run", "p", "--tissue", "--dask", "local:1", "--unit-gib", "4"), "--unit-gib"),
    "table of a run": (("run", "p", "--tissue", "--mpp-table", "no.csv"), "no.csv"),
    "image root": (("run", "p", "--tissue", "--image-root", "no"), "no: no such folder"),
    "slides": (("run", "b.png", "-o", "r", "--device", "nothing"), "'nothing'"),
    "slides and tile": (("run", "a.png", "-o", "r", "--tile", "7"), "--tile"),
    "slides and image root": (
        ("run", "a.png", "-o", "r", "--image-root", "no"),
        "no: no such folder",
    ),
    "plan": (("plan", "p", "--tissue", "--model", "nothing"), "nothing"),
    "table of a plan": (("plan", "p", "--tissue", "--mpp-table", "no.csv"), "no.csv"),
    "commit": (("commit", "the-run", "--slides-from", "no"), "no: no such folder"),
    "filter": (("filter", "p"), "--min-certainty"),
    "qc": (("qc", "p", "--mpp-table", "no.csv"), "no.csv"),
    "import": (("geojson", "import", "p", "no.geojson"), "no.geojson"),
    "restore nothing": (("project", "restore", "p", "--image", "a.png"), "either --backup"),
    "restore both": (
        ("project", "restore", "p", "--image", "a.png", "--latest", "--backup", "1"),
        "either --backup",
    ),
}


@pytest.mark.parametrize(("command", "said"), HELD.values(), ids=HELD)
def test_nobody_waits_for_a_project_to_hear_of_a_wrong_option(
    command: tuple[str, ...], said: str, project: Path, qpnuclei: Call
) -> None:
    """Another process holds the project."""
    package.create_project("q", ["a.png"], mpp=0.25)
    results = ResultsFolder(Path("r"))
    results.project_of([Path("a.png")], AskedMpp(0.25), pytest.fail)
    tissue = RunOptions(Selection(tissue=True), run_dir=Path("the-run"))
    package.plan(project, tissue)
    with held_by_another(project.parent), held_by_another(results.path):
        outcome = qpnuclei(*command, "--no-wait")
        assert isinstance(qpnuclei("run", "p", "--tissue", *RUN, "--no-wait").error, LockedError)
    assert outcome.exit_code == 2
    assert said in f"{outcome.error}{outcome.stderr}"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: package.run("nowhere", "fast"), "not RunOptions"),
        (lambda: package.plan("nowhere", "fast"), "not RunOptions"),
        (lambda: package.run("nowhere", RunOptions(TISSUE, model="nothing")), "nothing"),
        (lambda: package.plan("nowhere", RunOptions(TISSUE, model="nothing")), "nothing"),
        (lambda: package.run("nowhere", RunOptions(TISSUE, device="nothing")), "nothing"),
        (lambda: package.commit("the-run", slides_from="no"), "no such folder"),
    ],
)
def test_python_checks_options_before_it_looks_for_a_project_and_waits(
    call: Callable[[], object], said: str
) -> None:
    with pytest.raises(QpnucleiError, match=said):
        call()


#: When another run makes the project: while this one checks its arguments, or reads its slides.
MEANWHILE = pytest.mark.parametrize(
    ("module", "step"), [(slides, "refuse_early"), (create, "describe_slides")]
)


def make_results_meanwhile(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType = slides, step: str = "refuse_early"
) -> ResultsFolder:
    """Let results of a.png be made during a step of a run of slides."""
    results = ResultsFolder(Path("r"))
    real = getattr(module, step)

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(module, step, real)
        results.project_of([Path("a.png")], AskedMpp(0.25), pytest.fail)
        return real(*arguments, **options)

    monkeypatch.setattr(module, step, meanwhile)
    return results


@pytest.mark.usefixtures("project")
def test_a_run_of_slides_does_not_wait_for_results_that_were_made_meanwhile(
    qpnuclei: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = make_results_meanwhile(monkeypatch)
    with ExitStack() as stack:
        make = ResultsFolder.project_of

        def made_and_held(*arguments: Any) -> object:
            assert not results.is_made, "it would wait"
            made = make(*arguments)
            stack.enter_context(held_by_another(results.path))
            return made

        monkeypatch.setattr(ResultsFolder, "project_of", made_and_held)
        command = ("run", "b.png", "-o", "r", "--mpp", "0.25", *RUN)
        assert isinstance(qpnuclei(*command, "--no-wait").error, LockedError)
    assert [image.name for image in open_project(results.path).images] == ["a.png"]


@MEANWHILE
@pytest.mark.usefixtures("project")
def test_a_run_of_slides_gives_its_pixel_size_to_results_that_were_made_meanwhile(
    qpnuclei: Call, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str
) -> None:
    make_results_meanwhile(monkeypatch, module, step)
    done = qpnuclei("run", "a.png", "-o", "r", "--mpp", "0.5", "--json", *RUN)
    assert done.exit_code == 0
    (image,) = json.loads(done.stdout)["images"]
    assert (image["name"], image["mpp"]) == ("a.png", [0.5, 0.5])


@MEANWHILE
@pytest.mark.usefixtures("project")
def test_a_run_of_slides_adds_its_own_to_results_that_were_made_meanwhile(
    qpnuclei: Call, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str
) -> None:
    results = make_results_meanwhile(monkeypatch, module, step)
    assert qpnuclei("run", "b.png", "-o", "r", "--mpp", "0.25", *RUN).exit_code == 0
    assert [image.name for image in open_project(results.path).images] == BOTH
    assert counts(results.path / "counts.csv").keys() == {*BOTH}


def test_of_two_runs_of_slides_the_second_writes_the_results_of_both(
    tmp_path: Path, qpnuclei: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one starts while the first one makes its report."""
    results = tmp_path / "results"
    first, second = (
        ("run", paint(tmp_path / name, (120, 120)), "-o", results, "--mpp", "0.25", *RUN)
        for name in BOTH
    )
    others: list[subprocess.Popen[str]] = []
    real = page.write_report

    def slow(*arguments: Any, **options: Any) -> object:
        others.append(started(*COMMAND, *second))
        read_until_it_waits(others[0].stderr)
        return real(*arguments, **options)

    monkeypatch.setattr(page, "write_report", slow)
    assert qpnuclei(*first).exit_code == 0
    with others[0] as other:
        _, stderr = other.communicate(timeout=300)
    assert other.returncode == 0, stderr
    assert counts(results / "counts.csv") == {"a.png": 1, "b.png": 1}
    assert "b.png" in (results / "report.html").read_text(encoding="utf-8")
    names = {path.name for path in results.iterdir() if path.is_file()}
    assert names == {"counts.csv", "report.html", "project.qpproj", "project.qpproj.backup"}
