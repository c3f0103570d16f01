"""The engine of our own models: attention and centre maps, split into instances.

Neighbouring tiles overlap. The maps of their common area are computed once
(`qpnuclei.tiling.plan.TilePlan.new_parts`), and strips of them are kept for later tiles. A separate
thread reads ahead, and several tiles are predicted and split at the same time. Threads are enough:
image decoders, networks and compiled loops release the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from qpnuclei.choices import CERTAINTY
from qpnuclei.models.geometry import NetworkGeometry
from qpnuclei.models.metadata import ModelMetadata, PostProcessing, model_hash, read_metadata
from qpnuclei.models.registry import resolve_model
from qpnuclei.segmentation.engine import (
    EngineOptions,
    EngineSpec,
    ReadPixels,
    ScoreMap,
    TileInstances,
)
from qpnuclei.segmentation.postprocess import interaction_radius_px, segment_instances
from qpnuclei.segmentation.quantised import ATTENTION_OF_LEVEL, QuantisedAttention, QuantisedCentre
from qpnuclei.segmentation.threads import networks_at_once, one_thread_per_network
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.reinhard import ReinhardStatistics
from qpnuclei.system.checked import as_json
from qpnuclei.system.threads import map_in_threads, prefetch
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.box import Box
from qpnuclei.tiling.plan import Tile, TilePlan

if TYPE_CHECKING:
    from qpnuclei.segmentation.predictor import Predictor

ATTENTION = CERTAINTY


class MapsEngine:
    """A model that predicts attention, with the post-processing given in its file.

    Parameters
    ----------
    predictor : Predictor
    options : EngineOptions
        Only `workers` and `batch_size` are used; the predictor already has the other options.
    sha256 : str
        Hash of the model file; empty for a network that was not loaded from a file.
    """

    def __init__(
        self, predictor: Predictor, options: EngineOptions | None = None, sha256: str = ""
    ) -> None:
        self.predictor = predictor
        self._options = options or EngineOptions()
        geometry = NetworkGeometry(predictor.receptive_radius_px, predictor.stride)
        self._spec = _spec(predictor.metadata, geometry, sha256)

    @property
    def spec(self) -> EngineSpec:
        """What a run must know about the engine."""
        return self._spec

    @property
    def execution(self) -> str:
        """Where and how the engine runs, for example ``"cpu, float32, 8 views"``."""
        parts = [self.predictor.device, self.predictor.precision]
        if self.predictor.views > 1:
            parts.append(f"{self.predictor.views} views")
        return ", ".join(parts)

    def with_post_processing(self, parameters: PostProcessing) -> MapsEngine:
        """Return an engine with the same network and another post-processing."""
        predictor = self.predictor.with_post_processing(parameters)
        return MapsEngine(predictor, self._options, self._spec.sha256)

    def segment(
        self,
        read: ReadPixels,
        tiles: TilePlan,
        colour: ReinhardStatistics | None,
        clock: Stopwatch,
    ) -> Generator[TileInstances, None, None]:
        """Yield the instances of every tile; see `qpnuclei.segmentation.engine.Engine.segment`."""
        parameters = self.predictor.metadata.post_processing

        def split(seen: tuple[Tile, _View]) -> TileInstances:
            tile, view = seen
            with clock("segment"), tiles.errors_naming(tile):
                labels = segment_instances(view.attention, parameters, view.centre)
            scores = {ATTENTION: ScoreMap(view.attention, ATTENTION_OF_LEVEL)}
            return TileInstances(tile, view.rgb, labels, scores)

        batch_size = self._tiles_at_once()
        parts = prefetch(_read(read, tiles, self._spec.margin_px, clock), 2 * batch_size)
        with one_thread_per_network(), closing(parts) as parts_read:
            views = self._predict(parts_read, tiles, colour, batch_size, clock)
            with closing(views) as predicted:
                split_tiles = map_in_threads(
                    split, _assemble(tiles, predicted, clock), self._options.workers
                )
                with closing(split_tiles) as instances:
                    yield from instances

    def _tiles_at_once(self) -> int:
        """Return the batch size.

        It is 1 on a CPU: larger batches are no faster, and would make a result depend on the other
        tiles in its batch.
        """
        if self.predictor.device == "cpu":
            return 1
        if self._options.batch_size is not None:
            return self._options.batch_size
        return self.predictor.tiles_at_once

    def _predict(
        self,
        parts_read: Iterable[_Part],
        tiles: TilePlan,
        colour: ReinhardStatistics | None,
        batch_size: int,
        clock: Stopwatch,
    ) -> Generator[_View, None, None]:
        """Run the network on batches of parts."""
        margin = self._spec.margin_px

        def batches() -> Iterator[list[_Part]]:
            parts = iter(parts_read)
            while True:
                with clock.waiting("predict"):
                    batch = list(islice(parts, batch_size))
                if not batch:
                    return
                yield batch

        def predict(batch: list[_Part]) -> list[_View]:
            with clock("predict"), tiles.errors_naming(batch[0].tile):
                rgb = _stacked([part.rgb for part in batch])
                attention, centre = self.predictor.predict_quantised(rgb, colour)
            return [
                _View(
                    part.box.grown(margin),
                    part.rgb,
                    attention[i],
                    None if centre is None else centre[i],
                ).cut(part.box)
                for i, part in enumerate(batch)
            ]

        at_once = networks_at_once(self._options.workers)
        with closing(map_in_threads(predict, batches(), at_once)) as predicted:
            for views in predicted:
                yield from views


class MapsEngineFactory:
    """Finds and loads our own models: those in the package, and ``.safetensors`` files."""

    def spec(self, model: str) -> EngineSpec:
        """Return the spec of a model; see `qpnuclei.segmentation.engine.EngineFactory.spec`."""
        path = resolve_model(model)
        metadata = read_metadata(path)
        return _spec(metadata, metadata.network_geometry(), model_hash(path))

    def load(self, model: str, options: EngineOptions) -> MapsEngine:
        """Load a model; see `qpnuclei.segmentation.engine.EngineFactory.load`."""
        from qpnuclei.segmentation.predictor import Predictor

        # Several tiles are predicted at the same time, each in a thread.
        predictor = Predictor.load(
            model, options.device, options.views, options.precision, threads=1
        )
        if options.threshold is not None:
            own = predictor.metadata.post_processing
            predictor = predictor.with_post_processing(replace(own, threshold=options.threshold))
        return MapsEngine(predictor, options, model_hash(resolve_model(model)))


def _spec(metadata: ModelMetadata, geometry: NetworkGeometry, sha256: str) -> EngineSpec:
    return EngineSpec(
        name=metadata.name,
        sha256=sha256,
        mpp=metadata.mpp,
        context_px=geometry.receptive_radius_px,
        stride=geometry.stride,
        interaction_px=interaction_radius_px(metadata.post_processing),
        columns=(ATTENTION,),
        needs_colour=metadata.colour.method != "none",
        details={
            "family": metadata.family,
            "labels": metadata.data.get("labels"),
            "post_processing": as_json(metadata.post_processing),
        },
    )


@dataclass(frozen=True, eq=False)
class _Part:
    """The new part of a tile (`TilePlan.new_parts`), and its pixels with their margin."""

    tile: Tile
    box: Box
    rgb: RGB


@dataclass(frozen=True, eq=False)
class _View:
    """Pixels and maps of one box of the working grid."""

    box: Box
    rgb: RGB
    attention: QuantisedAttention
    centre: QuantisedCentre | None

    def cut(self, box: Box) -> _View:
        """Return the pixels and maps of a box inside this one."""
        inner = box.within(self.box)
        centre = None if self.centre is None else self.centre[inner]
        return _View(box, self.rgb[inner], self.attention[inner], centre)

    def copy(self) -> _View:
        """Return a copy, which does not keep the original larger arrays in memory."""
        centre = None if self.centre is None else self.centre.copy()
        return _View(self.box, self.rgb.copy(), self.attention.copy(), centre)


def _read(read: ReadPixels, tiles: TilePlan, margin: int, clock: Stopwatch) -> Iterator[_Part]:
    """Yield the new part of each tile that has one."""
    for tile, box in zip(tiles, tiles.new_parts(), strict=True):
        if box is not None:
            with clock("read"), tiles.errors_naming(tile):
                rgb = read(box.grown(margin))
            yield _Part(tile, box, rgb)


def _assemble(
    tiles: TilePlan, predicted: Iterator[_View], clock: Stopwatch
) -> Iterator[tuple[Tile, _View]]:
    """Assemble the view of each tile from its new part and those of earlier tiles.

    Only those strips of each new part are kept that later tiles will need.
    """
    kept: dict[int, _View] = {}
    for tile, part in zip(tiles, tiles.new_parts(), strict=True):
        if part is not None:
            with clock.waiting("segment"):
                kept[tile.index] = next(predicted)
        pieces = [kept[n.index] for n in (*tiles.neighbours(tile), tile) if n.index in kept]
        yield tile, _composed(tile.view, pieces)
        for index in [tile.index, *(n.index for n in tiles.neighbours(tile))]:
            if index not in kept:
                continue
            box = kept[index].box
            later = [n.view for n in tiles.neighbours(tiles[index]) if n.index > tile.index]
            wanted = [common for view in later if (common := view.intersection(box))]
            if not wanted:
                del kept[index]
            elif 2 * (hull := Box.around(wanted)).area < box.area:
                kept[index] = kept[index].cut(hull).copy()


def _composed(box: Box, pieces: list[_View]) -> _View:
    """Return the pixels and maps of a box that several views cover together."""
    rgb = np.empty((box.height, box.width, 3), np.uint8)
    attention = np.empty((box.height, box.width), np.uint8)
    centre = None if pieces[0].centre is None else np.empty(attention.shape, np.uint16)
    for piece in pieces:
        common = box.intersection(piece.box)
        if common is None:
            continue
        at, seen = common.within(box), piece.cut(common)
        rgb[at], attention[at] = seen.rgb, seen.attention
        if centre is not None and seen.centre is not None:
            centre[at] = seen.centre
    return _View(box, rgb, attention, centre)


def _stacked(tiles: list[RGB]) -> RGB:
    """Stack tiles of different sizes, padded with white on the right and below.

    The padding lies outside the margin, so it changes no result that is used.
    """
    if len(tiles) == 1:
        return tiles[0][None]
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    stack = np.full((len(tiles), height, width, 3), 255, np.uint8)
    for row, tile in zip(stack, tiles, strict=True):
        row[: tile.shape[0], : tile.shape[1]] = tile
    return stack
