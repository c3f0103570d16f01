"""Count nuclei found in keratin, ink and blur, with and without ``run --qc``.

``python -m benchmarks.artefacts SLIDES`` prints the table of docs/artefacts.md. The folder `SLIDES`
has ``CMU-1-Small-Region.svs`` (OpenSlide) and ``instanseg_HE_example_tma_0.5mpp.tif`` (InstanSeg).
The areas were drawn by eye on these slides before any nucleus was counted in them. They do not
depend on the results of ``qc``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import numpy as np
import shapely

import qpnuclei
from benchmarks.measuring import table
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Edit, ImageObjects, NewAnnotation, PathClass

SKIN, CORE = "CMU-1-Small-Region.svs", "instanseg_HE_example_tma_0.5mpp.tif"


def _polygon(text: str, origin: tuple[float, float] = (0, 0), zoom: float = 1) -> shapely.Polygon:
    """Return a polygon in level-0 px, from points read off a picture of a part of the slide."""
    points = np.array([pair.split(",") for pair in text.split()], float)
    return shapely.Polygon(points / zoom + origin)


#: Nothing in the keratin and almost nothing in the ink is a nucleus. The blur contains nuclei, but
#: they cannot be told apart.
AREAS = {
    (SKIN, "keratin"): _polygon(
        "290,130 400,75 465,80 465,230 440,440 500,530 600,465 645,520 640,550 560,590 440,660 "
        "340,760 270,880 190,985 150,960 70,880 35,790 75,660 100,520 140,400 190,290 230,210",
        (1150, 850),
    ),
    (SKIN, "ink"): shapely.union(
        _polygon(
            "480,210 570,190 640,300 740,380 840,460 820,540 760,530 690,500 640,440 560,400 "
            "510,330",
            (1150, 850),
        ),
        _polygon(
            "265,110 420,60 530,60 530,190 470,240 480,520 545,560 545,640 490,720 455,830 "
            "430,800 450,600 425,360 420,270 350,270 290,230 255,200",
            (1500, 1800),
            1.4,
        ),
    ),
    (CORE, "out of focus"): _polygon(
        "130,215 190,130 260,150 400,270 330,340 230,430 150,450 100,400", (880, 80), 2
    ),
}


def annotated(folder: Path, slides: Path) -> qpnuclei.Project:
    """Make a project of the slides, each annotated as a whole."""
    project = create_from_slides(folder, [slides / SKIN, slides / CORE])
    for entry in project.images:
        width, height = entry.server.width, entry.server.height
        box = NewAnnotation(shapely.box(0, 0, width, height), uuid4(), path_class=PathClass("Box"))
        entry.write(Edit(annotations=[box]), entry.read().fingerprint)
    return project


def counted(objects: ImageObjects, area: shapely.Geometry) -> tuple[int, int]:
    """Return the numbers of nuclei of an image inside and outside the area."""
    inside = shapely.contains_xy(area, *objects.detections.centroids.T)
    return int(inside.sum()), int((~inside).sum())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("slides", type=Path)
    slides = parser.parse_args(arguments).slides
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        project = annotated(Path(folder), slides)
        for qc in (False, True):
            qpnuclei.run(project, RunOptions(Selection(classes=("Box",)), qc=qc))
            for entry in project.images:
                found[entry.name, qc] = entry.read()
        rows = []
        entries = {entry.name: entry for entry in project.images}
        for (slide, name), area in AREAS.items():
            mpp = entries[slide].calibration.mpp
            assert mpp is not None
            mm2 = area.area * mpp**2 * 1e-6
            excluded = shapely.union_all(
                [a.area for a in found[slide, True].annotations if a.class_name == "Ignore*"]
            )
            numbers = [counted(found[slide, qc], area)[0] for qc in (False, True)]
            rows.append(
                {
                    "slide": slide,
                    "area": name,
                    "mm²": f"{mm2:.3f}",
                    "of it marked": f"{shapely.intersection(area, excluded).area / area.area:.0%}",
                    "nuclei per mm²": f"{numbers[0] / mm2:.0f}",
                    "with --qc": f"{numbers[1] / mm2:.0f}",
                }
            )
        for slide in (SKIN, CORE):
            drawn = shapely.union_all([a for (own, _), a in AREAS.items() if own == slide])
            outside = [counted(found[slide, qc], drawn)[1] for qc in (False, True)]
            print(f"{slide}: nuclei elsewhere {outside[0]}, with --qc {outside[1]}")
    print(table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
