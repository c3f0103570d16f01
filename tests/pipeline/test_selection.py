from __future__ import annotations

import logging
import uuid

import numpy as np
import numpy.typing as npt
import pytest
import shapely

from qpnuclei.errors import UsageError
from qpnuclei.pipeline.selection import Selection, check_selection, ours_within, select_regions
from qpnuclei.qupath.model import (
    Annotation,
    Detections,
)
from qpnuclei.qupath.regions import Region, region_of
from tests.ids import nucleus_id


def annotation(
    geometry: shapely.Geometry,
    class_name: str | None = "Tumor",
    name: str | None = None,
    roi_type: str = "PolygonROI",
    handle: int = 0,
    z: int = 0,
) -> Annotation:
    return Annotation(handle, None, name, class_name, roi_type, geometry, z=z)


SQUARE = shapely.box(10, 10, 20, 20)
LINE = shapely.LineString([(0, 0), (5, 5)])


@pytest.mark.parametrize(
    ("selection", "class_name", "name", "expected"),
    [
        (Selection(classes=("Tumor",)), "Tumor", None, True),
        (Selection(classes=("Tumor",)), "Tumor: Positive", None, False),
        (Selection(classes=("Tumor",), derived=True), "Tumor: Positive", None, True),
        # "Tumorous" starts with "Tumor" but is not derived from it.
        (Selection(classes=("Tumor",), derived=True), "Tumorous", None, False),
        (Selection(classes=("Tumor", "Stroma")), "Stroma", None, True),
        (Selection(classes=("Tumor",)), None, "Tumor", False),
        (Selection(names=("A1",)), "Stroma", "A1", True),
        (Selection(names=("A1",)), "A1", None, False),
        (Selection(ids=(uuid.UUID(int=1),)), "Tumor", "A1", False),
        (Selection(everything=True), None, None, True),
        (Selection(tissue=True), "Tumor", None, False),
    ],
)
def test_matches(
    selection: Selection, class_name: str | None, name: str | None, expected: bool
) -> None:
    assert selection.matches(annotation(SQUARE, class_name, name)) is expected


def test_nothing_chosen_and_contradictions_are_refused() -> None:
    with pytest.raises(UsageError, match="nothing chosen"):
        Selection()
    with pytest.raises(UsageError, match="--tissue"):
        Selection(classes=("Tumor",), tissue=True)


def test_brackets_in_the_name_of_an_excluded_class_stand_for_themselves() -> None:
    selection = Selection(everything=True, excluded=("Pen [old]", "Fold*"))
    classes = ("Pen [old]", "Pen o", "Fold 1", "Tumor", None)
    assert [selection.excludes_class(name) for name in classes] == [True, False, True, False, False]


def test_a_project_without_annotations_is_told_how_to_get_some() -> None:
    with pytest.raises(UsageError, match=r"no annotation in p\.qpproj") as caught:
        check_selection(Selection(classes=("Tumor",)), [], "p.qpproj")
    assert "--tissue" in caught.value.hint


def test_unknown_class_lists_those_that_exist() -> None:
    present = [annotation(SQUARE, "Stroma"), annotation(SQUARE, "Tumor: Positive")]
    with pytest.raises(UsageError) as caught:
        check_selection(Selection(classes=("Tumor",)), present, "p.qpproj")
    assert "'Tumor'" in caught.value.what
    assert "p.qpproj" in caught.value.what
    assert "Stroma, Tumor: Positive" in caught.value.hint
    assert "--roi-derived" in caught.value.hint


def test_one_unknown_class_among_known_ones_is_refused() -> None:
    with pytest.raises(UsageError, match="'Tumour'"):
        check_selection(Selection(classes=("Tumor", "Tumour")), [annotation(SQUARE)], "p")


def test_unknown_name_lists_those_that_exist() -> None:
    with pytest.raises(UsageError, match="'B'") as caught:
        check_selection(Selection(names=("B",)), [annotation(SQUARE, name="A")], "p")
    assert "A" in caught.value.hint


def test_an_id_chooses_one_annotation_of_several_alike() -> None:
    alike = [Annotation(i, uuid.UUID(int=i), "A", "Tumor", "PolygonROI", SQUARE) for i in range(3)]
    # One without UUID, as QuPath 0.3 wrote it, is not meant by any.
    chosen = Selection(ids=(uuid.UUID(int=1),))
    regions = select_regions(chosen, [*alike, annotation(SQUARE)], 100, 100)
    assert [region.handle for region in regions] == [1]


def test_ids_may_be_texts() -> None:
    wanted = uuid.uuid4()
    for given in (str(wanted), (str(wanted).upper(), wanted), wanted):
        assert set(Selection(ids=given).ids) == {wanted}  # type: ignore[arg-type]
    for wrong in ("tumor-1", 7):
        with pytest.raises(UsageError, match=f"ids={wrong!r}: not a UUID"):
            Selection(ids=(wrong,))  # type: ignore[arg-type]


def test_unknown_id_is_named_with_a_remedy() -> None:
    missing = uuid.UUID(int=9)
    known = Annotation(0, uuid.UUID(int=1), None, None, "PolygonROI", SQUARE)
    with pytest.raises(UsageError, match=str(missing)) as caught:
        check_selection(Selection(ids=(known.id, missing)), [known], "p")  # type: ignore[arg-type]
    assert "saved" in caught.value.hint
    with pytest.raises(UsageError, match=str(missing)) as caught:
        check_selection(Selection(ids=(missing,)), [annotation(SQUARE)], "p")
    assert "0.4" in caught.value.hint


def test_class_of_lines_only_is_refused_by_kind() -> None:
    line = annotation(LINE, roi_type="LineROI")
    with pytest.raises(UsageError, match="LineROI"):
        check_selection(Selection(classes=("Tumor",)), [line], "p")


