"""Backups of replaced files, and how they are restored."""

import json
from pathlib import Path

import pytest

from qpnuclei.errors import FormatError, SaveError, UsageError
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.qupath import transaction
from qpnuclei.qupath.backups import BACKUP_COUNT, BACKUP_FOLDER, choose_backup
from qpnuclei.qupath.model import Edit
from qpnuclei.qupath.native import open_project
from tests.qupath.samples import VERSIONS, copy_project
from tests.qupath.test_native import failing, group, snapshot


def edited_image(version, tmp_path, times=1):
    """Open an image that was edited some times; return it and its states before each time."""
    image = open_project(copy_project(version, tmp_path)).images[0]
    states = []
    for seed in range(times):
        states.append(image.data_path.read_bytes())
        image.write(Edit(add=[group(0, 2, seed)]), image.read().fingerprint)
    return image, states


@pytest.mark.parametrize("version", VERSIONS)
def test_restoring_gives_the_same_bytes_and_can_be_undone(version, tmp_path):
    image, (original,) = edited_image(version, tmp_path)
    edited = image.data_path.read_bytes()
    before = json.loads((tmp_path / version / "project/data/1/summary.json").read_text())
    (backup,) = image.backups()
    assert backup.path.read_bytes() == original
    assert (backup.size, backup.saved <= backup.replaced) == (len(original), True)
    assert not any(map(is_ours, image.read_backup(backup).detections.ids))

    image.restore(backup)
    assert image.data_path.read_bytes() == original
    after = json.loads((image.folder / "summary.json").read_text())
    assert after["hierarchy"]["nObjects"] == before["hierarchy"]["nObjects"] - 2
    assert after["timestamp"] == image.data_path.stat().st_mtime_ns // 1_000_000

    image.restore(choose_backup(image.backups(), None))
    assert image.data_path.read_bytes() == edited


def test_they_are_listed_newest_first(tmp_path):
    image, states = edited_image("0.5.1", tmp_path, BACKUP_COUNT + 1)
    (image.folder / BACKUP_FOLDER / "notes.txt").write_text("not a backup")
    (image.folder / BACKUP_FOLDER / "99999999T999999.000000Z-data.qpdata").write_text("nor this")
    backups = image.backups()
    assert [b.path.read_bytes() for b in backups] == states[:0:-1]
    assert choose_backup(backups, backups[2].id) is backups[2]
    with pytest.raises(UsageError, match="the image has no backup") as error:
        choose_backup(backups, "../../1")
    assert backups[0].id in error.value.hint
    with pytest.raises(UsageError, match="has no backups"):
        choose_backup([], None)


def test_what_qupath_left_of_a_failed_save_is_kept_and_can_be_restored(tmp_path):
    image, _ = edited_image("0.5.1", tmp_path)
    left = image.data_path.rename(image.folder / "data.qpdata.bkp")
    content = left.read_bytes()
    image.restore(image.backups()[0])
    assert not left.exists()
    newest = image.backups()[0]
    assert newest.id.endswith(".bkp")
    image.restore(newest)
    assert image.data_path.read_bytes() == content


def test_a_damaged_file_is_replaced_but_no_damaged_backup_is_restored(tmp_path):
    image, (original,) = edited_image("0.5.1", tmp_path)
    image.data_path.write_bytes(b"damaged")
    image.restore(image.backups()[0])
    assert image.data_path.read_bytes() == original
    damaged = image.backups()[0]
    assert damaged.path.read_bytes() == b"damaged"
    before = snapshot(tmp_path, ignore="none")
    with pytest.raises(FormatError, match="byte 0"):
        image.restore(damaged)
    damaged.path.write_bytes(original[:-100])
    before = snapshot(tmp_path, ignore="none")
    with pytest.raises(FormatError, match=rf"{damaged.id}-data\.qpdata: byte \d+"):
        image.restore(damaged)
    assert snapshot(tmp_path, ignore="none") == before


def test_a_failure_at_any_step_leaves_everything_as_it_was(tmp_path, monkeypatch):
    image, _ = edited_image("0.5.1", tmp_path)
    backup = image.backups()[0]
    with monkeypatch.context() as context:
        total = failing(context, 0)
        image.restore(backup)
    assert total.calls > 10
    backup = image.backups()[0]
    before = snapshot(tmp_path)
    for step in range(1, total.calls + 1):
        with monkeypatch.context() as context:
            failing(context, step)
            with pytest.raises(SaveError, match="No space left on device"):
                image.restore(backup)
        assert snapshot(tmp_path) == before, step


def test_a_backup_is_whole_or_not_there(tmp_path, monkeypatch):
    """Killed while it is copied, the copy must not pass for a backup."""
    image, _ = edited_image("0.5.1", tmp_path)
    known = image.backups()
    real, seen = transaction.shutil.copyfile, []

    def copy_slowly(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:100])
        seen.append(image.backups())
        return real(source, target)

    monkeypatch.setattr(transaction.shutil, "copyfile", copy_slowly)
    image.write(Edit(add=[group(0, 2, 5)]), image.read().fingerprint)
    assert seen == [known]
    assert len(image.backups()) == 2


def test_the_last_backup_is_kept_and_restored_whatever_the_clock(tmp_path):
    """Backups of a computer whose clock was ahead look newer than any made now."""
    image, _ = edited_image("0.5.1", tmp_path, BACKUP_COUNT)
    for backup in image.backups():
        ahead = backup.path.name.replace(backup.id[:4], "2999", 1)
        backup.path.rename(backup.path.with_name(ahead))
    foreign = image.folder / BACKUP_FOLDER / "a-data.qpdata"
    foreign.write_text("not ours")
    for seed in range(2):
        last = image.data_path.read_bytes()
        known = [backup.path.read_bytes() for backup in image.backups()]
        image.write(Edit(add=[group(0, 2, 100 + seed)]), image.read().fingerprint)
        assert [b.path.read_bytes() for b in image.backups()] == [last, *known[:-1]]
    image.restore(choose_backup(image.backups(), None))
    assert image.data_path.read_bytes() == last
    assert foreign.exists()


def test_a_backup_from_the_end_of_time_is_named(tmp_path):
    image, _ = edited_image("0.5.1", tmp_path)
    (backup,) = image.backups()
    last = backup.path.rename(backup.path.with_name("99991231T235959.999999Z-data.qpdata"))
    before = snapshot(tmp_path)
    with pytest.raises(SaveError, match=rf"{last.name}: its name is the latest possible time"):
        image.write(Edit(add=[group(0, 2, 9)]), image.read().fingerprint)
    assert snapshot(tmp_path) == before
