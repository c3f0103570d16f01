"""Nuclei taken out of a project, opened again by the library that each file is for."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import anndata
import geojson
import geopandas
import matplotlib
import numpy as np
import pandas
import pyarrow.parquet
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qpnuclei import read_nuclei
from qpnuclei.errors import FormatError, UsageError
from qpnuclei.evaluation.formats import GeojsonImage
from qpnuclei.evaluation.labelmap import label_map
from qpnuclei.nuclei.exports.anndata_file import write_anndata
from qpnuclei.nuclei.exports.label_image import write_label_image
from qpnuclei.nuclei.exports.rows import FIELDS, NucleusRows
from qpnuclei.nuclei.exports.spatialdata_store import write_spatialdata
from qpnuclei.qupath.counts import count_objects
from qpnuclei.qupath.geojson.exporting import export_image
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.model import TmaCore
from qpnuclei.qupath.native import NativeProject
from qpnuclei.qupath.nucleus_files import write_nuclei_of
from qpnuclei.qupath.nucleus_rows import nucleus_rows
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.project import open_project
from tests.ids import nucleus_id
from tests.paths import SAMPLES
from tests.qupath.samples import VERSIONS
from tests.qupath.test_counts import OTHER, annotation, detections, image

MPP = 0.5


@pytest.fixture(scope="module")
def project() -> NativeProject:
    return open_project(SAMPLES / "0.5.1" / "project", backend="native")


def written(project: NativeProject, path: Path, images: list[int] | None = None) -> Path:
    entries = [e for e in project.images if images is None or int(e.id) in images]
    done = write_nuclei_of(project, entries, path, pixel_sizes=AskedMpp(MPP))
    assert done.files == [path]
    return path


def expected(number: int) -> list[dict]:
    """Return the detections and cells of a sample image, in the words of QuPath."""
    found = []

    def walk(node, above):
        if node["cls"] in ("PathDetectionObject", "PathCellObject"):
            found.append({**node, "above": above})
        for child in node["children"]:
            walk(child, [*above, node])

    path = SAMPLES / "0.5.1" / f"expected-{number}.json"
    walk(json.loads(path.read_text("utf-8"))["root"], [])
    return found


def test_geopandas_reads_what_qupath_has(project, tmp_path):
    path = written(project, tmp_path / "new" / "nuclei.parquet")
    frame = geopandas.read_parquet(path)
    assert list(frame.columns[: len(FIELDS)]) == FIELDS.names
    assert frame.crs is None
    assert frame.geometry.is_valid.all()
    assert frame["label"].tolist()[:3] == [1, 2, 3]
    for number in (1, 2):
        here = frame[frame["image_id"] == str(number)]
        wanted = {o["id"]: o for o in expected(number)}
        assert set(here["uuid"]) == set(wanted)
        for row in here.to_dict("records"):
            cell = wanted[row["uuid"]]
            assert row["type"] == ("cell" if cell["cls"] == "PathCellObject" else "detection")
            assert row["class"] == (cell["class"][0] if cell["class"] else None) or (
                pandas.isna(row["class"]) and cell["class"] is None
            )
            for name, value in cell["meas"]:
                assert row[name] == pytest.approx(float(value), nan_ok=True)
            nucleus = cell.get("nuc") or cell["roi"]
            outlines = [("geometry", nucleus), ("cell_geometry", cell["roi"])]
            for column, roi in outlines[: 1 + (row["type"] == "cell")]:
                if roi[0] == "PolygonROI":
                    points = shapely.get_coordinates(row[column])[:-1]
                    assert np.array_equal(points, roi[-1])
            assert (row["cell_geometry"] is None) == (row["type"] == "detection")
            nested = [o["name"] for o in cell["above"] if o["cls"] == "PathAnnotationObject"]
            if nested:
                assert row["annotation"] == nested[-1]
                assert row["parents"] == " > ".join(nested[:-1])
    assert np.allclose(frame["centroid_x_um"], frame["centroid_x_px"] * MPP)
    assert set(frame[frame["image_id"] == "2"]["tma_core"].dropna()) == {
        "A-1", "A-2", "A-3", "B-1", "B-2", "B-3"
    }  # fmt: skip


def test_the_metadata_are_those_of_geoparquet(project, tmp_path):
    """As https://geoparquet.org/releases/v1.1.0/schema.json asks."""
    path = written(project, tmp_path / "nuclei.parquet")
    metadata = pyarrow.parquet.read_schema(path).metadata
    geo = json.loads(metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["primary_column"] == "geometry"
    assert list(geo["columns"]) == ["geometry", "cell_geometry"]
    frame = geopandas.read_parquet(path)
    for name, column in geo["columns"].items():
        assert column["encoding"] == "WKB"
        assert column["crs"] is None  # absent, it would mean longitude and latitude
        assert set(column["geometry_types"]) == {"Polygon"}
        outlines = frame[name].dropna()
        assert column["bbox"] == pytest.approx(outlines.total_bounds.tolist())
        assert set(outlines.geom_type) == set(column["geometry_types"])
    # Without cells, there is no column of them.
    path = written(project, tmp_path / "detections.parquet", images=[2])
    assert "cell_geometry" not in pyarrow.parquet.read_schema(path).names


@pytest.mark.parametrize(("suffix", "separator"), [("csv", ","), ("tsv", "\t")])
def test_text_has_every_row_and_column(project, tmp_path, suffix, separator):
    path = written(project, tmp_path / f"nuclei.{suffix}")
    assert path.read_bytes().startswith("\ufeff".encode()) == (suffix == "csv")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter=separator))
    frame = geopandas.read_parquet(written(project, tmp_path / "nuclei.parquet"))
    assert [*rows[0], "geometry", "cell_geometry"] == list(frame.columns)
    assert [row["uuid"] for row in rows] == frame["uuid"].tolist()
    for name in ("Area", "centroid_x_px", "Prob"):
        found = [float(row[name] or "nan") for row in rows]
        assert found == pytest.approx(frame[name].tolist(), rel=1e-5, nan_ok=True)


