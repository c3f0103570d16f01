from __future__ import annotations

import csv
import json
import math

import pyarrow.parquet
import pytest

from qpnuclei.errors import SaveError, UsageError
from qpnuclei.qupath.count_table import FIRST_COLUMNS, LAST_COLUMNS, write_counts, write_table
from qpnuclei.qupath.counts import count_objects
from tests.qupath.counted import OTHER, RECTANGLE, annotation, detections, image

ROWS = [
    {
        "image": "ä, b",
        "class": None,
        "uuid": OTHER,
        "nuclei": 3,
        "area_mm2": 0.5,
        "x (SD)": math.nan,
    },
    {"image": "c\td", "class": "Tumor", "uuid": None, "nuclei": 0, "new": 1.25, "x (SD)": math.nan},
]


def test_tables_as_text(tmp_path):
    write_table(ROWS, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes().startswith(b"\xef\xbb\xbfimage,")
    assert (tmp_path / "t.csv").read_text("utf-8-sig").splitlines() == [
        "image,class,uuid,nuclei,area_mm2,x (SD),new",
        f'"ä, b",,{OTHER},3,0.5,,',
        "c\td,Tumor,,0,,,1.25",
    ]
    write_table(ROWS, tmp_path / "t.TSV")
    with (tmp_path / "t.TSV").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    assert rows[1]["image"] == "c\td"
    assert rows[0]["nuclei"] == "3"


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_text_of_several_lines_stays_one_cell(tmp_path, suffix, separator):
    names = ["a\rb", "a\nb", "a\r\nb", "b\r", 'a "b"\r', "a,b\tc\r\n"]
    write_table([{"image": name, "x\ry": name} for name in names], tmp_path / f"t.{suffix}")
    with (tmp_path / f"t.{suffix}").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.reader(stream, delimiter=separator))
    assert rows == [["image", "x\ry"], *([name, name] for name in names)]


def test_numbers_for_people_have_six_digits_and_others_all(tmp_path):
    numbers = [123.456789, 0.000123456789, 1234567.891, -2 / 3, 1e-300, math.inf]
    for suffix in ("csv", "json"):
        write_table([{"number": number} for number in numbers], tmp_path / f"t.{suffix}")
    text = (tmp_path / "t.csv").read_text("utf-8-sig").splitlines()[1:]
    assert text == ["123.457", "0.000123457", "1234568.0", "-0.666667", "1e-300", '""']
    found = [row["number"] for row in json.loads((tmp_path / "t.json").read_text())]
    assert found == [*numbers[:-1], None]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "parquet"])
def test_text_that_is_not_utf_8_is_written_in_every_format(suffix, tmp_path):
    path = tmp_path / f"t.{suffix}"
    write_table([{"project": "/x/\udcff", "Num \ud800": 1}], path)
    if suffix == "parquet":
        found = pyarrow.parquet.read_table(path).to_pylist()
        assert found == [{"project": "/x/\ufffd", "Num \ufffd": 1}]
    elif suffix == "json":
        assert json.loads(path.read_text("utf-8")) == [{"project": "/x/\udcff", "Num \ud800": 1}]
    else:
        assert r"/x/\udcff" in path.read_text("utf-8-sig")


def test_columns_whose_names_become_equal_both_stay(tmp_path):
    counts = zip(["Num A\ud800", "Num A\ud801", "Num A\0"], [1, 2, 3], strict=True)
    write_table([dict(counts)], tmp_path / "t.parquet")
    (row,) = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist()
    first = "Num A\ufffd"
    assert row == {first: 1, f"{first} (other)": 2, f"{first} (other) (other)": 3}


def test_columns_stand_in_the_same_order_whatever_the_rows_have(tmp_path):
    first = {"image": "a", "Num Detections": 1, "Area µm^2 (mean)": 1.5, "uuid": None}
    second = {"image": "b", "Num Detections": 2, "Num Tumor": 2, "Area µm^2 (mean)": 2.5}
    write_counts([first, second], tmp_path / "t.csv")
    (header, *_) = (tmp_path / "t.csv").read_text("utf-8-sig").splitlines()
    between = ("Num Detections", "Num Tumor", "Area µm^2 (mean)")
    assert tuple(header.split(",")) == (*FIRST_COLUMNS, *between, *LAST_COLUMNS)
    counted = image([annotation(RECTANGLE)], detections([(15, 15)]))
    for by in ("annotation", "class", "image"):
        (row,) = count_objects(counted, by)
        assert tuple(row) == (
            *FIRST_COLUMNS, "Num Detections", "Num Nucleus", *LAST_COLUMNS
        )  # fmt: skip


def test_a_table_without_rows_has_its_header(tmp_path):
    for suffix in ("csv", "tsv", "parquet"):
        write_counts([], tmp_path / f"t.{suffix}")
    for suffix, separator in (("csv", ","), ("tsv", "\t")):
        text = (tmp_path / f"t.{suffix}").read_text("utf-8-sig")
        assert text == separator.join((*FIRST_COLUMNS, *LAST_COLUMNS)) + "\n"
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert table.column_names == [*FIRST_COLUMNS, *LAST_COLUMNS]
    assert table.schema.field("nuclei").type == "int64"


def test_tables_with_types(tmp_path):
    write_table(ROWS, tmp_path / "t.json")
    rows = json.loads((tmp_path / "t.json").read_text("utf-8"))
    assert rows[0] == {
        "image": "ä, b", "class": None, "uuid": str(OTHER), "nuclei": 3, "area_mm2": 0.5,
        "x (SD)": None, "new": None,
    }  # fmt: skip
    write_table(ROWS, tmp_path / "t.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet")
    assert table.to_pylist() == rows
    assert [str(field.type) for field in table.schema] == [
        "string", "string", "string", "int64", "double", "double", "double",
    ]  # fmt: skip


def test_an_empty_table_and_an_unknown_format(tmp_path):
    write_table([], tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text()) == []
    with pytest.raises(UsageError, match=r"t\.xlsx.*\.csv, \.tsv, \.json, \.parquet"):
        write_table(ROWS, tmp_path / "t.xlsx")
    (tmp_path / "file").touch()
    with pytest.raises(SaveError):
        write_table(ROWS, tmp_path / "file" / "t.csv")
