"""Nuclei as SpatialData: outlines of every image, and one table of all."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qpnuclei.errors import UsageError
from qpnuclei.nuclei.exports.anndata_file import to_anndata
from qpnuclei.nuclei.exports.rows import NucleusRows, optional
from qpnuclei.system.files import atomic_path


def write_spatialdata(images: Sequence[NucleusRows], path: Path) -> None:
    """Write a .zarr store that `spatialdata.read_zarr` opens, in one step.

    It has the outlines of each image as shapes ``nuclei_<entry ID>``, in the coordinate systems
    ``global`` (level-0 px) and, with a pixel size, ``um``; and the table ``nuclei`` of
    `to_anndata`, whose column ``region`` names the shapes and ``label`` the outline. Images without
    nuclei are not in it.

    Raises
    ------
    UsageError
        If spatialdata is not installed, or `path` is there and no such store.
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
        name = f"nuclei_{rows.table['image_id'][0].as_py()}"
        systems = {"global": transforms.Identity()}
        if rows.mpp is not None:
            systems["um"] = transforms.Scale(list(rows.mpp), axes=("x", "y"))
        frame = frames.GeoDataFrame(geometry=rows.geometries, index=rows.table["label"].to_numpy())
        shapes[name] = models.ShapesModel.parse(frame, transformations=systems)
        regions += [name] * len(rows)
    tables = {}
    if filled:
        table = to_anndata(filled)
        table.obs["region"] = optional("pandas", "spatialdata").Categorical(regions)
        table.obs["label"] = table.obs["label"].astype(np.int64)
        tables["nuclei"] = models.TableModel.parse(
            table, region=list(shapes), region_key="region", instance_key="label"
        )
    made = library.SpatialData(shapes=shapes, tables=tables)
    with atomic_path(path) as partial, warnings.catch_warnings():
        # How anndata will divide arrays into files in its next version.
        warnings.filterwarnings("ignore", "zarr v3 autosharding", UserWarning)
        made.write(partial)


def check_store(path: Path) -> None:
    """Refuse to replace a folder or file that is no Zarr store.

    Raises
    ------
    UsageError
        If it is one.
    """
    is_store = any((path / name).is_file() for name in ("zarr.json", ".zgroup"))
    if path.exists() and not is_store and not (path.is_dir() and not any(path.iterdir())):
        raise UsageError(f"{path} is there, and no Zarr store", "choose another name")