def evil_rows() -> NucleusRows:
    found = detections(
        [(15, 15), (30, 30)],
        class_names=["=1+1", 'a,"b"\n'],
        ids=[OTHER, nucleus_id(b"0123456789")],
        measurements={"=A1": np.array([-1.5, np.nan]), "z": np.array([7.0, 8.0])},
    )
    counted = image([annotation(shapely.box(10, 10, 20, 20), "@x", handle=3)], found)
    return nucleus_rows(counted)


def test_no_cell_begins_a_formula_and_no_measurement_takes_the_place_of_a_column(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("qpnuclei.qupath.nucleus_files.nuclei_of", lambda *_, **__: evil_rows())
    entry = SimpleNamespace(id="1", name="a")
    project = SimpleNamespace(classes=[], images=[entry], path=Path("p/project.qpproj"))
    write_nuclei_of(project, [entry], tmp_path / "n.csv")
    with (tmp_path / "n.csv").open(encoding="utf-8-sig", newline="") as stream:
        first, second = csv.DictReader(stream)
    assert first["class"] == "'=1+1"
    assert first["annotation_class"] == "'@x"
    assert second["class"] == 'a,"b"\n'
    assert first["'=A1"] == "-1.5"
    assert second["'=A1"] == ""
    assert (first["z"], first["z (measurement)"]) == ("0", "7")
    assert (first["by_qpnuclei"], second["by_qpnuclei"]) == ("false", "true")
    assert second["annotation_uuid"] == ""


def test_anndata_has_measurements_and_places(project, tmp_path):
    made = anndata.read_h5ad(written(project, tmp_path / "nuclei.h5ad"))
    frame = geopandas.read_parquet(written(project, tmp_path / "nuclei.parquet"))
    assert made.obs_names.tolist() == frame["uuid"].tolist()
    assert (
        made.obsm["spatial"].tolist() == frame[["centroid_x_px", "centroid_y_px"]].values.tolist()
    )
    assert np.allclose(made.obsm["spatial_um"], made.obsm["spatial"] * MPP)
    assert made.obs["annotation"].dropna().tolist() == frame["annotation"].dropna().tolist()
    for name in made.var_names:
        found = np.asarray(made[:, name].X).ravel()
        assert found.tolist() == pytest.approx(frame[name].tolist(), rel=1e-6, nan_ok=True)
    unknown = anndata.read_h5ad(written(project, tmp_path / "none.h5ad", images=[3]))
    assert unknown.shape[0] == len(expected(3))


@pytest.mark.parametrize("version", VERSIONS)
def test_anndata_of_every_version_of_qupath(version, tmp_path):
    """QuPath 0.2 and 0.3 save no UUIDs."""
    project = open_project(SAMPLES / version / "project", backend="native")
    made = anndata.read_h5ad(written(project, tmp_path / "nuclei.h5ad"))
    frame = geopandas.read_parquet(written(project, tmp_path / "nuclei.parquet"))
    assert made.obs["uuid"].isna().tolist() == frame["uuid"].isna().tolist()
    assert made.obs["uuid"].dropna().tolist() == frame["uuid"].dropna().tolist()
    assert made.obs["class"].dropna().tolist() == frame["class"].dropna().tolist()
    assert made.obs_names.is_unique


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".h5ad"])
def test_text_that_some_formats_refuse_is_written_as_a_mark(suffix, tmp_path, monkeypatch):
    """HDF5 has no NUL within a text, and UTF-8 no half of a character."""
    odd = "a\0b\ud800"
    areas = [
        replace(annotation(shapely.box(low, low, high, high), odd, handle=low), name=odd)
        for low, high in ((10, 20), (0, 40))
    ]
    core = TmaCore(0, None, odd, None, "RectangleROI", shapely.box(0, 0, 40, 40))
    found = detections(
        [(15, 15), (30, 30)],
        class_names=[odd, "a"],
        ids=[OTHER, nucleus_id(b"0123456789")],
        measurements={odd: np.array([1.0, 2.0])},
    )
    counted = replace(image(areas, found), name=odd, id=odd)
    counted = replace(counted, objects=replace(counted.objects, cores=(core,)))
    monkeypatch.setattr(
        "qpnuclei.qupath.nucleus_files.nuclei_of", lambda *_, **__: nucleus_rows(counted)
    )
    entry = SimpleNamespace(id="1", name="a")
    path = tmp_path / f"nuclei{suffix}"
    project = SimpleNamespace(classes=[], images=[entry], path=Path("p/project.qpproj"))
    write_nuclei_of(project, [entry], path)
    marked = "a\ufffdb\ufffd"
    if suffix == ".h5ad":
        made = anndata.read_h5ad(path)
        frame, names = made.obs, made.var_names
    else:
        frame = (
            geopandas.read_parquet(path)
            if suffix == ".parquet"
            else pandas.read_csv(path, sep="\t" if suffix == ".tsv" else ",")
        )
        names = frame.columns
    assert marked in names
    for name in ("image", "image_id", "class", "annotation", "annotation_class", "tma_core"):
        assert frame[name].iloc[0] == marked
    assert frame["parents"].iloc[0] == marked


