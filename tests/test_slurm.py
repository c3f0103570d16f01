"""The scripts for Slurm, with a stand-in that runs a job when it is submitted."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qpnuclei.qupath.native import open_project
from tests.paths import ROOT
from tests.pipeline.killing import make_project
from tests.segmentation.onnx_models import dark_in_onnx

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="Slurm is for Linux")

#: Runs each job of an array, one after the other, and notes what it was called with.
SBATCH = """#!/bin/bash
echo "$*" >> calls
jobs=
while [[ $1 == --* ]]; do
  case $1 in --array=1-*) jobs=${1#--array=1-};; --output=*) log=${1#--output=};; esac
  shift
done
export SLURM_ARRAY_JOB_ID=77
for SLURM_ARRAY_TASK_ID in $(seq 1 ${jobs:-1}); do
  export SLURM_ARRAY_TASK_ID
  bash "$@" >> "${log//%a/$SLURM_ARRAY_TASK_ID}" 2>&1
done
echo "77;a-cluster"
"""


def command(folder: Path, name: str, text: str) -> None:
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def call(folder: Path, *arguments: object, **environment: str) -> str:
    return subprocess.run(
        ["bash", *map(str, arguments)],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.slow
def test_an_array_of_jobs_is_a_run(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 2)
    (place / "1.tif").unlink()  # the plan fails for this image, and the run continues
    command(tmp_path, "sbatch", SBATCH)
    command(tmp_path, "qpnuclei", f'#!/bin/sh\nexec {sys.executable} -m qpnuclei "$@"\n')
    script = ROOT / "packaging" / "slurm" / "run.sh"
    options = "--roi", "Tumor", "--backend", "native", "--model", dark_in_onnx(tmp_path)
    said = call(tmp_path, script, place / "project", tmp_path / "the run", *options, JOBS="2")
    assert said.splitlines()[-1] == f"array job 77; the logs are in {tmp_path / 'the run'}"
    record = json.loads((tmp_path / "the run" / "run.json").read_text())
    assert record["state"] == "failed"
    assert [failure["image"] for failure in record["failures"]] == ["1.tif"]
    image, _ = open_project(place / "project").images
    assert len(image.read().detections) == record["images"][0]["nuclei"] > 0
    array, commit = (tmp_path / "calls").read_text().splitlines()
    assert "--array=1-2 --requeue --signal=B:TERM@120" in array
    assert "--gres=gpu:1" in array
    assert "--dependency=afterany:77 " in commit
    # Without a plan, nothing is submitted.
    with pytest.raises(subprocess.CalledProcessError) as failed:
        call(tmp_path, script, place / "project", tmp_path / "calls", *options)
    assert failed.value.returncode == 1
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


def test_a_job_that_is_asked_to_end_is_queued_again(tmp_path: Path) -> None:
    # It hears SIGTERM, finishes its unit and says so, as `qpnuclei infer` does.
    infer = """#!/bin/bash
trap 'sleep 0.2; exit 143' TERM
for _ in $(seq 100); do kill -TERM $PPID; sleep 0.2; done
"""
    command(tmp_path, "qpnuclei", infer)
    command(tmp_path, "scontrol", '#!/bin/bash\necho "$*" > requeued\n')
    job = ROOT / "packaging" / "slurm" / "infer.sbatch"
    array = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_ID": "3"}
    with pytest.raises(subprocess.CalledProcessError) as ended:
        call(tmp_path, job, tmp_path, 20, **array)
    assert ended.value.returncode == 143
    assert (tmp_path / "requeued").read_text() == "requeue 77_3\n"
    # Another error is not repeated.
    (tmp_path / "requeued").unlink()
    command(tmp_path, "qpnuclei", "#!/bin/bash\nexit 1\n")
    with pytest.raises(subprocess.CalledProcessError) as failed:
        call(tmp_path, job, tmp_path, 20, **array)
    assert failed.value.returncode == 1
    assert not (tmp_path / "requeued").exists()