def test_line_beside_an_area_is_skipped_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    chosen = [annotation(LINE, roi_type="LineROI"), annotation(SQUARE)]
    with caplog.at_level(logging.WARNING):
        regions = select_regions(Selection(classes=("Tumor",)), chosen, 100, 100)
    assert [r.geometry for r in regions] == [SQUARE]
    assert "LineROI" in caplog.text


def test_bow_tie_is_mended_to_its_two_triangles(caplog: pytest.LogCaptureFixture) -> None:
    bow_tie = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    with caplog.at_level(logging.WARNING):
        (region,) = select_regions(Selection(everything=True), [annotation(bow_tie)], 100, 100)
    assert region.geometry.is_valid
    assert region.geometry.area == pytest.approx(50)  # two triangles of base 10 and height 5
    assert "repaired" in caplog.text


def test_annotation_is_clipped_to_the_image(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (region,) = select_regions(
            Selection(everything=True), [annotation(shapely.box(-5, 5, 5, 15))], 100, 10
        )
    assert region.geometry.equals(shapely.box(0, 5, 5, 10))
    assert "clipped" in caplog.text


def test_annotation_outside_the_image_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    far = annotation(shapely.box(200, 0, 210, 9))
    everything = Selection(everything=True)
    with caplog.at_level(logging.WARNING):
        regions = select_regions(everything, [far, annotation(SQUARE)], 100, 100)
    assert [region.geometry for region in regions] == [SQUARE]
    assert "outside" in caplog.text
    with pytest.raises(UsageError, match="no area inside the image"):
        select_regions(everything, [far], 100, 100)


def test_other_planes_are_skipped() -> None:
    regions = select_regions(
        Selection(everything=True), [annotation(SQUARE, z=2), annotation(SQUARE)], 100, 100
    )
    assert len(regions) == 1


def test_nested_regions_own_by_the_smallest() -> None:
    outer = Region(annotation(shapely.box(0, 0, 100, 100), handle=7), shapely.box(0, 0, 100, 100))
    inner = Region(annotation(SQUARE, handle=8), SQUARE)
    points = np.array([[15.0, 15.0], [50.0, 50.0], [101.0, 5.0]])
    assert region_of(points, [outer, inner]).tolist() == [1, 0, -1]
    assert region_of(points, [inner, outer]).tolist() == [0, 1, -1]


def test_only_ours_and_only_inside_are_replaced() -> None:
    ours_in, ours_out = nucleus_id(b"0123456789"), nucleus_id(b"abcdefghij")
    theirs = uuid.uuid4()
    centroids = np.array([[15.0, 15.0], [50.0, 50.0], [15.0, 15.0], [15.0, 15.0]])
    detections = Detections(
        ids=[ours_in, ours_out, theirs, None],
        kinds=["detection"] * 4,
        class_names=["Nucleus"] * 4,
        geometries=shapely.buffer(shapely.points(centroids), 2),
        centroids=centroids,
        planes=np.zeros((4, 2), np.int64),
        parents=np.full(4, -1),
    )
    elsewhere = Region(None, shapely.box(40, 40, 60, 60))
    assert ours_within([Region(None, SQUARE), elsewhere], detections) == [{0}, {1}]
    assert ours_within([], detections) == []


def detections_at(centroids: npt.NDArray[np.float64]) -> Detections:
    """Return points as detections, every second of them ours."""
    n = len(centroids)
    ids = [
        nucleus_id(row.to_bytes(10, "big")) if row % 2 == 0 else uuid.UUID(int=row)
        for row in range(n)
    ]
    return Detections(
        ids=ids,
        kinds=["detection"] * n,
        class_names=["Nucleus"] * n,
        geometries=shapely.points(centroids),
        centroids=centroids,
        planes=np.zeros((n, 2), np.int64),
        parents=np.full(n, -1),
    )


@pytest.mark.parametrize(
    ("across", "n"),
    [
        (10, 2000),
        (55, 200_000),
        (200, 20_000),  # 40,000 annotations
    ],
)
def test_many_regions_hold_what_a_grid_says(across: int, n: int) -> None:
    places = np.random.default_rng(1).uniform(0, 100 * across, (n, 2))
    detections = detections_at(places)
    corners = np.stack(np.divmod(np.arange(across * across), across), axis=1) * 100.0
    boxes = shapely.box(*corners.T, *(corners.T + 50))
    found = ours_within([Region(None, box) for box in boxes], detections)
    expected: list[set[int]] = [set() for _ in boxes]
    for row in range(0, n, 2):
        (i, x), (j, y) = (divmod(float(value), 100.0) for value in places[row])
        if x <= 50 and y <= 50:
            expected[int(i) * across + int(j)].add(row)
    assert found == expected


@pytest.mark.parametrize(
    ("vertices", "n"), [(500, 1000), pytest.param(200_000, 100_000, marks=pytest.mark.slow)]
)
def test_an_annotation_of_many_vertices_holds_what_a_circle_does(vertices: int, n: int) -> None:
    places = np.random.default_rng(2).uniform(0, 1000, (n, 2))
    radius = np.hypot(*(places - 500).T)
    places = places[abs(radius - 400) > 0.02]  # the polygon is that much smaller than its circle
    detections = detections_at(places)
    angles = np.arange(vertices) * (2 * np.pi / vertices)
    ring = 500 + 400 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    (found,) = ours_within([Region(None, shapely.polygons(ring))], detections)
    inside = np.flatnonzero(np.hypot(*(places - 500).T) < 400)
    assert found == {row for row in inside.tolist() if row % 2 == 0}