def test_anndata_of_nuclei_without_any_text(tmp_path):
    found = detections([(5, 5), (9, 9)], class_names=[None, None], ids=[None, None])
    rows = nucleus_rows(image([], found, size=None))
    write_anndata([rows], tmp_path / "bare.h5ad")
    made = anndata.read_h5ad(tmp_path / "bare.h5ad")
    for name in ("uuid", "class", "annotation", "parents", "tma_core", "check"):
        assert made.obs[name].isna().all()
    write_anndata([], tmp_path / "empty.h5ad")
    assert anndata.read_h5ad(tmp_path / "empty.h5ad").shape == (0, 0)


@pytest.mark.parametrize("suffix", ["geojson", "geojson.gz"])
def test_geojson_is_read_by_others_and_by_us(project, tmp_path, suffix):
    path = written(project, tmp_path / f"nuclei.{suffix}")
    frame = geopandas.read_parquet(written(project, tmp_path / "nuclei.parquet"))
    objects = list(read_objects(path))
    assert [str(o.id) for o in objects] == frame["uuid"].tolist()
    assert [o.kind for o in objects] == frame["type"].tolist()
    if suffix == "geojson":
        found = geojson.loads(path.read_text("utf-8"))
        assert found.is_valid, found.errors()
        for feature, row in zip(found.features, frame.to_dict("records"), strict=True):
            properties = feature["properties"]
            assert properties["image_id"] == row["image_id"]
            assert properties["centroid_x_px"] == row["centroid_x_px"]
            assert properties["annotation"] == (
                None if pandas.isna(row["annotation"]) else row["annotation"]
            )


