"""Decode the outputs of third-party networks into instances: one function per kind of output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import ModelError
from qpnuclei.segmentation.engine import ScoreMap
from qpnuclei.segmentation.labels import clean_labels
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.quantised import (
    ATTENTION_OF_LEVEL,
    FloatMap,
    QuantisedAttention,
    check_finite,
    quantise_attention,
)
from qpnuclei.segmentation.sidecar import PROBABILITY, Sidecar, StarDistOutput
from qpnuclei.segmentation.watershed import LabelArray

Found: TypeAlias = tuple[LabelArray, dict[str, ScoreMap]]

#: float32 cannot represent every integer above it.
_LARGEST_LABEL = 1 << 24

#: Of a point of an outline from its centre, in px; OpenCV draws with 32-bit coordinates.
_LARGEST_DISTANCE = 1 << 24

#: Rounding may take a probability so far out of 0..1; logits and 8-bit values are further out.
_ROUNDING = 1e-3


def as_arrays(outputs: Sequence[object], model: Path) -> list[npt.NDArray[Any]]:
    """Return the outputs of a network, after a check that they are arrays of numbers.

    Parameters
    ----------
    outputs : sequence of object
    model : pathlib.Path
        The file of the network, for errors.

    Raises
    ------
    ModelError
        If there are none, or one is something else, such as a list or a dict of arrays.
    """
    hint = "export the network so that each of its outputs is a dense array of real numbers"
    if not outputs:
        raise ModelError(f"{model} returns nothing", hint)
    arrays = []
    for number, output in enumerate(outputs, start=1):
        if not isinstance(output, np.ndarray):
            raise ModelError(f"output {number} of {model} is a {type(output).__name__}", hint)
        if output.dtype.kind not in "buif":
            raise ModelError(f"output {number} of {model} holds {output.dtype}", hint)
        arrays.append(output)
    return arrays


def instances(
    outputs: Sequence[npt.NDArray[Any]], shape: tuple[int, int], sidecar: Sidecar
) -> Found:
    """Return the instances that a network found in one tile.

    Parameters
    ----------
    outputs : sequence of ndarray
        Outputs of the network, channels first, with a batch axis of 1 (see `Sidecar`).
    shape : (H, W) of int
        Shape of the tile. Outputs may be larger; they are cropped on the right and below.
    sidecar : Sidecar

    Returns
    -------
    labels : (H, W) int32 ndarray
    scores : dict of str to ScoreMap
        Empty if the output has no probability.

    Raises
    ------
    ModelError
        If the outputs do not match the sidecar, or are not finite.
    """
    if sidecar.output == "maps":
        return _from_maps(outputs, shape, sidecar)
    if sidecar.output == "stardist":
        return _from_stardist(outputs, shape, sidecar.stardist)
    return _from_labels(outputs, shape), {}


def _from_maps(
    outputs: Sequence[npt.NDArray[Any]], shape: tuple[int, int], sidecar: Sidecar
) -> Found:
    maps = _array(outputs, 0, "maps (1, C, H, W)", 4)[0]
    if not 1 <= len(maps) <= 2:
        raise ModelError(f"maps have one or two channels, but this model gives {len(maps)}")
    maps = _cropped(maps, shape)
    levels = _quantised(_probability(maps[0]))
    centre = np.clip(maps[1], 0, 1).astype(np.float32) if len(maps) == 2 else None
    return segment_instances(levels, sidecar.post_processing, centre), _score(levels)


def _from_labels(outputs: Sequence[npt.NDArray[Any]], shape: tuple[int, int]) -> LabelArray:
    found = outputs[0]
    while found.ndim > 2 and len(found):
        found = found[0]
    if found.ndim != 2:
        raise ModelError(f"a label map is (1, 1, H, W), but this model gives {outputs[0].shape}")
    # NumPy rounds 8 bits to float16, which cannot be compared with the largest label.
    found = _cropped(found[None], shape)[0].astype(np.float64)
    whole = np.rint(found)
    if not np.isfinite(whole).all() or whole.min() < 0 or whole.max() > _LARGEST_LABEL:
        raise ModelError("labels must be finite whole numbers, 0 or more")
    if np.abs(found - whole).max(initial=0) > 0:
        raise ModelError(
            "labels must be whole numbers, but this model gives fractions",
            'check whether "output" in its sidecar should be "maps"',
        )
    return clean_labels(whole.astype(np.int64))


def _from_stardist(
    outputs: Sequence[npt.NDArray[Any]], shape: tuple[int, int], parameters: StarDistOutput
) -> Found:
    """Apply greedy non-maximum suppression to star-convex polygons.

    Notes
    -----
    Schmidt et al., "Cell Detection with Star-Convex Polygons", MICCAI 2018, section 2. Candidates
    are taken in the order of their probability; among equals, the upper one first, then the left
    one. A candidate is dropped if its overlap with a kept one is too large a share of the smaller
    of the two.
    """
    probability = _array(outputs, 0, "probability (1, 1, h, w)", 4)[0, 0]
    distances = _array(outputs, 1, "distances (1, R, h, w)", 4)[0]
    if distances.shape[0] < 3 or distances.shape[1:] != probability.shape:
        raise ModelError(
            f"distances of shape {distances.shape} do not fit a probability of "
            f"{probability.shape}: they must be (R, h, w) with at least 3 rays"
        )
    grid = parameters.grid
    rows, columns = np.nonzero(_probability(probability) > parameters.probability)
    order = np.argsort(-probability[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    angles = 2 * np.pi * np.arange(len(distances)) / len(distances)
    radii = np.maximum(distances[:, rows, columns].T, 0)
    if radii.max(initial=0) > _LARGEST_DISTANCE:
        raise ModelError(
            f"distances must be in px of the input, but this model gives {radii.max():.3g}"
        )
    x = columns[:, None] * grid + radii * np.cos(angles)
    y = rows[:, None] * grid + radii * np.sin(angles)
    polygons = shapely.make_valid(shapely.polygons(np.stack([x, y], axis=2)))
    kept = _suppressed(polygons, parameters.overlap)
    labels = np.zeros(shape, np.int32)
    for number, candidate in reversed(list(enumerate(kept, start=1))):  # the best on top
        ring = np.rint(np.stack([x[candidate], y[candidate]], axis=1)).astype(np.int32)
        cv2.fillPoly(labels, [ring], number)
    levels = _quantised(_cropped(np.kron(probability, np.ones((grid, grid)))[None], shape)[0])
    return clean_labels(labels), _score(levels)


def _suppressed(polygons: npt.NDArray[Any], overlap: float) -> list[int]:
    """Return the indices of the polygons that greedy non-maximum suppression keeps, in order."""
    if len(polygons) == 0:
        return []
    areas = shapely.area(polygons)
    tree = shapely.STRtree(polygons)
    alive = areas > 0
    kept: list[int] = []
    for i in range(len(polygons)):
        if not alive[i]:
            continue
        kept.append(i)
        others = tree.query(polygons[i])
        others = others[(others > i) & alive[others]]
        common = shapely.area(shapely.intersection(polygons[i], polygons[others]))
        alive[others[common > overlap * np.minimum(areas[i], areas[others])]] = False
    return kept


def _array(outputs: Sequence[npt.NDArray[Any]], index: int, what: str, dimensions: int) -> FloatMap:
    if (
        index >= len(outputs)
        or outputs[index].ndim != dimensions
        or 0 in outputs[index].shape[:2]  # no image, or no channel
    ):
        shapes = ", ".join(str(np.shape(output)) for output in outputs)
        raise ModelError(
            f"output {index + 1} must be {what}, but this model gives {shapes}",
            'see "output" and "channels" in its sidecar',
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        found = np.asarray(outputs[index], np.float32)
    if not np.isfinite(found).all():
        raise ModelError("the output of the network for these pixels is not finite (NaN)")
    return found


def _cropped(maps: npt.NDArray[Any], shape: tuple[int, int]) -> npt.NDArray[Any]:
    if maps.shape[1] < shape[0] or maps.shape[2] < shape[1]:
        raise ModelError(
            f"the output is {maps.shape[2]} x {maps.shape[1]} px for {shape[1]} x {shape[0]} px",
            "a model must predict every pixel of its input",
        )
    return maps[:, : shape[0], : shape[1]]


def _probability(values: FloatMap) -> FloatMap:
    """Return a probability as it is, after a check that it is one."""
    low, high = values.min(initial=0), values.max(initial=1)
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ModelError(
            f"a probability must be in 0..1, but this model gives {low:.3g} to {high:.3g}",
            "export it with its sigmoid, and with floating-point output",
        )
    return values


def _quantised(probability: FloatMap) -> QuantisedAttention:
    levels = quantise_attention(np.clip(probability, 0, 1).astype(np.float32))
    check_finite(levels)
    return levels


def _score(levels: QuantisedAttention) -> dict[str, ScoreMap]:
    return {PROBABILITY: ScoreMap(levels, ATTENTION_OF_LEVEL)}
