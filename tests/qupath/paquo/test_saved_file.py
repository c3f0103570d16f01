from __future__ import annotations

from pathlib import Path

import pytest

from qpnuclei.errors import FormatError, SaveError
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.paquo.saved_file import check_complete, fingerprint_of, kept_on_failure
from tests.qupath.samples import contents, copy_project


def save_badly(folder: Path, error: BaseException) -> None:
    """A data file after a save of QuPath that failed after writing."""
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
        kept_on_failure(tmp_path / "data.qpdata"),
    ):
        save_badly(tmp_path, error)
    assert contents(tmp_path) == before


def test_a_good_save_stays(tmp_path: Path) -> None:
    (tmp_path / "data.qpdata").write_bytes(b"old")
    with kept_on_failure(tmp_path / "data.qpdata"):
        (tmp_path / "data.qpdata").write_bytes(b"new")
    assert contents(tmp_path) == {"data.qpdata": b"new"}


def test_a_file_without_its_end_mark(tmp_path: Path) -> None:
    file = tmp_path / "data.qpdata"
    file.write_bytes(b"\xac\xed\x00\x05 t\0\3EO")
    with pytest.raises(FormatError, match="byte 10: ends before its end mark"):
        check_complete(file)
    file.write_bytes(b"\xac\xed\x00\x05 t\0\3EOF")
    check_complete(file)


def test_both_backends_give_the_same_fingerprint(tmp_path: Path) -> None:
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    assert fingerprint_of(image.data_path) == image.read().fingerprint
    image.data_path.unlink()
    assert fingerprint_of(image.data_path) == image.read().fingerprint
