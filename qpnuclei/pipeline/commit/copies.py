"""The files that a run writes beside the project: GeoJSON and GeoParquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qpnuclei.nuclei.exports.geoparquet import OutlineColumn, geo_metadata
from qpnuclei.pipeline.commit.new_nuclei import NewNuclei
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import ImagePlan
from qpnuclei.pipeline.positivity import NucleusClasses, classes_of_nuclei
from qpnuclei.pipeline.summary import StoredResult
from qpnuclei.qupath.geojson.writing import write_groups
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.names import file_stem
from qpnuclei.system.files import atomic_file, make_folder_below


def paths_of_copies(entry: ImageEntry, options: RunOptions) -> tuple[str, ...]:
    """Return the absolute paths of the requested copies of an image's nuclei."""
    paths = (_geojson_path(entry, options), _parquet_path(entry, options))
    return tuple(str(path.absolute()) for path in paths if path is not None)


def are_missing(entry: ImageEntry, options: RunOptions, stored: StoredResult) -> bool:
    """Return whether a requested copy of an image's nuclei was not written, or is gone."""
    paths = paths_of_copies(entry, options)
    return any(path not in stored.copies or not Path(path).exists() for path in paths)


def write_copies(project: Project, plan: ImagePlan, nuclei: NewNuclei, options: RunOptions) -> None:
    """Write the requested copies of nuclei beside the project.

    Raises
    ------
    SaveError
        If one cannot be written.
    """
    classes = classes_of_nuclei(options.class_name, options.positive_thresholds, project)
    for folder in (options.geojson_dir, options.parquet_dir):
        if folder is not None:  # the run made it at its start
            make_folder_below(folder.absolute().parent, folder)
    if (path := _geojson_path(plan.entry, options)) is not None:
        write_groups(path, nuclei.groups([None] * len(plan.regions), classes))
    if (path := _parquet_path(plan.entry, options)) is not None:
        write_parquet(path, plan, nuclei, classes)


def _geojson_path(entry: ImageEntry, options: RunOptions) -> Path | None:
    folder = options.geojson_dir
    return None if folder is None else folder / f"{file_stem(entry)}.geojson.gz"


def _parquet_path(entry: ImageEntry, options: RunOptions) -> Path | None:
    folder = options.parquet_dir
    return None if folder is None else folder / f"{file_stem(entry)}.parquet"


def write_parquet(path: Path, plan: ImagePlan, nuclei: NewNuclei, classes: NucleusClasses) -> None:
    """Write nuclei as GeoParquet: one row each, outlines as WKB, measurements as columns.

    The columns of the annotation are those of ``export --by nucleus``, to join the tables by. The
    outlines of cells are in ``cell_geometry``.

    Raises
    ------
    SaveError
        If it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    from qpnuclei.nuclei.exports.rows import CELL_GEOMETRY, GEOMETRY
    from qpnuclei.qupath.nucleus_rows import annotation_columns

    annotations = [region.annotation for region in plan.regions]
    class_names = np.array([path_class.name for path_class in classes.classes], dtype=object)

    def part(number: int) -> pa.Table:
        table = nuclei.tables[number]
        centroids = table.centroids()
        region_of_each = np.repeat(np.arange(len(annotations)), nuclei.counts[number])
        return pa.table(
            {
                "uuid": pa.array(nuclei.ids_of(table).texts(), pa.string()),
                "class": pa.array(class_names[classes.codes(table)], pa.string()),
                **annotation_columns(annotations, region_of_each),
                "centroid_x_px": centroids[:, 0],
                "centroid_y_px": centroids[:, 1],
                **{
                    name: pa.array(shapely.to_wkb(outlines.polygons()), pa.binary())
                    for name, outlines in ((GEOMETRY, table), (CELL_GEOMETRY, table.cells))
                    if outlines is not None
                },
                **table.measurements,
            }
        )

    first = part(0)
    column = OutlineColumn(["Polygon"] if len(first) else [])
    columns = [name for name in (GEOMETRY, CELL_GEOMETRY) if name in first.column_names]
    schema = first.schema.with_metadata(geo_metadata(dict.fromkeys(columns, column)))
    with atomic_file(path) as stream, pq.ParquetWriter(stream, schema) as writer:
        writer.write_table(first.cast(schema))
        for number in range(1, len(nuclei.tables)):
            writer.write_table(part(number).cast(schema))
