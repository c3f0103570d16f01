from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.cli.train import stop_on_interrupt
from qpnuclei.errors import DeviceError, NotFoundError, QpnucleiError, UsageError

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
    return ["train", "--mpp", "0.25", "--device", "cpu", "--quiet", *settings, *extra]


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
    assert "learning from 1 images on cpu" in output
    assert f"{folder / 'model.safetensors'} (epoch 1)" in output
    more = run(str(patches), "-o", str(folder), "--config", "anchored", "--resume", "--epochs", "2")
    assert "(epoch 2)" in more


def test_what_is_asked_for_wrongly_is_refused(patches: Path, tmp_path: Path) -> None:
    folder = ("-o", str(tmp_path / "run"))
    refuse(NotFoundError, "no recipe named 'best'", str(patches), *folder, "--config", "best")
    refuse(NotFoundError, "no such slide", str(tmp_path / "absent"), *folder)
    refuse(UsageError, "no field 'depth'", str(patches), *folder, "--set", "depth=3")
    refuse(UsageError, "'0.25;1' is no list", str(patches), *folder, "--scales", "0.25;1")
    refuse(UsageError, "no source is a QuPath project", str(patches), *folder, "--roi", "Tumor")
    refuse(DeviceError, "cuda:99", str(patches), *folder, "--device", "cuda:99")
    refuse(NotFoundError, "no run to resume", str(patches), *folder, "--resume")
    assert not (tmp_path / "run").exists()


def test_the_first_interrupt_asks_and_the_second_ends() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT cannot be sent to a process there")
def test_ctrl_c_saves_and_the_run_goes_on(patches: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    many = arguments(str(patches), "-o", str(folder), "--set", "batches_per_epoch=100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "qpnuclei", *many], stderr=subprocess.PIPE, text=True
    )
    for _ in range(600):
        if (folder / "tensorboard").is_dir():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 0, messages
    assert "stopped and saved" in messages
    assert (folder / "state.pt").is_file()


def test_help_does_not_wait_for_torch() -> None:
    program = (
        "import sys; from qpnuclei.cli.train import train; "
        "sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'cv2', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