def test_nuclei_of_cells_are_in_every_format(project, tmp_path):
    entry = project.images[0]
    found = entry.read().detections
    nuclei, cells = found.nucleus_geometries, found.geometries
    is_smaller = shapely.area(nuclei) < shapely.area(cells)
    assert is_smaller.any()
    assert (np.array(found.kinds)[is_smaller] == "cell").all()
    # "geojson export" writes the same objects.
    same = export_image(project, entry, tmp_path / "exported", annotations=False)
    wanted = {o.id: o for o in read_objects(same.path)}
    path = written(project, tmp_path / "nuclei.geojson", images=[1])
    for written_object in read_objects(path):
        other = wanted[written_object.id]
        assert shapely.equals(written_object.geometry, other.geometry)
        assert (written_object.nucleus is None) == (other.nucleus is None)
        assert other.nucleus is None or shapely.equals(written_object.nucleus, other.nucleus)
        assert written_object.measurements == pytest.approx(other.measurements, nan_ok=True)
    rows = project.nuclei(entry.name)
    frame = rows.to_geopandas()
    is_chosen = np.array(found.kinds) != "tile"
    assert shapely.equals(frame.geometry.to_numpy(), nuclei[is_chosen]).all()
    is_cell = frame["type"] == "cell"
    assert shapely.equals(
        frame["cell_geometry"].to_numpy()[is_cell], cells[is_chosen][is_cell]
    ).all()
    assert set(rows.measurements) == set(found.measurements)
    parquet = written(project, tmp_path / "nuclei.parquet", images=[1])
    areas = shapely.area(nuclei[is_chosen])
    for file in (path, parquet):
        assert shapely.area(read_nuclei(file).polygons()) == pytest.approx(areas, rel=1e-3)
    # Labels and truth are of nuclei, too.
    file = written(project, tmp_path / "labels.ome.tif", images=[1])
    drawn = label_map(nuclei[is_chosen], (entry.server.height, entry.server.width))
    assert np.array_equal(tifffile.imread(file), drawn)
    image_path = tmp_path / "image.png"
    Image.fromarray(np.zeros((*drawn.shape, 3), np.uint8)).save(image_path)
    truth = GeojsonImage("image", image_path, path).read_labels()
    assert np.array_equal(truth, drawn)


def test_a_label_image_has_the_label_of_the_outline_around_each_pixel_centre(tmp_path):
    rng = np.random.default_rng(0)
    size = (2300, 1100)
    centres = rng.uniform(0, size, (150, 2))
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    outlines = [shapely.Polygon(c + circle * rng.uniform(4, 40)) for c in centres]
    found = detections(centres, planes=[(0, 0)] * 149 + [(1, 0)])
    vars(found)["geometries"] = np.array(outlines, dtype=object)
    rows = nucleus_rows(image([], found, size=size))
    path = tmp_path / "labels.ome.tif"
    assert write_label_image(rows, path) == 1  # on another plane
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        (series,) = tiff.series
        levels = [level.asarray() for level in series.levels]
        assert all(page.is_tiled for page in tiff.pages)
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == (0.5, 0.25)
    assert pixels["PhysicalSizeXUnit"] == "µm"
    assert [level.shape for level in levels] == [(1100, 2300), (550, 1150), (275, 575)]
    tree = shapely.STRtree(outlines[:-1])
    for factor, level in zip((1, 2, 4), levels, strict=True):
        assert level.dtype == np.uint32
        y, x = (rng.integers(0, n, 3000) for n in level.shape)
        points = shapely.points((x + 0.5) * factor, (y + 0.5) * factor)
        wanted = np.zeros(len(points), int)
        at, which = tree.query(points, predicate="within")
        for point, nucleus in sorted(zip(at.tolist(), which.tolist(), strict=True), reverse=True):
            wanted[point] = nucleus + 1  # of several, the first
        assert np.array_equal(level[y, x], wanted)
    assert set(np.unique(levels[0])) - {0} <= set(range(1, 150))


def test_label_images_are_one_for_each_image(project, tmp_path):
    entries = project.images
    done = write_nuclei_of(project, entries, tmp_path / "labels", "ome-tiff")
    assert len(done.files) == 3
    for entry, path in zip(entries, done.files, strict=True):
        labels = tifffile.imread(path)
        assert labels.shape == (entry.server.height, entry.server.width)
        assert labels.max() <= done.nuclei[entry.id]
    with pytest.raises(UsageError, match="several are exported"):
        write_nuclei_of(project, entries, tmp_path / "all.ome.tif")
    unknown = nucleus_rows(image([], detections([(5, 5)]), size=None))
    with pytest.raises(FormatError, match="does not contain its size"):
        write_label_image(unknown, tmp_path / "x.ome.tif")


