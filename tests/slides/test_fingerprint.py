"""What tells a slide from another, also if it is in several files."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import BinaryIO

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from qpnuclei.slides import dicom
from qpnuclei.slides.dicom import series_of
from qpnuclei.slides.fingerprint import slide_fingerprint
from qpnuclei.system.files import open_regular
from tests.slides.dicom import write_series
from tests.slides.pictures import picture, reduced


def test_another_dicom_slide_in_the_folder_makes_no_difference(tmp_path: Path) -> None:
    full = picture(256, 128)
    first, second = write_series(tmp_path, [full, reduced(full, 2)], 0.25)
    before = slide_fingerprint(first)
    (tmp_path / "other").mkdir()
    (other,) = write_series(tmp_path / "other", [picture(128, 64)], 0.5)
    other.rename(tmp_path / "other.dcm")
    (tmp_path / "notes.txt").write_text("all scanned on Monday")
    assert slide_fingerprint(first) == before
    # A level of the same slide does, whatever it is called.
    renamed = second.rename(tmp_path / "level-2")
    assert slide_fingerprint(first) != before
    renamed.unlink()
    assert slide_fingerprint(first) != before


def test_slides_of_one_folder_read_its_headers_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = []
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (path,) = write_series(tmp_path / name, [picture(64, 64)], 0.5)
        paths.append(path.rename(tmp_path / f"{name}.dcm"))
    opened: list[Path] = []

    def counting(path: Path) -> BinaryIO:
        opened.append(path)
        return open_regular(path)

    monkeypatch.setattr(dicom, "open_regular", counting)
    assert len({slide_fingerprint(path) for path in paths}) == 3
    assert sorted(p for p in opened if p.suffix == ".dcm") == paths


def referring(series: str, *, is_undefined: bool) -> Dataset:
    """Return elements that come before the file's own series and name another one."""
    named = Dataset()
    named.SeriesInstanceUID = series
    reference = Dataset()
    reference.ReferencedSeriesSequence = Sequence([named])
    reference["ReferencedSeriesSequence"].is_undefined_length = is_undefined
    named.is_undefined_length_sequence_item = is_undefined
    return reference


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("is_undefined", [False, True])
def test_the_series_is_that_of_the_file_not_of_one_it_refers_to(
    tmp_path: Path, syntax: str, is_undefined: bool
) -> None:
    (path,) = write_series(tmp_path, [picture(64, 64)], 0.5)
    image = dcmread(path)
    series = image.SeriesInstanceUID
    assert series_of(path) == series
    image.update(referring("1.2.3", is_undefined=is_undefined))
    del image.PixelData
    image.file_meta.TransferSyntaxUID = syntax
    image.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert b"1.2.3" in (tmp_path / "b.dcm").read_bytes()
    assert series_of(tmp_path / "b.dcm") == series


def test_private_elements_of_unknown_type_are_passed_over(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, [picture(64, 64)], 0.5)
    content = path.read_bytes()
    series = dcmread(path).SeriesInstanceUID
    at = content.index(b"\x20\x00\x0d\x00UI")  # the study, before the series
    # An unknown sequence: its items do not state types, as its length does not either.
    unknown = (
        b"\x09\x00\x01\x10UN\0\0\xff\xff\xff\xff"
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        b"\x20\x00\x0e\x00\x06\0\0\x001.2.3\0"
        b"\xfe\xff\x0d\xe0\0\0\0\0"
        b"\xfe\xff\xdd\xe0\0\0\0\0"
    )
    path.write_bytes(content[:at] + unknown + content[at:])
    assert dcmread(path).SeriesInstanceUID == series
    assert series_of(path) == series


@pytest.mark.parametrize("kept", [0, 131, 132, 140, 400])
def test_a_file_that_ends_early_has_no_series(tmp_path: Path, kept: int) -> None:
    (path,) = write_series(tmp_path, [picture(64, 64)], 0.5)
    path.write_bytes(path.read_bytes()[:kept])
    assert series_of(path) is None
    assert series_of(tmp_path / "absent.dcm") is None
    assert series_of(tmp_path) is None


@pytest.mark.parametrize("kind", ["dicom", "mirax"])
def test_letters_in_names_of_parts_may_be_composed_or_decomposed(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    if kind == "dicom":
        slide, *parts = write_series(folder, [picture(side, side) for side in (256, 128, 64)], 0.5)
    else:
        slide = tmp_path / "x.mrxs"
        slide.write_bytes(b"index")
        parts = [folder / "1.dat", folder / "2.dat"]
        for size, part in enumerate(parts):
            part.write_bytes(bytes(size))
    fingerprints = set()
    for form in ("NFC", "NFD"):
        # Composed, the first name comes after the second one; decomposed, before it.
        names = [unicodedata.normalize(form, name) for name in ("ä", "b")]
        parts = [part.rename(folder / name) for part, name in zip(parts, names, strict=True)]
        fingerprints.add(slide_fingerprint(slide))
    assert len(fingerprints) == 1
    parts[0].rename(folder / "a")
    assert slide_fingerprint(slide) not in fingerprints


def test_the_fingerprint_of_a_slide_stays_the_same_from_version_to_version(tmp_path: Path) -> None:
    # Plans contain it.
    (tmp_path / "x").mkdir()
    for size, name in enumerate(("Data10.dat", "Data2.dat", "Slidedat.ini")):
        (tmp_path / "x" / name).write_bytes(bytes(size))
    (tmp_path / "x.mrxs").write_bytes(b"index")
    assert slide_fingerprint(tmp_path / "x.mrxs") == "98c1fd07dab9a47ea88e3f75082e4efc"


def test_a_vms_slide_has_the_files_that_its_index_names(tmp_path: Path) -> None:
    index = tmp_path / "slide1.vms"
    index.write_text("[Virtual Microscope Specimen]\nImageFile=slide1-0.jpg\nNoLayers=1\n")
    (tmp_path / "slide1-0.jpg").write_bytes(b"jpeg")
    before = slide_fingerprint(index)
    (tmp_path / "slide10.vms").write_text("[Virtual Microscope Specimen]\n")
    (tmp_path / "slide1.annotations").write_text("[]")
    assert slide_fingerprint(index) == before
    (tmp_path / "slide1-0.jpg").write_bytes(b"another jpeg")
    assert slide_fingerprint(index) != before
