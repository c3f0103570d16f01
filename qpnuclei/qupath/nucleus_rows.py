"""The nuclei of an image as rows, with the annotation of each nucleus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qpnuclei.nuclei.exports.rows import (
    CELL_GEOMETRY,
    FIELDS,
    GEOMETRY,
    NucleusRows,
    shared_texts,
)
from qpnuclei.qupath.counted_image import CountedImage, counted_image
from qpnuclei.qupath.model import Annotation, ImageEntry, Project
from qpnuclei.qupath.names import column_names, table_text
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.regions import Region, rows_inside

#: Separates the annotations of ``parents``.
SEPARATOR = " > "


def nuclei_of(
    project: Project,
    entry: ImageEntry,
    *,
    roi_classes: Sequence[str] | None = None,
    nucleus_classes: Sequence[str] | None = None,
    pixel_sizes: AskedMpp | None = None,
) -> NucleusRows:
    """Read the nuclei of an image of a project; see `nucleus_rows`.

    Raises
    ------
    qpnuclei.errors.FormatError
        If its objects cannot be read.
    """
    image = counted_image(entry, pixel_sizes or AskedMpp(), project)
    return nucleus_rows(image, roi_classes=roi_classes, nucleus_classes=nucleus_classes)


def nucleus_rows(
    image: CountedImage,
    *,
    roi_classes: Sequence[str] | None = None,
    nucleus_classes: Sequence[str] | None = None,
) -> NucleusRows:
    """Return a row for each nucleus of an image, from any program.

    Parameters
    ----------
    image : CountedImage
    roi_classes : sequence of str, optional
        Only nuclei in annotations of these classes; other annotations are ignored.
    nucleus_classes : sequence of str, optional
        Only detections of these classes; by default all detections and cells, but no tiles.

    Notes
    -----
    By the counting rule, a nucleus belongs to every annotation that contains its centroid.
    ``annotation`` is the smallest of them; a run stores the nucleus under it. ``parents`` are the
    others, from the largest to the smallest. The nucleus counts in the rows of these annotations in
    `qpnuclei.qupath.counts.count_objects`.
    """
    objects = image.objects
    found = objects.detections
    names = np.array(found.class_names, dtype=object)
    kinds = np.array(found.kinds, dtype=object)
    is_chosen = kinds != "tile"
    if nucleus_classes is not None:
        is_chosen = np.array([name in nucleus_classes for name in names], bool)
    annotations = [
        a for a in objects.annotations if roi_classes is None or a.class_name in roi_classes
    ]
    centroids, planes = found.centroids, found.planes
    chains, chain = _chains(annotations, centroids, planes)
    if roi_classes is not None:
        is_chosen &= chain > 0
    rows = np.flatnonzero(is_chosen)
    cores, core = _chains(objects.cores, centroids, planes)
    owners = [annotations[members[-1]] if members else None for members in chains]
    parents = [[annotations[i] for i in members[:-1]] for members in chains]
    x, y = (centroids[rows, axis] for axis in (0, 1))
    mpp = image.mpp
    x_um, y_um = (x * np.nan, y * np.nan) if mpp is None else (x * mpp[0], y * mpp[1])

    def of_image(text: str | None) -> pa.DictionaryArray:
        return _column([text], np.zeros(len(rows), np.int64))

    def of_chain(values: list[str | None]) -> pa.DictionaryArray:
        return _column(values, chain[rows])

    def of_rows(values: npt.NDArray[Any]) -> pa.DictionaryArray:
        known, codes = np.unique([text or "" for text in values[rows]], return_inverse=True)
        return _column([text or None for text in known.tolist()], codes)

    columns: dict[str, Any] = {
        "image": of_image(image.name),
        "image_id": of_image(image.id),
        "label": np.arange(1, len(rows) + 1, dtype=np.uint32),
        "uuid": [None if (own := found.ids[i]) is None else str(own) for i in rows.tolist()],
        "type": of_rows(kinds),
        "class": of_rows(names),
        "by_qpnuclei": found.ours[rows],
        **annotation_columns(owners, chain[rows]),
        "parents": of_chain([SEPARATOR.join(map(_label, above)) or None for above in parents]),
        "parent_uuids": of_chain(
            [" ".join(filter(None, map(_id, above))) or None for above in parents]
        ),
        "tma_core": _column(
            [objects.cores[members[-1]].name if members else None for members in cores], core[rows]
        ),
        "centroid_x_px": x,
        "centroid_y_px": y,
        "centroid_x_um": x_um,
        "centroid_y_um": y_um,
        "z": planes[rows, 0].astype(np.int32),
        "t": planes[rows, 1].astype(np.int32),
        "status": of_chain([None if a is None else str(image.record.status(a)) for a in owners]),
        "check": of_chain(
            [None if a is None else image.doubts(Region.of(a)) or None for a in owners]
        ),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in FIELDS]
    table = pa.Table.from_arrays(arrays, schema=FIELDS)
    taken = (*FIELDS.names, GEOMETRY, CELL_GEOMETRY)
    measured = column_names(found.measurements, " (measurement)", taken)
    for name, column in zip(measured, found.measurements.values(), strict=True):
        table = table.append_column(name, pa.array(column[rows].astype(np.float64)))
    is_cell = kinds[rows] == "cell"
    cells = None
    if is_cell.any():
        cells = np.full(len(rows), None)
        cells[is_cell] = found.geometries[rows[is_cell]]
    return NucleusRows(table, found.nucleus_geometries[rows], cells, image.size, mpp)


def annotation_columns(
    annotations: Sequence[Annotation | None], codes: npt.NDArray[np.int64]
) -> dict[str, pa.DictionaryArray]:
    """Return name, class and UUID of the annotation of each of N nuclei, as columns of a table.

    Parameters
    ----------
    annotations : sequence of Annotation or None
        None for no annotation: its columns are null. So are a name, class or UUID that it lacks.
    codes : (N,) int64 ndarray
        Index in `annotations` for each nucleus.
    """
    return {
        "annotation": _column([None if a is None else a.name for a in annotations], codes),
        "annotation_class": _column(
            [None if a is None else a.class_name for a in annotations], codes
        ),
        "annotation_uuid": _column([_id(a) for a in annotations], codes),
    }


def _column(texts: Sequence[str | None], codes: npt.NDArray[np.int64]) -> pa.DictionaryArray:
    return shared_texts([text and table_text(text) for text in texts], codes)


def _chains(
    annotations: Sequence[Annotation],
    points: npt.NDArray[np.float64],
    planes: npt.NDArray[np.int64],
) -> tuple[list[tuple[int, ...]], npt.NDArray[np.int64]]:
    """Return which annotations contain each of N points.

    Returns
    -------
    chains : list of tuple of int
        Distinct sets of annotations that contain some point, each from the largest to the
        smallest; the first is empty.
    chain : (N,) int64 ndarray
        The chain of each point.
    """
    regions = [Region.of(annotation) for annotation in annotations]
    inside = rows_inside(regions, points, planes)
    chains: list[tuple[int, ...]] = [()]
    chain = np.zeros(len(points), np.int64)
    for index in sorted(range(len(regions)), key=lambda i: -regions[i].geometry.area):
        before, codes = np.unique(chain[inside[index]], return_inverse=True)
        chain[inside[index]] = len(chains) + codes
        chains += [(*chains[i], index) for i in before.tolist()]
    return chains, chain


def _id(annotation: Annotation | None) -> str | None:
    return None if annotation is None or annotation.id is None else str(annotation.id)


def _label(annotation: Annotation) -> str:
    return annotation.name or annotation.class_name or "unclassified"
