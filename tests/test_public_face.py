"""What ``import qpnuclei`` offers, and the examples of all docstrings."""

from __future__ import annotations

import doctest
import importlib
import inspect
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image

import qpnuclei
from qpnuclei.errors import FormatError, NotFoundError, UsageError
from qpnuclei.models.metadata import model_hash
from qpnuclei.models.registry import resolve_model
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.counts import Row
from qpnuclei.qupath.nucleus_files import write_nuclei_of
from tests.evaluation.images import write_folder
from tests.paths import ROOT, SAMPLES
from tests.report.pages import Page

MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "qpnuclei").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_do_what_they_say(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # examples write files
    flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
    result = doctest.testmod(importlib.import_module(module), optionflags=flags)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", sorted(set(qpnuclei.__all__) - {"__version__"}))
def test_every_public_name_has_an_example(name: str) -> None:
    documentation = inspect.getdoc(getattr(qpnuclei, name)) or ""
    assert ">>> " in documentation
    assert "+SKIP" not in documentation


def test_names_are_listed_and_others_are_not_there() -> None:
    assert set(dir(qpnuclei)) == set(qpnuclei.__all__)
    with pytest.raises(AttributeError, match="nothing_else"):
        qpnuclei.nothing_else  # noqa: B018


def test_importing_the_package_imports_nothing_large() -> None:
    code = "import qpnuclei, sys; print({'torch', 'numpy', 'paquo'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def table(count: int, names: int) -> NucleiTable:
    squares = [shapely.box(10 * i, 0, 10 * i + 5, 5) for i in range(count)]
    return NucleiTable.from_polygons(
        squares, {f"m<{number}>": np.arange(count) + number for number in range(names)}
    )


def test_a_table_of_many_nuclei_is_a_few_lines() -> None:
    lines = repr(table(117, 9)).splitlines()
    assert lines[0] == "NucleiTable of 117 nuclei, 9 measurements, x 0 to 1165, y 0 to 5 px"
    assert lines[1] == "  m<0>: median 58, 0 to 116"
    assert lines[-1] == "  and 3 more"
    assert len(lines) == 8
    assert repr(table(1, 1)).splitlines()[0] == (
        "NucleiTable of 1 nucleus, 1 measurement, x 0 to 5, y 0 to 5 px"
    )
    assert repr(NucleiTable.empty(["a"])).splitlines()[1] == "  a: median nan, nan to nan"


@pytest.mark.filterwarnings("error")
def test_a_table_summarises_finite_values() -> None:
    squares = [shapely.box(10 * i, 0, 10 * i + 5, 5) for i in range(4)]
    some = NucleiTable.from_polygons(squares, {"a": [np.inf, 3, np.nan, -np.inf]})
    assert repr(some).splitlines()[1] == "  a: median 3, 3 to 3"


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_a_notebook_shows_every_measurement() -> None:
    page = _Cells()
    page.feed(table(117, 9)._repr_html_())
    assert page.text[0].startswith("NucleiTable of 117 nuclei")
    assert page.text[-4:] == ["m<8>", "66", "8", "124"]


@pytest.mark.parametrize("suffix", [".geojson", ".geojson.gz", ".parquet", ".geoparquet"])
def test_nuclei_written_are_read_back(suffix: str, tmp_path: Path) -> None:
    made = table(5, 2)
    qpnuclei.write_nuclei(made, tmp_path / f"n{suffix}", "Lymphocyte")
    found = qpnuclei.read_nuclei(tmp_path / f"n{suffix}")
    assert shapely.equals(found.polygons(), made.polygons()).all()
    for name, column in made.measurements.items():
        np.testing.assert_array_equal(found.measurements[name], column)


def test_a_parquet_table_loses_nothing(tmp_path: Path) -> None:
    square = shapely.box(2, 3, 9, 11)
    nuclei = qpnuclei.NucleiTable.from_polygons([square] * 2, {"z": [1.0, 2.0], "t": [3.0, 4.0]})
    cells = qpnuclei.NucleiTable.from_polygons([square.buffer(2)] * 2, {})
    path = tmp_path / "n.parquet"
    qpnuclei.write_nuclei(replace(nuclei, cells=cells), path)
    found = qpnuclei.read_nuclei(path)
    assert found.measurements["z"].tolist() == [1, 2]
    table = pq.read_table(path)
    assert shapely.equals(
        shapely.from_wkb(table["cell_geometry"].to_pylist()), cells.polygons()
    ).all()
    for name in ("geometry", "cell_geometry", "centroid_x_px"):
        other = qpnuclei.NucleiTable.from_polygons([square], {name: [1.0]})
        with pytest.raises(UsageError, match=f"another column '{name}'"):
            qpnuclei.write_nuclei(other, tmp_path / "lost.parquet")
        qpnuclei.write_nuclei(other, tmp_path / "n.geojson")
    assert not (tmp_path / "lost.parquet").exists()


def test_files_that_hold_no_nuclei(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="absent"):
        qpnuclei.read_nuclei(tmp_path / "absent.geojson")
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(FormatError, match=r"a\.parquet is not a Parquet table"):
        qpnuclei.read_nuclei(tmp_path / "a.parquet")
    (tmp_path / "l.geojson").write_text(
        '{"type": "Feature", "properties": {"objectType": "detection"}, '
        '"geometry": {"type": "Point", "coordinates": [1, 2]}}'
    )
    with pytest.raises(FormatError, match=r"l\.geojson: .*Polygon"):
        qpnuclei.read_nuclei(tmp_path / "l.geojson")
    # An error of the file names it once, with its own advice.
    (tmp_path / "cut.geojson").write_text("{")
    with pytest.raises(FormatError) as caught:
        qpnuclei.read_nuclei(tmp_path / "cut.geojson")
    assert str(caught.value).count("cut.geojson") == 1
    assert "polygon" not in str(caught.value)
    for other in ([b"no outline"], [{"x": [1.0]}]):
        pq.write_table(pa.table({"geometry": other}), tmp_path / "b.parquet")
        with pytest.raises(FormatError, match=r"b\.parquet: .* as WKB"):
            qpnuclei.read_nuclei(tmp_path / "b.parquet")
    with pytest.raises(UsageError, match="geojson"):
        qpnuclei.write_nuclei(table(1, 0), tmp_path / "n.csv")


@pytest.mark.parametrize("suffix", [".geojson", ".parquet"])
def test_nuclei_of_several_images_are_not_one_table(suffix: str, tmp_path: Path) -> None:
    project = qpnuclei.open_project(SAMPLES / "0.5.1" / "project", "native")
    path = tmp_path / f"n{suffix}"
    with_nuclei = []
    for image in project.images:
        nuclei = write_nuclei_of(project, [image], path).nuclei.get(image.id, 0)
        if nuclei:
            with_nuclei.append(image)
            assert len(qpnuclei.read_nuclei(path)) == nuclei
    assert len(with_nuclei) > 1
    write_nuclei_of(project, with_nuclei, path)
    what = f"nuclei of {len(with_nuclei)} images or planes"
    with pytest.raises(FormatError, match=what) as caught:
        qpnuclei.read_nuclei(path)
    assert "--image" in str(caught.value)


def test_nuclei_get_a_class_name_that_qupath_has(tmp_path: Path) -> None:
    path = tmp_path / "n.geojson"
    qpnuclei.write_nuclei(table(1, 0), path, " Tumor:Positive ")
    assert '"name":"Tumor: Positive"' in path.read_text("utf-8").replace('": "', '":"')
    with pytest.raises(UsageError, match="' ' is not a class name"):
        qpnuclei.write_nuclei(table(1, 0), path, " ")


def test_the_sample_project_is_counted() -> None:
    rows = qpnuclei.count(SAMPLES / "0.5.1" / "project", by="image", images=["he small.png"])
    assert [row["image"] for row in rows] == ["he small.png"]


def test_what_counts_can_be_chosen(tmp_path: Path) -> None:
    sample = SAMPLES / "0.5.1"
    project = qpnuclei.open_project(sample / "project", image_root=sample / "images")
    images = ["he small.png"]

    tumor = qpnuclei.count(project, images=images, roi_classes=["Tumor"])
    assert {row["class"] for row in tumor} == {"Tumor"}

    def nested(**options: object) -> Row:
        rows = qpnuclei.count(project, images=images, **options)  # type: ignore[arg-type]
        (row,) = [row for row in rows if row["annotation"] == "nested"]
        return row

    counts = [nested(nucleus_classes=names) for names in (["Tumor"], ["Tumor", "Nucleus"])]
    assert [row["nuclei"] for row in counts] == [1, 3]
    assert counts[0]["area_mm2"] != counts[0]["area_mm2"]  # NaN: there is no pixel size
    (drawn,) = [a for a in project.images[0].read().annotations if a.name == "nested"]
    assert nested(mpp=0.5)["area_mm2"] == pytest.approx(drawn.area.area * 0.25e-6)

    page = tmp_path / "page.html"
    qpnuclei.write_report(project, page, images)
    assert "7 nuclei. No pixel size" in Page.of(page).text
    qpnuclei.write_report(project, page, images, nucleus_classes=["Tumor"], mpp=0.5)
    assert "1 nucleus" in Page.of(page).text
    assert "No pixel size" not in Page.of(page).text


def test_paths_may_be_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tissue = np.full((256, 256, 3), (235, 200, 225), np.uint8)
    tissue[80:110, 80:110] = (90, 60, 140)
    Image.fromarray(tissue).save("tissue.png")
    qpnuclei.create_project("project", ["tissue.png"], mpp=0.25)
    assert qpnuclei.open_project("project", image_root=".").images
    options = qpnuclei.RunOptions(
        qpnuclei.Selection(tissue=True),
        device="cpu",
        geojson_dir="geojson",  # type: ignore[arg-type]
        parquet_dir="parquet",  # type: ignore[arg-type]
        run_dir="run",  # type: ignore[arg-type]
    )
    assert qpnuclei.run("project", options).failures == []
    assert all(any(Path(name).iterdir()) for name in ("geojson", "parquet", "run"))

    write_folder(Path("set"), ("a",))
    with pytest.raises(UsageError, match=r"m\.bin does not end in \.safetensors"):
        qpnuclei.evaluate("set", mpp=0.25, device="cpu", tune=True, write_model="m.bin")


def test_a_model_may_be_a_path(tmp_path: Path) -> None:
    model = resolve_model("default-20x")
    assert qpnuclei.load_engine(model).spec.mpp == 0.5
    options = qpnuclei.RunOptions(qpnuclei.Selection(tissue=True), model=model)  # type: ignore[arg-type]
    assert options.to_json()["model"] == str(model)
    write_folder(tmp_path, ("a",))
    report = qpnuclei.evaluate(tmp_path, model, mpp=0.5, device="cpu")
    assert report.provenance["models"][0]["sha256"] == model_hash(model)
