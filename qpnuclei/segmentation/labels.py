"""Clean label maps: each instance becomes one 4-connected region without holes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei.segmentation.watershed import LabelArray, renumbered
from qpnuclei.system.compiled import compiled


def clean_labels(labels: npt.NDArray[np.integer[Any]]) -> LabelArray:
    """Return a label map in which each instance is one 4-connected region without holes.

    If an instance has several pieces, only the largest is kept; of equally large pieces, the first
    in row-major order. Holes are filled. An instance inside another one becomes part of it.

    Parameters
    ----------
    labels : (H, W) integer ndarray
        0 is background.

    Returns
    -------
    (H, W) int32 ndarray
        0 is background; the N instances are 1 to N, in the order of their first pixels.

    Raises
    ------
    ValueError
        If `labels` is not 2-D, or a label is negative.

    Examples
    --------
    >>> clean_labels(np.array([[7, 7, 7, 0, 7], [7, 0, 7, 0, 0], [7, 7, 7, 0, 4]]))
    array([[1, 1, 1, 0, 0],
           [1, 1, 1, 0, 0],
           [1, 1, 1, 0, 2]], dtype=int32)
    """
    if labels.ndim != 2:
        raise ValueError(f"labels must be (H, W), not {labels.shape}")
    if labels.size == 0 or labels.max() == 0:
        return np.zeros(labels.shape, np.int32)
    if labels.min() < 0:
        raise ValueError(f"labels must not be negative, but there is {labels.min()}")
    from skimage.measure import label as label_components

    pieces = np.asarray(
        label_components(labels, background=0, connectivity=1),  # type: ignore[no-untyped-call]
        np.int32,
    )
    size = np.bincount(pieces.ravel())
    first = np.unique(pieces.ravel(), return_index=True)[1]
    first = first if len(first) == len(size) else np.concatenate([[0], first])
    owner = labels.ravel()[first]
    # Keep the largest piece of each label, or the first of equals: pieces are numbered by row.
    order = np.lexsort((np.arange(len(size)), -size, owner))
    order = order[order > 0]
    keep = order[np.unique(owner[order], return_index=True)[1]]
    numbers = np.zeros(len(size), np.int32)
    numbers[np.sort(keep)] = np.arange(1, len(keep) + 1)
    cleaned = renumbered(pieces, numbers)
    fill_holes(cleaned)
    left = np.unique(cleaned)
    numbers = np.zeros(len(keep) + 1, np.int32)
    numbers[left[left > 0]] = np.arange(1, np.count_nonzero(left) + 1)
    return renumbered(cleaned, numbers)


def fill_holes(labels: LabelArray) -> None:
    """Fill, in place, the holes of each label with that label.

    A hole of a label is an area that it cuts off from the outside, through 4-neighbours. Other
    labels inside it are overwritten. At most one of two labels encloses the other, so the order
    of filling does not matter.

    Parameters
    ----------
    labels : (H, W) int32 ndarray
        0 is background; each label is one 4-connected region.
    """
    holed = np.flatnonzero(_holes(np.pad(labels, 1))[1:] > 0) + 1
    if len(holed) == 0:
        return
    import cv2  # a dry run plans without it

    for label, (y0, x0, y1, x1) in zip(holed, _boxes(labels)[holed].tolist(), strict=True):
        crop = labels[y0:y1, x0:x1]
        outside = np.pad(crop == label, 1).astype(np.uint8)
        cv2.floodFill(outside, None, (0, 0), 1, flags=4)
        crop[outside[1:-1, 1:-1] == 0] = label


@compiled
def _boxes(labels: LabelArray) -> npt.NDArray[np.int64]:
    """Return the bounding box of each label: first row and column, last row and column + 1."""
    height, width = labels.shape
    boxes = np.zeros((labels.max() + 1, 4), np.int64)
    boxes[:, 0], boxes[:, 1] = height, width
    for y in range(height):
        for x in range(width):
            label = labels[y, x]
            if label > 0:
                boxes[label, 0] = min(boxes[label, 0], y)
                boxes[label, 1] = min(boxes[label, 1], x)
                boxes[label, 2] = y + 1
                boxes[label, 3] = max(boxes[label, 3], x + 1)
    return boxes


@compiled
def _holes(framed: LabelArray) -> npt.NDArray[np.int64]:
    """Count the (4-connected) holes of each label of a map framed by zeros.

    Notes
    -----
    The number of holes is one minus the 8-connected Euler number, which follows from 2x2 windows
    (Gray, "Local Properties of Binary Images in Two Dimensions", IEEE Trans. Computers, 1971):
    ``(n1 - n3 - 2 n2) / 4``. Here n1 windows hold one pixel of the label, n3 windows hold three,
    and n2 windows hold two on a diagonal.
    """
    height, width = framed.shape
    total = np.zeros(framed.max() + 1, np.int64)
    for y in range(height - 1):
        above, row = framed[y], framed[y + 1]
        for x in range(width - 1):
            a, b, c, d = above[x], above[x + 1], row[x], row[x + 1]
            if a == b == c == d:
                continue
            for pixel, diagonal, p, q in ((a, d, b, c), (b, c, a, d), (c, b, a, d), (d, a, b, c)):
                same = int(pixel == diagonal) + int(pixel == p) + int(pixel == q)
                # The loop visits each pixel of a window: n1 windows once, n3 three times, n2
                # twice. So the weights 3, -1, -3 add up to 12 times the Euler number.
                if same == 0:
                    total[pixel] += 3
                elif same == 2:
                    total[pixel] -= 1
                elif same == 1 and pixel == diagonal:
                    total[pixel] -= 3
    return 1 - total // 12