def test_spatialdata_opens_the_store(project, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    path = written(project, tmp_path / "nuclei.zarr")
    written(project, path)  # a store is replaced
    made = spatialdata.read_zarr(path)
    assert set(made.shapes) == {"nuclei_1", "cells_1", "nuclei_2"}
    table = made.tables["nuclei"]
    assert len(table) == sum(len(made.shapes[name]) for name in ("nuclei_1", "nuclei_2")) == 56
    cells, nuclei = made.shapes["cells_1"], made.shapes["nuclei_1"]
    assert cells.geometry.covers(nuclei.geometry[cells.index]).all()
    assert table.obs["type"].tolist().count("cell") == len(cells)
    matched = spatialdata.get_element_instances(made.shapes["nuclei_2"])
    assert table.obs["label"][table.obs["region"] == "nuclei_2"].tolist() == matched.tolist()
    in_um = spatialdata.transform(made.shapes["nuclei_1"], to_coordinate_system="um")
    assert np.allclose(in_um.total_bounds, made.shapes["nuclei_1"].total_bounds * MPP)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="is not a Zarr store"):
        write_spatialdata([], tmp_path / "mine")


BOXES = st.lists(
    st.tuples(*[st.integers(0, 40)] * 2, *[st.integers(1, 30)] * 2), min_size=1, max_size=6
)
POINTS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


@settings(max_examples=40)
@given(BOXES, POINTS)
def test_a_nucleus_names_the_annotations_in_which_it_counts(boxes, points):
    annotations = [
        annotation(shapely.box(x, y, x + w, y + h), handle=i)
        for i, (x, y, w, h) in enumerate(boxes)
    ]
    counted = image(annotations, detections(points))
    frame = nucleus_rows(counted).table.to_pylist()
    for row, member in zip(count_objects(counted), annotations, strict=True):
        own = str(member.id)
        inside = [
            n
            for n in frame
            if n["annotation_uuid"] == own or own in (n["parent_uuids"] or "").split()
        ]
        assert len(inside) == row["nuclei"]
    for n in frame:
        area = {str(a.id): a.geometry.area for a in annotations}
        chain = [*(n["parent_uuids"] or "").split(), n["annotation_uuid"]]
        areas = [area[own] for own in chain if own is not None]
        assert areas == sorted(areas, reverse=True)


def test_only_some_annotations_or_classes():
    counted = image(
        [
            annotation(shapely.box(0, 0, 100, 100), "Tumor", handle=0),
            annotation(shapely.box(0, 0, 10, 10), "Fold", handle=1),
        ],
        detections([(5, 5), (50, 50), (500, 500)], class_names=["Nucleus", "Other", None]),
    )
    everything = nucleus_rows(counted).table.to_pylist()
    assert [row["annotation_class"] for row in everything] == ["Fold", "Tumor", None]
    assert [row["parents"] for row in everything] == ["Tumor", None, None]
    tumor = nucleus_rows(counted, roi_classes=["Tumor"]).table.to_pylist()
    assert [row["annotation_class"] for row in tumor] == ["Tumor", "Tumor"]
    other = nucleus_rows(counted, nucleus_classes=["Other"]).table.to_pylist()
    assert [row["class"] for row in other] == ["Other"]


def test_a_table_in_python(project, monkeypatch):
    matplotlib.use("agg")
    rows = project.nuclei("renamed pyramid", mpp=MPP)
    assert len(rows) == 50
    assert repr(rows) == "NucleusRows of 50 nuclei, 3 measurements (Area, Prob, Solidity)"
    frame = rows.to_geopandas()
    assert frame.geometry.area.tolist() == shapely.area(rows.geometries).tolist()
    assert frame.drop(columns="geometry").equals(rows.to_pandas())
    axes = rows.plot("Area")
    (outlines,) = axes.collections
    assert len(outlines.get_paths()) == 50
    assert outlines.get_array().tolist() == frame["Area"].tolist()
    assert axes.yaxis_inverted()
    rows.plot(ax=axes)
    assert axes.yaxis_inverted()
    matplotlib.pyplot.close("all")
    with pytest.raises(UsageError, match=r"'area'.*measurements: Area, Prob"):
        rows.plot("area")
    with pytest.raises(UsageError, match="no image is called"):
        project.nuclei("none")
    for package, call in (
        ("geopandas", rows.to_geopandas),
        ("pandas", rows.to_pandas),
        ("matplotlib.pyplot", rows.plot),
    ):
        with monkeypatch.context() as context:
            context.setitem(sys.modules, package, None)
            with pytest.raises(UsageError, match=r"not installed.*'qpnuclei\[export\]'"):
                call()
