"""Nuclei as AnnData: a matrix of measurements, and a table of the other columns."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from qpnuclei.nuclei.exports.rows import FIELDS, NucleusRows, optional
from qpnuclei.system.files import write_atomically

if TYPE_CHECKING:
    import anndata

_CENTROIDS = [f"centroid_{axis}_{unit}" for unit in ("px", "um") for axis in "xy"]


def to_anndata(images: Sequence[NucleusRows]) -> anndata.AnnData:
    """Return the nuclei of images as AnnData.

    Returns
    -------
    anndata.AnnData
        ``X`` has the measurements and ``obs`` all other columns. The index of ``obs`` is the UUID,
        or entry ID and label if not all nuclei have a unique UUID. ``obsm["spatial"]`` has the
        centroids in level-0 px (y goes down), as squidpy expects them, and ``obsm["spatial_um"]``
        has them in µm.

    Raises
    ------
    UsageError
        If anndata is not installed.
    """
    library = optional("anndata", "export")
    names = list(dict.fromkeys(name for rows in images for name in rows.measurements))
    table = pa.concat_tables(
        [FIELDS.empty_table(), *(rows.table.select(FIELDS.names) for rows in images)]
    ).unify_dictionaries()
    frame = table.drop_columns(_CENTROIDS).to_pandas()
    if frame["uuid"].isna().all():  # AnnData cannot write a column of text without any text
        frame["uuid"] = frame["uuid"].astype("category")
    frame.index = _index(table)
    values = np.concatenate([np.empty((0, len(names))), *(_matrix(rows, names) for rows in images)])
    narrow = values.astype(np.float32)
    is_same = bool(np.array_equal(narrow, values, equal_nan=True))
    data = library.AnnData(narrow if is_same else values, obs=frame)
    data.var_names = names
    spatial = np.stack([table[name].to_numpy() for name in _CENTROIDS], axis=1)
    data.obsm["spatial"], data.obsm["spatial_um"] = spatial[:, :2], spatial[:, 2:]
    return data


def write_anndata(images: Sequence[NucleusRows], path: Path) -> None:
    """Write an .h5ad, in one step; see `to_anndata`.

    Raises
    ------
    UsageError
        If anndata is not installed.
    qpnuclei.errors.SaveError
        If it cannot be written.
    """
    data = to_anndata(images)
    data.strings_to_categoricals()
    elements, hdf5 = optional("anndata.io", "export"), optional("h5py", "export")
    # HDF5 would crash the process on a full disk. A million nuclei with 20 measurements are 200 MB.
    content = io.BytesIO()
    with hdf5.File(content, "w") as file:
        elements.write_elem(file, "/", data, dataset_kwargs={"compression": "gzip"})
    write_atomically(path, content.getbuffer())


def _index(table: pa.Table) -> list[str]:
    own: list[str | None] = table["uuid"].to_pylist()
    if None not in own and len(set(own)) == len(own):
        return [text for text in own if text is not None]
    pairs = zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    return [f"{image_id}-{label}" for image_id, label in pairs]


def _matrix(rows: NucleusRows, names: Sequence[str]) -> npt.NDArray[Any]:
    measured = set(rows.measurements)
    values = np.full((len(rows), len(names)), np.nan)
    for index, name in enumerate(names):
        if name in measured:
            values[:, index] = rows.table[name].to_numpy()
    return values
