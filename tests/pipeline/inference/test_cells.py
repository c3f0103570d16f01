"""Cells of a run: measurements as QuPath's, tables, projects, and going on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from qpnuclei.choices import Range
from qpnuclei.measure.shape import shape_measurements
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.nuclei.pixels import pixels_of_polygons
from qpnuclei.nuclei.store import temporary_shards
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline import options as run_options
from qpnuclei.pipeline.inference.cells import add_cells, measured_cells
from qpnuclei.pipeline.inference.infer import intensities
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.phases import commit_run, infer_run, plan_run
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.pipeline.selection import Selection
from qpnuclei.pipeline.summary import ImageResult
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.geojson.exporting import export_image
from qpnuclei.qupath.geojson.file_names import image_of_file
from qpnuclei.qupath.geojson.importing import import_file
from qpnuclei.qupath.model import Detections, Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import NativeProject, open_project
from qpnuclei.qupath.project_counts import count_project
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import DEFAULT_HE
from qpnuclei.system.arguments import checked_count
from tests.measure.test_measurements import CALIBRATIONS, EXPECTED, FEATURES, image, number, outline
from tests.pipeline.killing import make_project
from tests.projects import IMAGE

OPTIONS = RunOptions(
    Selection(classes=("Tumor",)),
    device="cpu",
    tile_px=128,
    max_nucleus_um=8.0,
    workers=1,
    cell_expansion_um=3.0,
)
CELLS = [feature for feature in FEATURES if "nucleusGeometry" in feature]


@pytest.mark.parametrize("feature", CELLS, ids=lambda f: f["properties"]["name"])
def test_parts_of_cells_as_qupath_measures_them(feature: dict[str, object]) -> None:
    name, calibration = feature["properties"]["name"], "0.25um_x_0.26um"  # type: ignore[index]
    slide = ImageInMemory(image(), (0.25, 0.26))
    nuclei, cells = (
        NucleiTable.from_polygons([outline(feature, key)])
        for key in ("nucleusGeometry", "geometry")
    )
    size: PixelCalibration = CALIBRATIONS[calibration]
    inside = pixels_of_polygons(nuclei.polygons(), (slide.height, slide.width))
    nuclei = nuclei.with_measurements(
        {
            **shape_measurements(nuclei.polygons(), size),
            **intensities(image(), inside, DEFAULT_HE),
            "Attention: Mean": [0.5],
        }
    )
    found = measured_cells(nuclei, cells, slide, size, DEFAULT_HE).measurements
    of_shape = EXPECTED["measured"][name][f"shape {calibration}"]
    of_stains = EXPECTED["measured"][name]["intensity default_HE ds1"]
    assert len(found) == len(of_shape) + 3 * 2 * 5 + 1 == 44
    for called, values in found.items():
        if called in of_shape:
            expected = of_shape[called]
        elif called == "Attention: Mean":
            expected = 0.5
        else:
            # QuPath 0.5 names the stain first.
            part, stain, statistic = called.split(": ")
            expected = of_stains[f"{stain}: {part}: {statistic}"]
        assert values[0] == pytest.approx(number(expected), rel=1e-4, abs=1e-5), called


def squares(step: int) -> NucleiTable:
    """Return nuclei of 6 px in rows, measured."""
    y, x = np.mgrid[4:110:step, 4:110:step].reshape(2, -1)
    boxes = shapely.box(x, y, x + 6, y + 6.5)
    pixels = pixels_of_polygons(boxes, (128, 128))
    measured = intensities(tissue().read(0, 0, 128, 128), pixels, DEFAULT_HE)
    shapes = shape_measurements(boxes, PixelCalibration(0.5, 0.5))
    return NucleiTable.from_polygons(boxes, {**shapes, **measured})


def tissue() -> ImageInMemory:
    rng = np.random.default_rng(0)
    return ImageInMemory(rng.integers(80, 250, (128, 128, 3)).astype(np.uint8), (0.5, 0.5))


def test_how_nuclei_are_spread_over_tables_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables, nuclei = [], squares(12)
    for size, most in ((10_000, 2**25), (7, 2000)):
        # Boxes of pixels that are too large to be read are halved.
        monkeypatch.setattr("qpnuclei.pipeline.inference.infer._MAX_MEASURED_PX", most)
        with temporary_shards(tmp_path, size) as kept:
            for row in range(len(nuclei)):
                kept.append(nuclei.take([row]))
            assert len(kept) == (1 if size > 100 else 12)
            add_cells(kept, [], tissue(), (0.5, 0.5), DEFAULT_HE, 2.5)
            tables.append(concatenate([kept[number] for number in range(len(kept))]))
    one, other = tables
    assert one.cells is not None
    assert other.cells is not None
    differing = shapely.symmetric_difference(one.cells.polygons(), other.cells.polygons())
    assert shapely.area(differing).max() < 0.01
    assert list(one.measurements) == list(other.measurements)
    for name, values in one.measurements.items():
        np.testing.assert_allclose(values, other.measurements[name], rtol=1e-4, err_msg=name)
    # Between two nuclei 6 px apart the border is half way: 3 px, though 5 were allowed.
    widths = np.ptp(shapely.bounds(one.cells.polygons())[:, ::2], axis=1)
    assert np.median(widths) == pytest.approx(12, abs=0.01)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> NativeProject:
    """A project of two images after a run."""
    folder = tmp_path_factory.mktemp("cells")
    project = open_project(make_project(folder / "place", 2) / "project")
    options = replace(OPTIONS, geojson_dir=folder / "geojson", parquet_dir=folder / "parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qpnuclei.pipeline.planning.layout.UNIT_SIDE", 1)  # four units in each image
        summary = analyse_project(project, project.images, options)
    assert summary.failures == []
    assert summary.nuclei > 20
    return project


#: Two annotations that share a border, which cuts nuclei.
LEFT, RIGHT = shapely.box(20, 20, 120, 230), shapely.box(120, 20, 230, 230)


def cells_in(
    place: Path, area: shapely.Geometry, *others: shapely.Geometry, **changed: object
) -> tuple[Detections, ImageResult]:
    """Return the cells of an annotation, of class Tumor, after runs of it and of further ones."""
    place.mkdir()
    slide = Path(shutil.copy(IMAGE, place / "a.tif"))
    create_from_slides(place / "project", [slide], mpp=0.25, stains=DEFAULT_HE)
    project = open_project(place / "project")
    (image,) = project.images
    named = zip(("Tumor", "Stroma"), (area, *others), strict=False)
    new = [NewAnnotation(a, uuid4(), None, PathClass(name)) for name, a in named]
    image.write(Edit(annotations=new), image.read().fingerprint)
    options = replace(OPTIONS, cell_expansion_um=5.0, **changed)  # type: ignore[arg-type]
    first, *_ = [
        analyse_project(
            project, project.images, replace(options, selection=Selection(classes=(name,)))
        ).images[0]
        for name in ("Tumor", "Stroma")[: 1 + len(others)]
    ]
    return cells_of(project), first


def assert_same_cells(some: Detections, of: Detections) -> None:
    """Check that detections are among others, with the same cells and measurements."""
    assert len(some) > 5
    assert not set(some.ids) - set(of.ids)
    rows = [of.ids.index(own_id) for own_id in some.ids]
    shared = shapely.symmetric_difference(some.geometries, of.geometries[rows])
    assert shapely.area(shared).max() < 1e-4
    for name, values in some.measurements.items():
        np.testing.assert_allclose(values, of.measurements[name][rows], rtol=1e-5, err_msg=name)


def test_nuclei_outside_the_annotation_limit_cells_but_are_not_stored(tmp_path: Path) -> None:
    whole, _ = cells_in(tmp_path / "whole", shapely.box(0, 0, 256, 256))
    part, result = cells_in(tmp_path / "part", LEFT)
    assert len(part) == result.nuclei < len(whole)
    assert result.outside == 0
    inside = shapely.intersects(LEFT, shapely.points(whole.centroids))
    assert len(part) == np.count_nonzero(inside)
    assert_same_cells(part, whole)


def test_adjacent_annotations_may_be_run_one_after_the_other(tmp_path: Path) -> None:
    together, _ = cells_in(tmp_path / "together", shapely.MultiPolygon([LEFT, RIGHT]).buffer(0))
    separately, _ = cells_in(tmp_path / "separately", LEFT, RIGHT)
    assert len(separately) == len(together)
    assert_same_cells(separately, together)
    one, other = shapely.STRtree(separately.geometries).query(separately.geometries)
    shared = shapely.intersection(separately.geometries[one], separately.geometries[other])
    assert shapely.area(shared)[one != other].max() < 0.01


@pytest.mark.parametrize("tile_px", [32, 50])
def test_cells_do_not_depend_on_tiles(
    tmp_path: Path, tile_px: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Smaller tiles than a user may choose have more seams.
    small = partial(checked_count, limits=Range(32, 256, "px"))
    monkeypatch.setitem(run_options._CHECKS, "tile_px", small)
    notched = shapely.difference(LEFT.union(RIGHT), shapely.box(60, 60, 190, 250))
    (one, few), (other, many) = (
        cells_in(tmp_path / str(size), notched, tile_px=size) for size in (256, tile_px)
    )
    assert few.tiles == 1 < many.tiles
    assert one.ids == other.ids
    assert (shapely.to_wkb(one.geometries) == shapely.to_wkb(other.geometries)).all()
    for name, values in one.measurements.items():
        np.testing.assert_array_equal(values, other.measurements[name], err_msg=name)


def test_an_annotation_between_nuclei_has_no_cells(tmp_path: Path) -> None:
    whole, _ = cells_in(tmp_path / "whole", shapely.box(0, 0, 256, 256))
    x, y = whole.centroids[0] + (0.5, 0.5)
    between, result = cells_in(tmp_path / "part", shapely.box(x, y, x + 3, y + 3))
    assert (len(between), result.nuclei) == (0, 0)


def cells_of(project: NativeProject) -> Detections:
    return project.images[0].read().detections


def test_a_run_writes_cells_that_count_as_nuclei(done: NativeProject) -> None:
    cells = cells_of(done)
    assert set(cells.kinds) == {"cell"}
    assert all(map(is_ours, cells.ids))
    outlines, nuclei = cells.geometries, cells.nucleus_geometries
    assert shapely.area(shapely.difference(nuclei, outlines)).max() < 0.01
    np.testing.assert_allclose(
        cells.centroids, shapely.get_coordinates(shapely.centroid(nuclei)), atol=1e-3
    )
    measured = cells.measurements
    for part, geometries in (("Nucleus", nuclei), ("Cell", outlines)):
        areas = shapely.area(geometries) * 0.25**2
        np.testing.assert_allclose(measured[f"{part}: Area µm^2"], areas, rtol=1e-4)
    assert (measured["Nucleus: Hematoxylin: Mean"] > measured["Cytoplasm: Hematoxylin: Mean"]).all()
    rows = count_project(done, done.images, by="image")
    assert sum(row["nuclei"] for row in rows) == 2 * len(cells)
    assert rows[0]["Num Detections"] == len(cells)


def test_the_nuclei_are_those_of_a_run_without_cells(done: NativeProject, tmp_path: Path) -> None:
    project = open_project(make_project(tmp_path / "place", 1) / "project")
    options = replace(OPTIONS, cell_expansion_um=0.0)
    analyse_project(project, project.images, options)
    plain, cells = cells_of(project), cells_of(done)
    assert plain.kinds == ["detection"] * len(cells)
    assert plain.ids == cells.ids
    assert shapely.equals_exact(plain.geometries, cells.nucleus_geometries).all()
    for name, values in plain.measurements.items():
        called = name if name == "Attention: Mean" else f"Nucleus: {name}"
        np.testing.assert_array_equal(values, cells.measurements[called])


def test_copies_of_a_run_hold_cells(done: NativeProject, tmp_path: Path) -> None:
    folder = done.path.parents[2]
    cells = cells_of(done)
    for name in ("project", "0.tif"):
        assert (folder / "place" / name).exists()
    target = open_project(make_project(tmp_path / "place", 2) / "project")
    path = next((folder / "geojson").glob("1-*"))
    imported = import_file(target, image_of_file(target, path), path)
    assert (imported.detections, imported.outlines, imported.losses) == (len(cells), 0, [])
    found = cells_of(target)
    order = [
        sorted(range(len(cells)), key=lambda row, d=d: str(d.ids[row])) for d in (found, cells)
    ]
    for one, other in zip(*order, strict=True):
        assert shapely.hausdorff_distance(found.geometries[one], cells.geometries[other]) < 0.02
        assert found.centroids[one] == pytest.approx(cells.centroids[other], abs=0.02)
    # The table has outlines of both.
    table = pq.read_table(next((folder / "parquet").glob("1-*")))
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["primary_column"] == "geometry"
    assert set(geo["columns"]) == {"geometry", "cell_geometry"}
    areas = (
        shapely.area(shapely.from_wkb(table[name].to_numpy(zero_copy_only=False))) * 0.25**2
        for name in ("geometry", "cell_geometry")
    )
    for part, values in zip(("Nucleus", "Cell"), areas, strict=True):
        np.testing.assert_allclose(table[f"{part}: Area µm^2"].to_numpy(), values, rtol=1e-4)


def without_and_with_cells(place: Path) -> tuple[NativeProject, Path, Path]:
    """Return a project without results, and what runs without and with cells export of it."""
    project = open_project(make_project(place, 1) / "project")
    (image,) = project.images
    empty = image.data_path.read_bytes()
    exported = []
    for name, distance in (("nuclei", 0.0), ("cells", 3.0)):
        image.data_path.write_bytes(empty)
        analyse_project(project, [image], replace(OPTIONS, cell_expansion_um=distance))
        exported.append(export_image(project, image, place / name).path)
    image.data_path.write_bytes(empty)
    return project, exported[0], exported[1]


def test_a_cell_is_imported_over_its_nucleus_as_what_is_already_there(tmp_path: Path) -> None:
    project, nuclei, cells = without_and_with_cells(tmp_path / "place")
    (image,) = project.images
    count = import_file(project, image, nuclei).detections
    assert count > 10
    done = import_file(project, image, cells)
    assert (done.detections, done.new_ids, done.already_there) == (0, 0, count + 2)
    (loss,) = done.losses
    assert f"{count} cells: the image already has the same nuclei" in loss
    assert cells_of(project).kinds == ["detection"] * count
    # The next run replaces them all, and the other way round nothing is lost.
    analyse_project(project, [image], OPTIONS)
    assert cells_of(project).kinds == ["cell"] * count
    done = import_file(project, image, nuclei)
    assert (done.detections, done.already_there, done.losses) == (0, count + 2, [])
    narrower = open_project(make_project(tmp_path / "narrower", 1) / "project")
    (image,) = narrower.images
    analyse_project(narrower, [image], replace(OPTIONS, cell_expansion_um=1.0))
    assert import_file(narrower, image, cells).detections == 0


def test_appending_cells_to_their_nuclei_says_that_none_were_made(tmp_path: Path) -> None:
    project = open_project(make_project(tmp_path / "place", 1) / "project")
    analyse_project(project, project.images, replace(OPTIONS, cell_expansion_um=0.0))
    count = len(cells_of(project))
    (result,) = analyse_project(
        project, project.images, replace(OPTIONS, on_existing="append")
    ).images
    assert result.nuclei == 0
    (note,) = result.notes
    assert f"{count} nuclei" in note
    assert "--on-existing replace" in note


def test_another_distance_needs_no_new_units_if_the_tiles_stay_the_same(
    done: NativeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qpnuclei.pipeline.planning.layout.UNIT_SIDE", 1)
    project = open_project(make_project(tmp_path / "place", 1) / "project")
    options = replace(OPTIONS, cell_expansion_um=1.0, run_dir=tmp_path / "run")
    folder, plan, _ = plan_run(project, project.images, options)
    infer_run(folder, options)
    units = {p: p.stat().st_mtime_ns for p in (tmp_path / "run/shards").glob("*/0*.parquet")}
    assert len(units) == 4  # of the whole image: a greater distance reaches no further
    wider = replace(options, cell_expansion_um=3.0)
    folder, again, _ = plan_run(project, project.images, wider)
    assert again.images[0].units == plan.images[0].units
    commit_run(project, folder, wider)
    assert {p: p.stat().st_mtime_ns for p in units} == units
    found, cells = cells_of(project), cells_of(done)
    assert shapely.equals_exact(found.geometries, cells.geometries, 1e-4).all()
