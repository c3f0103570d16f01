"""The watershed from the maxima of a landscape, within connected components.

Of two pixels of equal height, the upper one counts as higher; in the same row, the left one. So no
two pixels have the same rank, and the basins of a component do not depend on other components.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qpnuclei.slides.masks import disk
from qpnuclei.system.compiled import compiled

LandscapeArray = npt.NDArray[np.int32]
LabelArray = npt.NDArray[np.int32]
IndexArray = npt.NDArray[np.int64]


def find_peaks(landscape: LandscapeArray, components: LabelArray, radius: int) -> IndexArray:
    """Find the pixels that are maxima within a disk, among the pixels of their own component.

    Parameters
    ----------
    landscape : (H, W) int32 ndarray
    components : (H, W) int32 ndarray
        Number of the component of each pixel; 0 is background.
    radius : int
        Radius of the disk, in px.

    Returns
    -------
    (N,) int64 ndarray
        Row-major indices in rising order. Only the first of adjacent (8-connected) maxima is kept.
    """
    y, x = np.nonzero(disk(radius)) - np.array(radius)
    # Compare with the nearest pixels first: they rule out most candidates.
    near_first = np.argsort(np.hypot(y, x), kind="stable")[1:]
    maxima = _maxima(landscape, components, y[near_first], x[near_first])
    return _first_of_plateaus(maxima, components)


@compiled
def _maxima(
    landscape: LandscapeArray, components: LabelArray, dy: IndexArray, dx: IndexArray
) -> IndexArray:
    """Find pixels that are not lower than any pixel of their component at one of the offsets."""
    height, width = landscape.shape
    found = []
    for y in range(height):
        for x in range(width):
            own = components[y, x]
            if own == 0:
                continue
            is_maximum = True
            for i in range(len(dy)):
                v, u = y + dy[i], x + dx[i]
                if (
                    0 <= v < height
                    and 0 <= u < width
                    and landscape[v, u] > landscape[y, x]
                    and components[v, u] == own
                ):
                    is_maximum = False
                    break
            if is_maximum:
                found.append(y * width + x)
    return np.array(found, np.int64)


@compiled
def _first_of_plateaus(maxima: IndexArray, components: LabelArray) -> IndexArray:
    """Keep the first of 8-connected maxima of one component. The maxima are in rising order."""
    width = components.shape[1]
    component = components.ravel()
    first = np.arange(len(maxima))
    for i in range(len(maxima)):
        x = maxima[i] % width
        for dx, step in ((1, 1), (-1, width - 1), (0, width), (1, width + 1)):
            beside = maxima[i] + step
            j = np.searchsorted(maxima, beside)
            if (
                0 <= x + dx < width
                and j < len(maxima)
                and maxima[j] == beside
                and component[beside] == component[maxima[i]]
            ):
                a, b = _root(first, i), _root(first, j)
                first[max(a, b)] = min(a, b)
    kept: IndexArray = maxima[first == np.arange(len(maxima))]
    return kept


def watershed(
    components: LabelArray,
    landscape: LandscapeArray,
    peaks: IndexArray,
    least_prominence: float = 0.0,
) -> LabelArray:
    """Divide components among the peaks, by the watershed of Meyer through 4-neighbours.

    Parameters
    ----------
    components : (H, W) int32 ndarray
        4-connected; 0 is background.
    landscape : (H, W) int32 ndarray
        Heights, not negative.
    peaks : (N,) int64 ndarray
        Row-major indices in rising order; at least one in every component.
    least_prominence : float
        A peak is shallow if it rises less than this above the highest saddle to a higher peak. Its
        basin is merged with the basin beyond that saddle.

    Returns
    -------
    (H, W) int32 ndarray
        Basins, numbered without gaps in the order of their peaks; 0 is background.

    Notes
    -----
    Pixels are taken from a priority queue, the highest first. A pixel joins the basin of the first
    of its neighbours that is taken (F. Meyer, "Color image segmentation", IEE Int. Conf. on Image
    Processing and its Applications, 1992).
    """
    by_component = np.argsort(components.ravel()[peaks], kind="stable")
    labels, crossings = _flood(components, landscape, peaks, by_component)
    if least_prominence > 0:
        # The highest saddle first. A saddle is the lower of two touching pixels of two basins.
        crossings = crossings[np.lexsort(crossings.T)]
        numbers = _merge_shallow_basins(
            labels.ravel(), landscape.ravel(), peaks, crossings, least_prominence
        )
        labels = renumbered(labels, numbers)
    return labels


@compiled
def _flood(
    components: LabelArray, landscape: LandscapeArray, peaks: IndexArray, by_component: IndexArray
) -> tuple[LabelArray, IndexArray]:
    """Return the basins, and the pairs of pixels where two basins touch.

    Parameters
    ----------
    by_component : (N,) int64 ndarray
        Order of the peaks in which those of one component follow each other.

    Returns
    -------
    labels : (H, W) int32 ndarray
        The basin of ``peaks[i]`` is ``i + 1``.
    crossings : (M, 2) int64 ndarray
        Ranks of the higher and of the lower pixel.
    """
    height, width = components.shape
    component, height_of = components.ravel(), landscape.ravel()
    area = np.zeros(components.max() + 1, np.int64)
    for pixel in range(len(component)):
        area[component[pixel]] += 1
    peaks_of = np.zeros(len(area), np.int64)
    only_basin = np.zeros(len(area), np.int32)
    for i in range(len(peaks)):
        peaks_of[component[peaks[i]]] += 1
        only_basin[component[peaks[i]]] = i + 1
    largest = 0
    for number in range(1, len(area)):
        if peaks_of[number] > 1:
            only_basin[number] = 0
            largest = max(largest, area[number])
    labels = only_basin[component]
    queue, queued = np.empty(largest, np.int64), 0
    crossings = []
    for i in range(len(by_component)):
        own = component[peaks[by_component[i]]]
        if peaks_of[own] == 1:
            continue
        peak = peaks[by_component[i]]
        labels[peak] = by_component[i] + 1
        _heap_push(queue, queued, _rank(height_of[peak], peak))
        queued += 1
        if i + 1 < len(by_component) and component[peaks[by_component[i + 1]]] == own:
            continue
        # The queue now holds all peaks of one component only: short queues are faster.
        while queued > 0:
            rank = queue[0]
            pixel = _pixel_of_rank(rank)
            x = pixel % width
            taken = False
            for side in range(4):
                if side == 0:
                    neighbour, exists = pixel - width, pixel >= width
                elif side == 1:
                    neighbour, exists = pixel - 1, x > 0
                elif side == 2:
                    neighbour, exists = pixel + 1, x < width - 1
                else:
                    neighbour, exists = pixel + width, pixel < len(labels) - width
                if not exists or component[neighbour] != own:
                    continue
                other = _rank(height_of[neighbour], neighbour)
                if labels[neighbour] == 0:
                    labels[neighbour] = labels[pixel]
                    if taken:
                        _heap_push(queue, queued, other)
                        queued += 1
                    else:
                        # Replacing is faster than removing and adding: the new pixel often belongs
                        # near the one that it replaces.
                        _heap_replace_least(queue, queued, other)
                        taken = True
                elif labels[neighbour] != labels[pixel] and other < rank:
                    crossings.append((other, rank))
            if not taken:
                queued -= 1
                _heap_replace_least(queue, queued, queue[queued])
    pairs = np.empty((len(crossings), 2), np.int64)
    for i in range(len(crossings)):
        pairs[i, 0], pairs[i, 1] = crossings[i]
    return labels.reshape(height, width), pairs


@compiled
def _merge_shallow_basins(
    label_of: LabelArray,
    height_of: LandscapeArray,
    peaks: IndexArray,
    crossings: IndexArray,
    least: float,
) -> LabelArray:
    """Return the number of the basin that each basin is merged into; 0 for the background.

    Only the highest crossing between two basins matters: a peak that is prominent there is more
    prominent at lower crossings.
    """
    taken_by = np.arange(len(peaks))
    for i in range(len(crossings)):
        high, low = _pixel_of_rank(crossings[i, 0]), _pixel_of_rank(crossings[i, 1])
        a, b = _root(taken_by, label_of[high] - 1), _root(taken_by, label_of[low] - 1)
        if _rank(height_of[peaks[a]], peaks[a]) < _rank(height_of[peaks[b]], peaks[b]):
            a, b = b, a
        if a != b and height_of[peaks[a]] - height_of[low] < least:
            taken_by[a] = b
    numbers = np.zeros(len(peaks) + 1, np.int32)
    count = 0
    for i in range(len(peaks)):
        if taken_by[i] == i:
            count += 1
            numbers[i + 1] = count
    for i in range(len(peaks)):
        numbers[i + 1] = numbers[_root(taken_by, i) + 1]
    return numbers


@compiled
def renumbered(labels: LabelArray, numbers: LabelArray) -> LabelArray:
    """Return ``numbers[labels]``."""
    height, width = labels.shape
    result = np.empty((height, width), np.int32)
    for y in range(height):
        for x in range(width):
            result[y, x] = numbers[labels[y, x]]
    return result


@compiled
def _heap_push(heap: IndexArray, size: int, value: int) -> None:
    """Add a value to a binary heap of `size` values, the least first."""
    at = size
    while at > 0 and heap[(at - 1) >> 1] > value:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = value


@compiled
def _heap_replace_least(heap: IndexArray, size: int, value: int) -> None:
    """Replace the least value of a binary heap of `size` values."""
    at, child = 0, 1
    while child + 1 < size:
        child += heap[child + 1] < heap[child]
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at, child = child, 2 * child + 1
    if child + 1 == size and heap[child] < value:
        heap[at] = heap[child]
        at = child
    heap[at] = value


@compiled
def _rank(height: int, pixel: int) -> int:
    """Return a number that is lower for higher pixels, and for the earlier of equal ones."""
    return ((0x7FFFFFFF - height) << 32) | pixel


@compiled
def _pixel_of_rank(rank: int) -> int:
    """Return the pixel of a rank."""
    return rank & 0xFFFFFFFF


@compiled
def _root(parents: IndexArray, node: int) -> int:
    """Follow the parents to the root, which is its own parent."""
    while parents[node] != node:
        node = parents[node]
    return node
