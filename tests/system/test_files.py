"""Leftovers of killed processes, and owners of files."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qpnuclei.errors import SaveError, SlideError
from qpnuclei.nuclei.exports.spatialdata_store import check_store
from qpnuclei.qupath.create import check_new_folder
from qpnuclei.qupath.results_folder import ResultsFolder
from qpnuclei.system.files import (
    TEMPORARY_PREFIX,
    atomic_file,
    atomic_path,
    check_file_target,
    check_folder_target,
    content_of,
    make_folder_below,
    make_writable_folder,
    remove_leftovers,
    resolved,
    temporary_prefix,
    unreadable,
    write_atomically,
)
from qpnuclei.system.processes import Process

AS_ROOT = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away"
)


def test_a_loop_of_links_has_a_path(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert resolved(tmp_path / "a").parent == tmp_path.resolve()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, file = tmp_path / "link.csv", tmp_path / "elsewhere" / "real.csv"
    link.symlink_to(file)
    for content in (b"1", b"2"):  # the first one creates the file
        check_file_target(link)
        write_atomically(link, content)
        assert file.read_bytes() == content
    with atomic_path(link) as partial:
        partial.write_bytes(b"3")
    assert link.is_symlink()
    assert file.read_bytes() == b"3"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "elsewhere",
        "link.csv",
        "real.csv",
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    for write in (check_file_target, lambda path: write_atomically(path, b"1")):
        with pytest.raises(SaveError, match=r"pipe\.csv is not a regular file"):
            write(pipe)
    assert pipe.is_fifo()


def test_only_leftovers_of_ended_processes_of_this_computer_are_removed(tmp_path: Path) -> None:
    here = Process.this()
    dead = replace(here, begun="00000000").tag
    stay = [
        f"{TEMPORARY_PREFIX}{here.tag}-1.tmp",
        f"{TEMPORARY_PREFIX}{replace(here, machine='00000000').tag}-1.tmp",
        f"{TEMPORARY_PREFIX}old.tmp",
        f"mine-{dead}-1.part",
    ]
    for name in (*stay, f"{TEMPORARY_PREFIX}{dead}-1.part"):
        (tmp_path / name).touch()
    folder = tmp_path / f"{TEMPORARY_PREFIX}{dead}-2"
    (folder / "data" / "1").mkdir(parents=True)
    (folder / "data" / "1" / "data.qpdata").touch()
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(stay)


def test_a_link_among_them_is_not_followed(tmp_path: Path) -> None:
    dead = replace(Process.this(), begun="00000000").tag
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / f"{TEMPORARY_PREFIX}{dead}-1").symlink_to(tmp_path / "kept")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").exists()


def test_the_next_save_into_a_folder_removes_them(tmp_path: Path) -> None:
    name = temporary_prefix().replace(Process.this().begun, "00000000")
    (tmp_path / f"{name}x.part").touch()
    write_atomically(tmp_path / "table.csv", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


@AS_ROOT
def test_what_root_saves_stays_its_owners(tmp_path: Path) -> None:
    os.chown(tmp_path, 12345, 23456)
    make_folder_below(tmp_path, tmp_path / "a" / "b")
    path = tmp_path / "a" / "b" / "file"
    for _ in range(2):
        write_atomically(path, b"1")
        for made in (path, path.parent, path.parent.parent):
            assert (made.stat().st_uid, made.stat().st_gid) == (12345, 23456)
    os.chown(path, 111, 222)
    write_atomically(path, b"2")
    assert (path.stat().st_uid, path.stat().st_gid) == (111, 222)


@pytest.mark.parametrize("end", [OSError(errno.EIO, os.strerror(errno.EIO)), KeyboardInterrupt()])
def test_a_folder_stays_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    store = tmp_path / "nuclei.zarr"
    store.mkdir()
    (store / "chunk").write_bytes(b"old")

    def refused(*_: object) -> None:
        raise end

    def replace_store() -> None:
        with atomic_path(store) as partial:
            partial.mkdir()
            monkeypatch.setattr(Path, "replace", refused)

    with pytest.raises(SaveError if isinstance(end, OSError) else KeyboardInterrupt):
        replace_store()
    assert [path.name for path in tmp_path.iterdir()] == ["nuclei.zarr"]
    assert (store / "chunk").read_bytes() == b"old"


@pytest.mark.usefixtures("interrupts_are_heard")
def test_ctrl_c_between_its_two_renames_replaces_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "nuclei.zarr"
    store.mkdir()
    real = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        renamed = real(path, target)
        signal.raise_signal(signal.SIGINT)
        return renamed

    def replace_store() -> None:
        with atomic_path(store) as partial:
            partial.mkdir()
            (partial / "chunk").write_bytes(b"new")

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_store()
    assert [path.name for path in tmp_path.iterdir()] == ["nuclei.zarr"]
    assert (store / "chunk").read_bytes() == b"new"


def test_a_full_disk_is_told_with_what_is_free_and_where(tmp_path: Path) -> None:
    path = tmp_path / "data.qpdata"
    path.write_bytes(b"before")

    def fill() -> None:
        with atomic_file(path) as stream:
            stream.write(b"after")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SaveError) as caught:
        fill()
    assert caught.value.what.startswith(f"{path} cannot be written: No space left on device (")
    assert caught.value.what.endswith(f" MB are free on the disk of {tmp_path})")
    assert "qpnuclei-backups" in caught.value.hint
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [
        ("data.qpdata", b"before")
    ]


def test_an_error_about_an_unreadable_file_has_a_reason_and_no_more() -> None:
    for error, reason in (
        (PermissionError(errno.EACCES, "Permission denied", "a/plan.json"), "Permission denied"),
        (OSError("the drive is gone"), "the drive is gone"),  # it has no strerror
        (ValueError("no JSON"), "no JSON"),
    ):
        found = unreadable(Path("a/plan.json"), error, SlideError, "copy it again")
        assert isinstance(found, SlideError)
        assert found.what == f"{Path('a/plan.json')} cannot be read: {reason}"
        assert found.hint == "copy it again"


def test_what_others_leave_in_a_folder_is_not_its_content(tmp_path: Path) -> None:
    leftovers = [".DS_Store", "Thumbs.db", "desktop.ini", ".directory", "._slide.svs"]
    for name in (*leftovers, ".qpnuclei-0badcafe-1-00000000-x.part"):
        (tmp_path / name).touch()
    # A process of another computer was killed while it made a project here.
    (tmp_path / ".qpnuclei-0badcafe-1-00000000-y" / "data").mkdir(parents=True)
    assert content_of(tmp_path) == []
    check_new_folder(tmp_path)
    ResultsFolder(tmp_path).check()
    found = [tmp_path / name for name in (".config", ".qpnuclei", "a.part")]
    for path in found:
        path.mkdir()
    assert sorted(content_of(tmp_path)) == sorted(found)


def test_a_target_is_checked_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SaveError, match=r"a\.csv cannot be written: .*file is not a folder"):
        check_file_target(tmp_path / "file" / "deep" / "a.csv")
    with pytest.raises(SaveError, match="file cannot be written: "):
        check_folder_target(tmp_path / "file")
    with pytest.raises(SaveError, match="cannot be written: it is a folder"):
        check_file_target(tmp_path)
    check_file_target(tmp_path / "file")
    check_file_target(tmp_path / "new" / "deep" / "a.csv")
    check_folder_target(tmp_path / "new" / "deep")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["x" * 300, f"{'x' * 300}/deep"])
def test_a_target_whose_name_is_too_long_is_one_error(tmp_path: Path, name: str) -> None:
    for check in (check_file_target, check_folder_target, make_writable_folder, check_new_folder):
        with pytest.raises(SaveError, match=r"xxx.*: File name too long"):
            check(tmp_path / name)
    with pytest.raises(SaveError, match=r"xxx.*: File name too long"):
        ResultsFolder(tmp_path / name).check()
    with pytest.raises(SaveError, match=r"xxx.*: File name too long"):
        check_store(tmp_path / f"{name}.zarr")


def as_nobody(check: Callable[[Path], None], path: Path) -> str:
    """Return the error of a check that is made without the rights of root."""
    os.seteuid(65534)
    try:
        with pytest.raises(SaveError) as caught:
            check(path)
    finally:
        os.seteuid(0)
    return caught.value.what


@AS_ROOT
def test_a_target_in_a_folder_that_may_not_be_entered_is_one_error(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    for check in (check_file_target, check_folder_target, make_writable_folder, check_new_folder):
        assert as_nobody(check, closed / "a").endswith(": Permission denied")
