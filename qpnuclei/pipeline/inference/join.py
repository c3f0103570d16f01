"""Join the units of an image: seams, comparison with the stain, cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from qpnuclei.errors import FormatError
from qpnuclei.nuclei.store import temporary_shards
from qpnuclei.pipeline.folder import RunFolder
from qpnuclei.pipeline.inference.cells import add_cells, set_aside
from qpnuclei.pipeline.inference.infer import TileNuclei, join_tiles
from qpnuclei.pipeline.inference.plausibility import check_plausibility
from qpnuclei.pipeline.inference.shards import About, read_unit, write_image
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.layout import Layout, WorkUnit
from qpnuclei.pipeline.planning.plan_file import PlannedImage
from qpnuclei.segmentation.engine import Engine
from qpnuclei.slides.hdab_as_he import seen_by_network
from qpnuclei.system.interrupts import interrupt_postponed
from qpnuclei.system.timing import Stopwatch


class DamagedUnitError(FormatError):
    """The shard of a unit is missing, damaged, or belongs to something else."""

    def __init__(self, unit: WorkUnit, error: FormatError) -> None:
        super().__init__(error.what, error.hint)
        self.unit = unit


def join_image(
    folder: RunFolder,
    image: PlannedImage,
    layout: Layout,
    engine: Callable[[], Engine],
    options: RunOptions,
    slides_from: Path | None = None,
) -> None:
    """Join the units of an image, and write all of its nuclei into the folder.

    Parameters
    ----------
    engine : callable
        Returns the engine; called only if no tile shows the whole of some nucleus.

    Raises
    ------
    DamagedUnitError
        If the shard of a unit cannot be used.
    QpnucleiError
        If the slide cannot be read, or the result cannot be written.
    """
    clock = Stopwatch()
    seconds, waited = Counter[str](), Counter[str]()
    devices: list[str] = []

    def tiles() -> Iterator[TileNuclei]:
        for unit in layout.units:
            try:
                found, about = read_unit(
                    folder.shard(image, unit.name), unit.key, layout.tiles, unit.tiles
                )
            except FormatError as error:
                raise DamagedUnitError(unit, error) from error
            seconds.update(about.seconds or {})
            waited.update(about.waited or {})
            devices.append(about.device)
            yield from found

    path = folder.make_for(folder.shard(image, layout.name))
    with image.slide.open(slides_from) as slide, temporary_shards(folder.path) as kept:
        stitching = join_tiles(
            tiles(),
            slide,
            layout.tiles,
            engine,
            image.scale,
            image.stains,
            kept,
            simplify_um=options.simplify_um,
            min_area_um2=options.min_area_um2,
            clock=clock,
        )
        with clock("check"):
            seen = seen_by_network(slide, image.stains)
            areas = image.areas()
            doubts = check_plausibility(seen, areas, image.mpp, kept, options.threshold)
        if options.cell_expansion_um > 0:
            with clock("cells"), temporary_shards(folder.path) as around:
                set_aside(kept, areas, around)
                distance = options.cell_expansion_um
                add_cells(kept, around, slide, image.mpp, image.stains, distance)
        seconds.update(clock.seconds)
        about = About(
            layout.key,
            " and ".join(dict.fromkeys(devices)),
            dict(seconds),
            dict(waited),
            {
                "joined": stitching.joined,
                "covered": stitching.covered,
                "overlapping": stitching.overlapping,
            },
            doubts.lines,
        )
        with interrupt_postponed():
            write_image(path, kept, about)
