"""Files are replaced together or not at all, whatever ends it between two of them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from qpnuclei.errors import SaveError
from qpnuclei.qupath.transaction import (
    LEFTOVER_AGE_S,
    Transaction,
    digest_of,
    digest_of_file,
    remove_leftovers,
    temporary_beside,
)


def test_digests_of_bytes_and_of_files_agree(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "file").write_bytes(data)
    assert digest_of_file(tmp_path / "file") == digest_of(data) != digest_of(b"")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def save(folder: Path, *names: str) -> None:
    with Transaction(folder) as transaction:
        for name in names:
            transaction.stage(folder / name, lambda emit: emit(b"new"))
        transaction.commit()


@pytest.mark.parametrize("end", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("linked", [True, False])
def test_what_ends_a_commit_between_two_renames_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException, linked: bool
) -> None:
    (tmp_path / "first").write_bytes(b"old")
    before = files(tmp_path)
    if not linked:  # as on a file system without hard links

        def refused(*_: object) -> None:
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(os, "link", refused)
    real = Path.replace

    def ending(path: Path, target: Path) -> Path:
        # The last file, which is staged first, is renamed after the new one.
        if path.suffix == ".tmp" and target.name == "first" and path.read_bytes() != b"old":
            raise end
        return real(path, target)

    monkeypatch.setattr(Path, "replace", ending)
    expected = SaveError if isinstance(end, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        save(tmp_path, "first", "second")
    assert files(tmp_path) == before


@pytest.mark.usefixtures("interrupts_are_heard")
@pytest.mark.parametrize("signalled", [True, False])
def test_ctrl_c_right_after_a_rename_leaves_all_old_or_all_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signalled: bool
) -> None:
    (tmp_path / "first").write_bytes(b"old")
    before = files(tmp_path)
    real = Path.replace

    def ending(path: Path, target: Path) -> Path:
        is_undo = path.read_bytes() == b"old"
        renamed = real(path, target)
        if target.name == "first" and not is_undo:
            if not signalled:  # one that could not be postponed
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)
        return renamed

    monkeypatch.setattr(Path, "replace", ending)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, "first", "second")
    new = {"first": b"new", "second": b"new"}
    assert files(tmp_path) == (new if signalled else before)


def test_a_renamed_file_gets_its_old_content_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(b"old " + name.encode())
    before = files(tmp_path)
    real = Path.replace

    def ending(path: Path, target: Path) -> Path:
        if target.name == "first":
            raise OSError(5, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(Path, "replace", ending)
    with pytest.raises(SaveError, match="first could not be saved"):
        save(tmp_path, "first", "second")
    assert files(tmp_path) == before


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    transaction = Transaction(tmp_path)
    with transaction, pytest.raises(SaveError, match=r"data could not be saved: No space left"):
        transaction.stage(tmp_path / "data", full)
    assert files(tmp_path) == {}


def test_leftovers_go_when_nobody_can_be_writing_them(tmp_path: Path) -> None:
    old, recent = (temporary_beside(tmp_path / "data") for _ in range(2))
    for path in (old, recent, tmp_path / "data"):
        path.write_bytes(b"")
    long_ago = time.time() - LEFTOVER_AGE_S - 60
    os.utime(old, (long_ago, long_ago))
    os.utime(tmp_path / "data", (long_ago, long_ago))
    remove_leftovers(tmp_path)
    assert sorted(files(tmp_path)) == sorted(["data", recent.name])
