"""What options may be, and what they are by default, for Python and the command line alike.

It imports nothing, so that ``qpnuclei --help`` need not wait for libraries.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

#: Who reads and writes a project.
Backend: TypeAlias = Literal["auto", "native", "paquo"]

#: Where a network runs, as the command line offers it.
Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]

#: What the convolutions of a network compute in.
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]

#: What to do with nuclei that an earlier run wrote into the same annotations.
OnExisting: TypeAlias = Literal["replace", "append", "skip", "error"]

#: What a row of counts stands for.
Grouping: TypeAlias = Literal["annotation", "class", "image"]

#: Class of the detections that a run writes, and that count as nuclei.
NUCLEUS_CLASS = "Nucleus"

#: Core of a tile in px of the working grid: large enough that its surroundings, which are read and
#: predicted again for its neighbours, weigh little (a third); small enough that a run stays below
#: 2 GB with the light model, below 4 GB with the default one.
DEFAULT_TILE_PX = 1792

#: In µm. Few nuclei are larger; one that is comes out whole all the same, joined from several
#: tiles.
DEFAULT_MAX_NUCLEUS_UM = 25.0

#: In µm, how far an outline may be moved where it is made simpler: a quarter of a pixel of the
#: models, which leaves one vertex of three.
DEFAULT_SIMPLIFY_UM = 0.06
