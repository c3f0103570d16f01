"""Choices and defaults of options, shared by the Python API and the command line.

This module imports nothing, so that ``qpnuclei --help`` stays fast.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

#: Backend that reads and writes a project.
Backend: TypeAlias = Literal["auto", "native", "paquo"]

#: Devices that the command line offers.
Device: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]

#: Number format of the network's convolutions.
Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]

#: Which network of the default model: by the slide's pixel size, or the coarse one for all.
Speed: TypeAlias = Literal["auto", "fast"]

#: What to do with nuclei that an earlier run wrote into the same annotations.
OnExisting: TypeAlias = Literal["replace", "append", "skip", "error"]

#: Least severe messages that the command line prints.
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

#: Meaning of a row of counts.
Grouping: TypeAlias = Literal["annotation", "class", "image"]

#: Meaning of a row of an export.
ExportedRow: TypeAlias = Literal["annotation", "class", "image", "nucleus"]

#: Kind of file for nuclei.
NucleusFormat: TypeAlias = Literal["csv", "tsv", "parquet", "h5ad", "zarr", "ome-tiff", "geojson"]

#: How ``evaluate`` finds the nuclei.
Method: TypeAlias = Literal["model", "hematoxylin"]

#: File layout of an annotated data set.
DatasetLayout: TypeAlias = Literal["auto", "folder", "monuseg", "tnbc", "consep"]

#: Kinds of objects that ``geojson export`` writes.
ExportedObjects: TypeAlias = Literal["annotations", "detections", "all"]

#: Class of the detections that a run writes, and that count as nuclei.
NUCLEUS_CLASS = "Nucleus"

#: QuPath's class for areas without analysis. QuPath ignores every class that ends in ``*``.
IGNORE_CLASS = "Ignore*"

#: Pattern of the classes whose annotations a run excludes by default: QuPath's own class for
#: ignored areas, and every class with the same beginning.
DEFAULT_EXCLUDED = (IGNORE_CLASS,)

#: Name of the measurement for the model's certainty about a nucleus, from 0 to 1.
CERTAINTY = "Attention: Mean"

#: Limits of a pixel size in µm/px: beyond them it has a wrong unit, or is a placeholder (72 dpi is
#: 353 µm/px).
MIN_MPP, MAX_MPP = 0.05, 2.5


class Range(NamedTuple):
    """The lowest and the highest value of an option (None: any), and their unit."""

    low: float
    high: float | None
    unit: str

    def allow(self, value: float) -> bool:
        """Tell whether a value is within the limits; NaN never is."""
        return self.low <= value and (self.high is None or value <= self.high)

    @property
    def text(self) -> str:
        """The limits as a message gives them."""
        if self.high is None:
            return f"{self.low:g} or more"
        return f"{self.low:g} to {self.high:g} {self.unit}".rstrip()


#: Ranges of ``--unit-minutes`` and ``--unit-gib``.
UNIT_MINUTES, UNIT_GIB = Range(0.01, 10_000.0, "minutes"), Range(0.1, 10_000.0, "GiB")

#: Ranges of ``--workers`` and ``--batch``.
WORKERS, BATCH = Range(1, None, "cores"), Range(1, None, "tiles")

#: Ranges of ``--tile`` and ``--max-nucleus``.
TILE_PX, MAX_NUCLEUS_UM = Range(128, 8192, "px"), Range(1, 200, "µm")

#: Ranges of ``--threshold`` and ``--min-area-um2``.
THRESHOLD, MIN_AREA_UM2 = Range(0.01, 0.99, "attention"), Range(0, 1000, "µm²")

#: Ranges of ``--cell-expansion`` and ``--simplify``.
CELL_EXPANSION_UM, SIMPLIFY_UM = Range(0, 50, "µm"), Range(0, 5, "µm")

#: Core of a tile in px of the working grid: large enough that the halo, which neighbours read and
#: predict again, adds little (a third); small enough that a run stays below 2 GB with the default
#: model, below 4 GB with one as large as that of the recipe `student`.
DEFAULT_TILE_PX = 1792

#: In µm. Few nuclei are larger; those are joined from several tiles.
DEFAULT_MAX_NUCLEUS_UM = 25.0

#: Largest shift of an outline by simplification, in µm: a quarter of a model pixel, which keeps one
#: vertex of three.
DEFAULT_SIMPLIFY_UM = 0.06
