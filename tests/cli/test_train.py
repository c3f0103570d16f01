from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.cli.console import in_words
from qpnuclei.cli.train import ConsoleCallbacks
from qpnuclei.errors import DeviceError, NotFoundError, QpnucleiError, UsageError
from tests.training.student.tissue import tissue

TINY = [
    *(
        "width=4",
        "dilations=[1,2]",
        "scale_network=resnet10",
        "scale_width=4",
        "scales=[0.25,0.5]",
        "tile_px=112",
    ),
    *("crop_px=64", "batch_size=4", "batches_per_epoch=2", "epochs=1", "starts=1"),
]


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    folder = tmp_path / "patches"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rgb = np.clip(rng.normal((200, 130, 170), 25, (256, 256, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(rgb).save(folder / "p.png")
    return folder


def arguments(*extra: str) -> list[str]:
    settings = [part for setting in TINY for part in ("--set", setting)]
    recipe = [] if "--config" in extra else ["--config", "proposed"]
    return ["train", "--mpp", "0.25", "--device", "cpu", "--quiet", *recipe, *settings, *extra]


def run(*extra: str) -> str:
    result = CliRunner().invoke(app, arguments(*extra), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refuse(error: type[QpnucleiError], match: str, *extra: str) -> None:
    with pytest.raises(error, match=match):
        CliRunner().invoke(app, arguments(*extra), catch_exceptions=False)


def test_from_patches_to_a_model_and_on(patches: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    output = run(str(patches), "-o", str(folder), "--config", "anchored")
    assert "training on 1 image on cpu" in output
    assert f"{folder / 'model.safetensors'} (epoch 1)" in output
    more = run(str(patches), "-o", str(folder), "--config", "anchored", "--resume", "--epochs", "2")
    assert "(epoch 2)" in more


def test_what_is_asked_for_wrongly_is_refused(patches: Path, tmp_path: Path) -> None:
    folder = ("-o", str(tmp_path / "run"))
    refuse(NotFoundError, "no recipe named 'best'", str(patches), *folder, "--config", "best")
    refuse(NotFoundError, "no such slide", str(tmp_path / "absent"), *folder)
    refuse(UsageError, "no field 'depth'", str(patches), *folder, "--set", "depth=3")
    # A wrong recipe is said before anything about the slides.
    absent = (str(tmp_path / "absent"), *folder)
    refuse(UsageError, "no field 'depth'", *absent, "--set", "depth=3")
    refuse(UsageError, "no field .* of the student family", *absent, "--config", "student")
    refuse(UsageError, "'0.25;1' is not a list", str(patches), *folder, "--scales", "0.25;1")
    refuse(UsageError, "no source is a QuPath project", str(patches), *folder, "--roi", "Tumor")
    refuse(DeviceError, "cuda:99", str(patches), *folder, "--device", "cuda:99")
    refuse(NotFoundError, "no run to resume", str(patches), *folder, "--resume")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to a process there")
def test_ctrl_c_saves_and_the_run_goes_on(patches: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    many = arguments(str(patches), "-o", str(folder), "--set", "batches_per_epoch=100000")

    def press() -> None:
        # When it has begun. In this process, which has torch; the next test starts one.
        while not (folder / "tensorboard").is_dir():
            if ended.wait(0.1):
                return
        os.kill(os.getpid(), signal.SIGINT)

    ended = threading.Event()
    presser = threading.Thread(target=press)
    presser.start()
    try:
        result = CliRunner().invoke(app, many, catch_exceptions=False)
    finally:
        ended.set()
        presser.join()
    assert result.exit_code == 130, result.output
    assert "stopped and saved" in result.stderr
    assert (folder / "state.pt").is_file()


def test_the_estimate_counts_the_batches_of_the_starts() -> None:
    def said(starts: int, batches: list[tuple[int, int]]) -> str:
        text = io.StringIO()
        with Progress(console=Console(file=text, width=200)) as bar:
            callbacks = ConsoleCallbacks(bar, lambda: False)
            callbacks.on_train_begin(4, 100)
            if starts:
                callbacks.on_starts_begin(starts)
            for epoch, batch in batches:
                callbacks.on_batch_end(epoch, batch, {})
        return text.getvalue()

    assert "476 batches of about" in said(80, [(0, n) for n in range(1, 5)])
    assert "starts" in said(80, [(0, 1)])
    assert "399 batches of about" in said(3, [(0, 1), (0, 2), (0, 3), (1, 1)])
    # A run that goes on has no starts.
    assert "298 batches of about" in said(0, [(1, 99), (1, 100), (2, 1), (2, 2)])


#: A student whose first round takes long, and whose every step is short.
SMALL_STUDENT = (
    *("base_channels=4", "levels=2", "max_channels=8", "rounds=1", "batch_size=2", "crop_px=64"),
    *("learning_rate=0.02", "renditions=0", "first_round_batches=100"),
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to a process there")
def test_a_student_stopped_in_its_first_round_goes_on_by_the_hint(tmp_path: Path) -> None:
    rgb, _ = tissue(0)
    folder = tmp_path / "slides [old]"  # of a name that a shell and rich would take for more
    folder.mkdir()
    Image.fromarray(rgb).save(folder / "p.png")
    # Without --config.
    command = ["train", str(folder), "-o", str(tmp_path / "run [b]"), "--mpp", "0.25"]
    command += ["--device", "cpu", *(w for s in SMALL_STUDENT for w in ("--set", s))]
    program = [sys.executable, "-u", "-m", "qpnuclei"]
    process = subprocess.Popen([*program, *command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "100 batches of about" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == 130, said + rest
    assert "stopping: saving after this step" in rest
    hint = re.search(r"to continue: qpnuclei (.*)", rest)
    assert hint is not None, rest
    assert not (tmp_path / "run [b]" / "model.safetensors").exists()

    with pytest.raises(UsageError) as again:
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert "continue it with --resume" in f"{again.value}"

    # As a shell splits it.
    done = CliRunner().invoke(app, shlex.split(hint[1]), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run [b]" / "model.safetensors").is_file()
    assert str(tmp_path / "run [b]" / "model.safetensors") in done.stdout


#: Runs a command, and kills it while its first file is written.
KILLED = """
import os, sys
os.fsync = lambda _: os._exit(137)
from qpnuclei.__main__ import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["attention", "student"])
def test_a_run_killed_while_it_writes_its_first_file_is_started_again(
    tmp_path: Path, family: str
) -> None:
    rgb, _ = tissue(0)
    Image.fromarray(np.tile(rgb, (2, 2, 1))).save(tmp_path / "p.png")
    run = tmp_path / "run"
    extra = [str(tmp_path / "p.png"), "-o", str(run)]
    if family == "student":
        short = [*SMALL_STUDENT, "first_round_batches=2"]
        command = ["train", "--mpp", "0.25", "--device", "cpu", *extra]
        command += [part for setting in short for part in ("--set", setting)]
    else:
        command = arguments(*extra)
    killed = subprocess.run([sys.executable, "-c", KILLED, *command], check=False)
    assert killed.returncode == 137
    assert [path.suffix for path in run.iterdir()] == [".part"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert (run / "model.safetensors").is_file()


def test_what_a_student_has_not_is_refused(patches: Path, tmp_path: Path) -> None:
    folder = ("-o", str(tmp_path / "run"))
    for option in ("--epochs", "--scales", "--backbone-weights"):
        call = ["train", str(patches), *folder, "--mpp", "0.25", option, "3"]
        with pytest.raises(UsageError, match=f"{option} was given, but the recipe student"):
            CliRunner().invoke(app, call, catch_exceptions=False)


def test_a_slide_too_coarse_for_the_student_is_refused(patches: Path, tmp_path: Path) -> None:
    call = ["train", str(patches), "-o", str(tmp_path / "run"), "--mpp", "0.5", "--device", "cpu"]
    with pytest.raises(UsageError, match=r"p\.png: up to 0\.5 µm/px, coarser than the 0\.25 µm/px"):
        CliRunner().invoke(app, call, catch_exceptions=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "about 1 min"),
        (150, "about 2 min"),
        (3600, "about 1 h 0 min"),
        (9_000, "about 2 h 30 min"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from qpnuclei.cli.train import train; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'cv2', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
