"""Nuclei as SpatialData: the outlines of each image, and one table of all nuclei."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import shapely

from qpnuclei.errors import UsageError
from qpnuclei.nuclei.exports.anndata_file import to_anndata
from qpnuclei.nuclei.exports.rows import NucleusRows, optional
from qpnuclei.system.files import atomic_path, content_of, saving


def write_spatialdata(images: Sequence[NucleusRows], path: Path) -> None:
    """Write a .zarr store that `spatialdata.read_zarr` opens, in one step.

    The store has the outlines of each image as shapes ``nuclei_<entry ID>``, and those of cells as
    ``cells_<entry ID>``, in the coordinate systems ``global`` (level-0 px) and, with a pixel size,
    ``um``. Their index is ``label``. Its table ``nuclei`` is that of
    `to_anndata`: the column ``region`` names the shapes and ``label`` the outline. Images without
    nuclei are left out.

    Raises
    ------
    UsageError
        If spatialdata is not installed, or `path` exists and is not a Zarr store.
    qpnuclei.errors.SaveError
        If it cannot be written.
    """
    library = optional("spatialdata", "spatialdata")
    frames = optional("geopandas", "spatialdata")
    models = optional("spatialdata.models", "spatialdata")
    transforms = optional("spatialdata.transformations", "spatialdata")
    check_store(path)
    shapes, regions = {}, []
    filled = [rows for rows in images if len(rows)]
    for rows in filled:
        systems = {"global": transforms.Identity()}
        if rows.mpp is not None:
            systems["um"] = transforms.Scale(list(rows.mpp), axes=("x", "y"))
        image_id, labels = rows.table["image_id"][0].as_py(), rows.table["label"].to_numpy()
        for kind, outlines in (("nuclei", rows.geometries), ("cells", rows.cells)):
            if outlines is not None:
                known = ~shapely.is_missing(outlines)
                frame = frames.GeoDataFrame(geometry=outlines[known], index=labels[known])
                parsed = models.ShapesModel.parse(frame, transformations=systems)
                shapes[f"{kind}_{image_id}"] = parsed
        regions += [f"nuclei_{image_id}"] * len(rows)
    tables = {}
    if filled:
        table = to_anndata(filled)
        table.obs["region"] = optional("pandas", "spatialdata").Categorical(regions)
        table.obs["label"] = table.obs["label"].astype(np.int64)
        tables["nuclei"] = models.TableModel.parse(
            table, region=list(dict.fromkeys(regions)), region_key="region", instance_key="label"
        )
    data = library.SpatialData(shapes=shapes, tables=tables)
    with atomic_path(path) as partial, warnings.catch_warnings():
        # anndata warns that its next version will divide arrays into files in another way.
        warnings.filterwarnings("ignore", "zarr v3 autosharding", UserWarning)
        data.write(partial)


def check_store(path: Path) -> None:
    """Check that nothing but a Zarr store or an empty folder would be replaced.

    Raises
    ------
    UsageError
        If `path` is another file or folder.
    qpnuclei.errors.SaveError
        If its name is too long, or it may not be entered.
    """
    with saving(path):
        is_store = any((path / name).is_file() for name in ("zarr.json", ".zgroup"))
        is_free = not path.exists() or (path.is_dir() and not content_of(path))
    if not (is_store or is_free):
        raise UsageError(f"{path} exists and is not a Zarr store", "choose another name")
