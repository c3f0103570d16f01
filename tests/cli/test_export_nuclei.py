from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from qpnuclei.errors import UsageError
from tests.cli.conftest import Outcome

Call = Callable[..., Outcome]
Sample = Callable[..., Path]
Program = Callable[..., subprocess.CompletedProcess[str]]

NATIVE = ("--backend", "native")


def test_export_of_nuclei_says_what_it_wrote(
    qpnuclei: Call, sample: Sample, tmp_path: Path
) -> None:
    project, path = sample(), tmp_path / "nuclei.csv"
    done = qpnuclei("export", project, "--by", "nucleus", "-o", path, "--json", *NATIVE)
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert said["files"] == [str(path)]
    assert [image["nuclei"] for image in said["images"]] == [6, 50, 0]
    # Images of which the file has nothing are named.
    empty = said["images"][2]["image"]
    assert f"no nuclei in 1 of 3 images: {empty} (qpnuclei run finds them)" in done.stderr
    assert len(path.read_text("utf-8-sig").splitlines()) == 57
    one = qpnuclei(
        "export", project, "--by", "nucleus", "-o", tmp_path / "one", "--format", "ome-tiff",
        "--image", "2", *NATIVE,
    )  # fmt: skip
    assert one.exit_code == 0
    assert len(list((tmp_path / "one").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--by", "nucleus", "-o", "n.xlsx"), r"n\.xlsx.*\.h5ad"),
        (("--by", "image", "-o", "n.csv", "--format", "csv"), "--format is only for --by nucleus"),
        (("--by", "image", "-o", "n.csv", "--roi", "Tumor"), "--by image .* --roi .*--by class"),
        (
            ("--by", "nucleus", "-o", "n.csv", "--roi", "Nowhere"),
            "no annotation of class 'Nowhere'",
        ),
    ],
)
def test_wrong_requests(
    qpnuclei: Call, sample: Sample, arguments: tuple[str, ...], reason: str
) -> None:
    done = qpnuclei("export", sample(), *arguments, *NATIVE)
    assert isinstance(done.error, UsageError)
    assert done.exit_code == 2
    assert re.search(reason, str(done.error))
    assert not Path("n.csv").exists()


@pytest.mark.parametrize("suffix", ["csv", "geojson", "h5ad"])
def test_images_that_cannot_be_read_are_named_and_the_others_written(
    qpnuclei: Call, sample: Sample, tmp_path: Path, suffix: str
) -> None:
    project, path = sample(), tmp_path / f"nuclei.{suffix}"
    data = sorted((project / "data").glob("*/data.qpdata"))
    data[0].write_bytes(data[0].read_bytes()[:500])
    done = qpnuclei("export", project, "--by", "nucleus", "-o", path, "--json", *NATIVE)
    assert done.exit_code == 1
    said = json.loads(done.stdout)
    assert [image["image_id"] for image in said["images"]] == ["2", "3"]
    assert [failure["image_id"] for failure in said["failures"]] == ["1"]
    assert path.exists()
    path.unlink()
    for file in data[1:]:
        file.write_bytes(file.read_bytes()[:500])
    done = qpnuclei("export", project, "--by", "nucleus", "-o", path, *NATIVE)
    assert done.exit_code == 1
    assert not path.exists()


def test_counts_without_annotations_have_a_header(
    qpnuclei: Call, sample: Sample, tmp_path: Path
) -> None:
    project, path = sample(), tmp_path / "counts.csv"
    for file in (project / "data").glob("*/data.qpdata"):
        file.unlink()
    done = qpnuclei("export", project, "-o", path, *NATIVE)
    assert done.exit_code == 0
    assert path.read_text("utf-8-sig").startswith("image,annotation,type,class,nuclei,")
    assert "no annotations in 3 of 3 images: " in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="limits of file sizes are not of Windows")
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".h5ad", ".geojson", ".ome.tif"])
def test_a_full_disk_is_one_error_that_names_the_file(
    sample: Sample, tmp_path: Path, suffix: str
) -> None:
    program = """
import resource
from qpnuclei.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
main()
"""
    path = tmp_path / "results" / f"nuclei{suffix}"
    words = ["export", sample(), "--by", "nucleus", "--image", "2", "--mpp", "0.5", "-o", path]
    done = subprocess.run(
        # Bytecode that is cut off at the limit would break later imports.
        [sys.executable, "-B", "-c", program, *map(str, words), *NATIVE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    error, hint = done.stderr.splitlines()
    assert error == f"error: {path} cannot be written: File too large"
    assert hint.startswith("hint: ")
    assert not list(path.parent.glob("*"))


def test_a_missing_folder_is_on_the_disk_of_its_parent(
    program: Program, sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    path = tmp_path / "results" / "nuclei.csv"
    done = program("export", sample(), "--by", "nucleus", "-o", path, *NATIVE)
    assert done.returncode == 1
    said = f"error: {path} cannot be written: No space left on device ("
    assert done.stderr.startswith(said)
    assert f" MB are free on the disk of {tmp_path})\n" in done.stderr
