"""Whatever happens while an image is saved, the project holds the old state or the new one."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qpnuclei.errors import SaveError
from qpnuclei.qupath.backups import BACKUP_FOLDER
from qpnuclei.qupath.model import Edit
from qpnuclei.qupath.native import open_project
from qpnuclei.system.files import TEMPORARY_PREFIX
from qpnuclei.system.locks import LOCK_NAME, locked
from tests.paths import ROOT
from tests.qupath.samples import copy_project
from tests.qupath.test_native import group, snapshot

KILLS = 15

# Saves the image again and again, with detections of ours and without, in a child that is forked
# for each line of input: to start Python anew for each kill would take longer than all saves.
SAVER = """
import os, sys
from tests.ids import removal
from tests.qupath.test_native import Edit, group, open_project
image = open_project(sys.argv[1]).images[2]
ours = group(0, 3)
for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        while True:
            objects = image.read()
            there = removal(image, ours.ids)
            edit = there if there.remove else Edit(add=[ours])
            image.write(edit, objects.fingerprint)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL and fork are not of Windows")
def test_killed_at_any_moment_of_a_save(tmp_path):
    path = copy_project("0.3.2", tmp_path)
    image = open_project(path).images[2]
    states = {image.data_path.read_bytes(): image.read()}
    classes = {open_project(path).classes_path.read_bytes()}
    start = time.perf_counter()
    image.write(Edit(add=[group(0, 3)]), image.read().fingerprint)
    duration = time.perf_counter() - start
    states[image.data_path.read_bytes()] = image.read()
    classes.add(open_project(path).classes_path.read_bytes())
    untouched = snapshot(path.parent, ignore="3")

    delays = random.Random(20260101)
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with saver:
        for _ in range(KILLS):
            saver.stdin.write("save\n")
            saver.stdin.flush()
            child = int(saver.stdout.readline())
            time.sleep(delays.uniform(0, 4 * duration))
            os.kill(child, signal.SIGKILL)
            assert saver.stdout.readline() == "killed\n"

            image = open_project(path).images[2]
            found = image.data_path.read_bytes()
            assert found in states
            assert image.read().annotations == states[found].annotations
            assert list(image.read().detections.ids) == list(states[found].detections.ids)
            assert open_project(path).classes_path.read_bytes() in classes
            summary = json.loads((image.folder / "summary.json").read_text())
            # It follows the data file in a moment of its own; QuPath never reads it.
            assert summary["hierarchy"]["objectTypeCounts"].get("Detections", 0) in (0, 3)
            for backup in image.backups():
                assert backup.path.read_bytes() in states
            others = {p.name for p in image.folder.iterdir()} - {"data.qpdata", BACKUP_FOLDER}
            others -= {"summary.json", "thumbnail.jpg", "server.json"}
            assert all(name.startswith(TEMPORARY_PREFIX) for name in others)
            # The next save removes a lock and temporary files.
            kept = snapshot(path.parent, ignore="3").items()
            assert {n: data for n, data in kept if ".qpnuclei" not in n} == untouched
        saver.stdin.close()
    with locked(path.parent, wait=False):
        pass
    assert not (path.parent / LOCK_NAME).exists()


@pytest.mark.skipif(os.name == "nt", reason="limits of file sizes are not of Windows")
@pytest.mark.parametrize("part", [0, 0.01, 0.5, 0.999])
def test_a_disk_that_is_full_at_some_byte(part, tmp_path):
    """The kernel cuts the write off: all but the last bytes of a file may be on the disk."""
    import resource

    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    before = snapshot(tmp_path)
    fingerprint = image.read().fingerprint
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = int(part * image.data_path.stat().st_size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(SaveError, match="File too large"):
            image.write(Edit(add=[group(0)]), fingerprint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO, errno.ENOENT])
@pytest.mark.parametrize("refused", ["xb", "rb+"])  # the new file; the copies of the old ones
def test_a_folder_that_cannot_be_written(code, refused, tmp_path, monkeypatch):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    before = snapshot(tmp_path)
    fingerprint = image.read().fingerprint
    real = Path.open

    def refuse(path, mode="r", *arguments, **options):
        if mode == refused:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(SaveError) as error:
        image.write(Edit(add=[group(0)]), fingerprint)
    assert os.strerror(code) in error.value.what
    monkeypatch.undo()
    assert snapshot(tmp_path) == before


def test_something_else_has_the_name_of_the_backup_folder(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    (image.folder / BACKUP_FOLDER).write_text("not a folder")
    before = snapshot(tmp_path, ignore="none")
    with pytest.raises(SaveError, match="the backup could not be written"):
        image.write(Edit(add=[group(0)]), image.read().fingerprint)
    assert snapshot(tmp_path, ignore="none") == before
