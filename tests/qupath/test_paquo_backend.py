"""What the paquo backend does around QuPath; what it does with QuPath is in test_parity."""

from __future__ import annotations

from pathlib import Path

import pytest

from qpnuclei.errors import FormatError, SaveError
from qpnuclei.qupath import paquo_backend
from tests.qupath.native.samples import SAMPLES


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def save_badly(folder: Path, error: BaseException) -> None:
    """What is left of a save by QuPath that failed after it wrote."""
    (folder / "data.qpdata").write_bytes(b"new")
    (folder / "data.qpdata.bkp").write_bytes(b"old")
    (folder / "summary.json").write_bytes(b"{}")
    raise error


@pytest.mark.parametrize(
    "before",
    [
        {},
        {"data.qpdata": b"old"},
        {"data.qpdata": b"old", "summary.json": b"{1}", "data.qpdata.bkp": b"older"},
    ],
)
@pytest.mark.parametrize("error", [SaveError("does not read back"), KeyboardInterrupt()])
def test_a_failed_save_leaves_what_was_there(
    tmp_path: Path, before: dict[str, bytes], error: BaseException
) -> None:
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    with (
        pytest.raises(type(error)),
        paquo_backend._kept_on_failure(tmp_path / "data.qpdata"),
    ):
        save_badly(tmp_path, error)
    assert contents(tmp_path) == before


def test_a_good_save_stays(tmp_path: Path) -> None:
    (tmp_path / "data.qpdata").write_bytes(b"old")
    with paquo_backend._kept_on_failure(tmp_path / "data.qpdata"):
        (tmp_path / "data.qpdata").write_bytes(b"new")
    assert contents(tmp_path) == {"data.qpdata": b"new"}


def test_uuids_in_files_of_all_versions() -> None:
    # Entry 2 holds a root, an annotation, 50 detections and 6 TMA cores, in files of QuPath 0.4
    # and newer each with a UUID. Those of 0.2 and 0.3 have none.
    numbers = {
        folder.name: len(
            paquo_backend._stored_ids(folder / "project" / "data" / "2" / "data.qpdata")
        )
        for folder in SAMPLES.iterdir()
    }
    assert {version for version, n in numbers.items() if n == 58} == {
        "0.4.4", "0.5.1", "0.6.0", "0.7.0",
    }  # fmt: skip
    assert {n for version, n in numbers.items() if version < "0.4"} == {0}


def test_a_file_without_its_end_mark(tmp_path: Path) -> None:
    file = tmp_path / "data.qpdata"
    file.write_bytes(b"\xac\xed\x00\x05 t\0\3EO")
    with pytest.raises(FormatError, match="byte 10: ends before its end mark"):
        paquo_backend._check_complete(file)
    file.write_bytes(b"\xac\xed\x00\x05 t\0\3EOF")
    paquo_backend._check_complete(file)
