"""The files that a run writes beside the project: GeoJSON and GeoParquet."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qpnuclei.nuclei.exports.geoparquet import OutlineColumn, geo_metadata
from qpnuclei.pipeline.commit.new_nuclei import NewNuclei, ids_of
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import ImagePlan
from qpnuclei.pipeline.positivity import NucleusClasses, classes_of_nuclei
from qpnuclei.qupath.geojson.writing import write_groups
from qpnuclei.qupath.model import Project
from qpnuclei.qupath.names import file_stem
from qpnuclei.system.files import atomic_file, make_folder_below


def write_copies(project: Project, plan: ImagePlan, nuclei: NewNuclei, options: RunOptions) -> None:
    """Write the requested copies of nuclei beside the project.

    Raises
    ------
    SaveError
        If one cannot be written.
    """
    stem = file_stem(plan.entry)
    classes = classes_of_nuclei(options.class_name, options.positive_thresholds, project)
    for folder in (options.geojson_dir, options.parquet_dir):
        if folder is not None:  # the run made it at its start
            make_folder_below(folder.absolute().parent, folder)
    if options.geojson_dir is not None:
        path = options.geojson_dir / f"{stem}.geojson.gz"
        write_groups(path, nuclei.groups([None] * len(plan.regions), classes))
    if options.parquet_dir is not None:
        write_parquet(options.parquet_dir / f"{stem}.parquet", plan, nuclei, classes)


def write_parquet(path: Path, plan: ImagePlan, nuclei: NewNuclei, classes: NucleusClasses) -> None:
    """Write nuclei as GeoParquet: one row each, outlines as WKB, measurements as columns.

    The outlines of cells are in ``cell_geometry``.

    Raises
    ------
    SaveError
        If it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import shapely

    from qpnuclei.nuclei.exports.rows import CELL_GEOMETRY, GEOMETRY

    labels = [region.label for region in plan.regions]
    class_names = np.array([path_class.name for path_class in classes.classes], dtype=object)

    def part(number: int) -> pa.Table:
        table = nuclei.tables[number]
        centroids = table.centroids()
        return pa.table(
            {
                "id": pa.array(ids_of(table, plan.entry).texts(), pa.string()),
                "class": pa.array(class_names[classes.codes(table)], pa.string()),
                "annotation": pa.array(np.repeat(labels, nuclei.counts[number]), pa.string()),
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
