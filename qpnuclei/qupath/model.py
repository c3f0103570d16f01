"""The interface of a QuPath project (a small Protocol) and its data classes.

Two backends implement it: `qpnuclei.qupath.native` (neither QuPath nor a JVM) and
`qpnuclei.qupath.paquo.backend` (uses an installed QuPath). Coordinates are level-0 pixels in
QuPath's frame (cropped to the OpenSlide bounds unless the server says otherwise).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import UsageError
from qpnuclei.nuclei.ids import NucleusIds, is_ours
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.areas import valid_area
from qpnuclei.slides.calibration import Mpp, PixelCalibration
from qpnuclei.slides.stains import Stains

if TYPE_CHECKING:
    from qpnuclei.nuclei.exports.rows import NucleusRows


@dataclass(frozen=True)
class ImageServer:
    """The image server of an entry, as stored in the project's JSON.

    Parameters
    ----------
    builder_types : tuple of str
        ``builderType`` from the outermost wrapper to the innermost, without those that leave level
        0 unchanged. ``("uri",)`` alone means the image as it is on disk.
    provider : str
        Java class of the innermost builder, for example
        ``"qupath.lib.images.servers.openslide.OpenslideServerBuilder"``; empty if it has none.
    uris : tuple of str
        URIs of the image files, as stored.
    args : tuple of str
        Server arguments, for example ``("--series", "0")`` or ``("--no-crop",)``.
    width, height : int or None
        Level-0 size in px; None if the project does not state it.
    size_z, size_t : int
        Number of z-slices and time points.
    mpp : (float, float) or None
        µm per level-0 px in x and y; None if the project does not state it, so that QuPath shows
        that of the image file.
    """

    builder_types: tuple[str, ...]
    provider: str
    uris: tuple[str, ...]
    args: tuple[str, ...] = ()
    width: int | None = None
    height: int | None = None
    size_z: int = 1
    size_t: int = 1
    mpp: Mpp | None = None


def packed_rgb(red: int, green: int, blue: int) -> int:
    """Return an opaque colour as QuPath stores it: packed ARGB (int32).

    Examples
    --------
    >>> packed_rgb(255, 255, 255), packed_rgb(0, 0, 0)
    (-1, -16777216)
    """
    return (0xFF << 24 | red << 16 | green << 8 | blue) - (1 << 32)


@dataclass(frozen=True)
class PathClass:
    """A QuPath class, for example ``"Tumor: Positive"``; `color` is packed ARGB (int32)."""

    name: str
    color: int | None = None


@dataclass(frozen=True)
class Annotation:
    """One annotation of an image.

    Parameters
    ----------
    handle : int
        Identifies the annotation within this read of the image, whatever the QuPath version.
    id : uuid.UUID or None
        None in files last saved by QuPath 0.2 or 0.3, which have no UUIDs.
    roi_type : str
        QuPath's ROI class without package: ``"PolygonROI"``, ``"RectangleROI"``,
        ``"EllipseROI"``, ``"GeometryROI"``, ``"LineROI"``, ``"PolylineROI"``, ``"PointsROI"``.
    geometry : shapely geometry
        In level-0 px; an ellipse is a polygon of the vertices that QuPath itself would use. As
        stored: it may be invalid (self-intersecting).
    color : int or None
        The annotation's own colour, packed ARGB (int32); None to use that of its class.
    parent : int or None
        Handle of the enclosing annotation in the hierarchy; None directly under the image.
    metadata : mapping of str to str
        Without the UUID; includes QuPath's description.
    measurements : mapping of str to float
    """

    handle: int
    id: uuid.UUID | None
    name: str | None
    class_name: str | None
    roi_type: str
    geometry: shapely.Geometry
    locked: bool = False
    color: int | None = None
    parent: int | None = None
    z: int = 0
    t: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_bare(self) -> bool:
        """Whether it has neither a colour of its own nor metadata nor measurements."""
        return self.color is None and not self.metadata and not self.measurements

    @cached_property
    def area(self) -> shapely.Geometry:
        """The area of the ROI: a valid Polygon or MultiPolygon, empty if it has no area."""
        if self.roi_type not in ("PolygonROI", "RectangleROI", "EllipseROI", "GeometryROI"):
            return shapely.MultiPolygon()
        return valid_area(self.geometry)

    @property
    def is_area(self) -> bool:
        """Whether the ROI has an area; lines, points and single clicks do not."""
        return not self.area.is_empty

    @property
    def kind(self) -> str:
        """Type of the object, for tables."""
        return "annotation"

    @property
    def label(self) -> str:
        """Name for messages: name or class, and the start of the UUID.

        The UUIDs that qpnuclei makes have the same start: of these it is the end.
        """
        text = self.name or self.class_name or "unclassified"
        if self.id is None:
            return f"{text} (#{self.handle})"
        return f"{text} ({str(self.id)[-8:] if is_ours(self.id) else str(self.id)[:8]})"


@dataclass(frozen=True)
class TmaCore(Annotation):
    """One core of the TMA grid of an image; its nuclei are counted like those of an annotation.

    The handle has no meaning, because detections are never written under a core.

    Parameters
    ----------
    missing : bool
        Whether QuPath shows it as missing.
    """

    missing: bool = False

    @property
    def kind(self) -> str:
        """Type of the object, for tables."""
        return "missing TMA core" if self.missing else "TMA core"


@dataclass(frozen=True, eq=False)
class Detections:
    """All N detections of an image (nuclei, cells, tiles), from any program, as columns.

    A backend may read a column lazily, so that access can raise a FormatError.

    Parameters
    ----------
    ids : (N,) list of uuid.UUID or None
    kinds : (N,) list of str
        ``"detection"``, ``"cell"`` or ``"tile"``.
    class_names : (N,) list of str or None
    geometries : (N,) object ndarray of shapely geometries, level-0 px
    centroids : (N, 2) float64 ndarray
        x and y as QuPath computes them for the ROI, level-0 px.
    planes : (N, 2) int64 ndarray
        z-slice and time point.
    parents : (N,) int64 ndarray
        Handle of the nearest enclosing annotation in the hierarchy, -1 for none.
    measurements : mapping of str to (N,) float64 ndarray
        NaN where a detection lacks the measurement.
    """

    ids: Sequence[uuid.UUID | None]
    kinds: Sequence[str]
    class_names: Sequence[str | None]
    geometries: npt.NDArray[Any]
    centroids: npt.NDArray[np.float64]
    planes: npt.NDArray[np.int64]
    parents: npt.NDArray[np.int64]
    measurements: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def nucleus_geometries(self) -> npt.NDArray[Any]:
        """(N,) Outline of the nucleus of each cell; the detection's own outline if it has none."""
        return self.geometries

    @cached_property
    def locked(self) -> npt.NDArray[np.bool_]:
        """(N,) Whether each is locked in QuPath; a user locks a detection to accept it."""
        return np.zeros(len(self), bool)

    @cached_property
    def ours(self) -> npt.NDArray[np.bool_]:
        """(N,) Whether qpnuclei wrote each, whatever its class is now."""
        return np.array([is_ours(own_id) for own_id in self.ids], bool)

    def unread(self) -> Mapping[str, int]:
        """Return properties that no column contains, and how many detections have them."""
        return {}


#: Fingerprint of an image without a data file.
ABSENT = "absent"


@dataclass(frozen=True)
class ImageObjects:
    """The objects of an image as read from disk.

    Parameters
    ----------
    annotations : tuple of Annotation
    detections : Detections
    fingerprint : str
        Digest of the file's content, or `ABSENT` if there is none: `ImageEntry.write` refuses to
        write if the content has changed since. A copy has the same, and so has every backend.
    properties : mapping of str to str
        Text properties of the image, which QuPath keeps when it saves.
    cores : tuple of TmaCore
        The TMA grid, row by row.
    """

    annotations: tuple[Annotation, ...]
    detections: Detections
    fingerprint: str
    properties: Mapping[str, str] = field(default_factory=dict)
    cores: tuple[TmaCore, ...] = ()


@dataclass(frozen=True, eq=False)
class DetectionGroup:
    """New detections of one class to write under one parent.

    Parameters
    ----------
    parent : int or None
        Handle of an annotation; None for directly under the image. Handles count the annotations
        that remain after the edit's removals; the edit's new annotations follow them in order.
    nuclei : NucleiTable
        N polygons with their measurements. If it has cells, QuPath's cells are written.
    ids : (N,) sequence of uuid.UUID
    path_class : PathClass or None
        None leaves them unclassified.
    plane : (int, int) or None
        z-slice and time point; None to use those of the parent.
    """

    parent: int | None
    nuclei: NucleiTable
    ids: Sequence[uuid.UUID]
    path_class: PathClass | None
    plane: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """``"cell"`` or ``"detection"``."""
        return "detection" if self.nuclei.cells is None else "cell"

    @cached_property
    def id_texts(self) -> list[str]:
        """The UUIDs as text."""
        if isinstance(self.ids, NucleusIds):
            return self.ids.texts()
        return [str(own_id) for own_id in self.ids]


@dataclass(frozen=True, eq=False)
class NewAnnotation:
    """An annotation to add directly under the image."""

    geometry: shapely.Geometry
    id: uuid.UUID
    name: str | None = None
    path_class: PathClass | None = None
    locked: bool = False
    z: int = 0
    t: int = 0
    color: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    measurements: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of one image's objects, applied completely or not at all.

    Parameters
    ----------
    remove : frozenset of int
        Rows of the detections to remove, as in `ImageObjects.detections`; the UUID of each must
        satisfy `is_ours`. Their children move up to their parent. A UUID alone does not identify
        an object, because copies may have the same.
    remove_annotations : frozenset of int
        Handles of the annotations to remove, in the same way.
    add : sequence of DetectionGroup
        May be lazy: each access may produce a new group, for example read it from disk, but it
        must be equal each time. Writers access each group more than once, those of one parent in
        order, and keep one group at a time. So only one of many groups of 20,000 nuclei is in
        memory.
    annotations : sequence of NewAnnotation
    workflow_step : (name, Groovy comment or script) or None
        Recorded in QuPath's workflow of the image.
    properties : mapping of str to str
        Properties of the image to set.
    """

    remove: frozenset[int] = frozenset()
    remove_annotations: frozenset[int] = frozenset()
    add: Sequence[DetectionGroup] = ()
    annotations: Sequence[NewAnnotation] = ()
    workflow_step: tuple[str, str] | None = None
    properties: Mapping[str, str] = field(default_factory=dict)


def check_ours(ids: Iterable[uuid.UUID | None]) -> None:
    """Refuse to remove objects that qpnuclei did not write.

    Raises
    ------
    qpnuclei.errors.UsageError
        If one of the UUIDs is not ours.
    """
    for own_id in ids:
        if not is_ours(own_id):
            raise UsageError(f"{own_id} was not written by qpnuclei and cannot be removed")


class ImageEntry(Protocol):
    """One image of a project."""

    @property
    def id(self) -> str:
        """Entry ID, unique in the project (``"1"``)."""

    @property
    def name(self) -> str:
        """Image name as QuPath lists it."""

    @property
    def unique_name(self) -> str:
        """The name or, if other images share it, the entry ID."""

    @property
    def server(self) -> ImageServer:
        """The image server: where the pixels come from."""

    @property
    def calibration(self) -> PixelCalibration:
        """Pixel size as QuPath shows it (set by the user or read from the image)."""

    @property
    def path(self) -> Path | None:
        """The image file on this machine, found as QuPath would; None if it is missing."""

    @property
    def image_type(self) -> str | None:
        """Name of QuPath's ``ImageType`` (``"BRIGHTFIELD_H_E"``); None if never saved."""

    @property
    def stains(self) -> Stains | None:
        """Colour deconvolution stains of the image; None if it has none."""

    def read(self) -> ImageObjects:
        """Read annotations and detections from disk.

        Raises
        ------
        qpnuclei.errors.FormatError
            If ``data.qpdata`` is truncated or corrupt; the hint names its ``.bkp`` if that is
            readable.
        """

    def write(self, edit: Edit, fingerprint: str) -> None:
        """Apply an edit to the objects read with `fingerprint`, save, and verify by reading back.

        Raises
        ------
        qpnuclei.errors.ConflictError
            If the file on disk has changed since it was read with `fingerprint`.
        qpnuclei.errors.SaveError
            If it could not be saved; the project is unchanged.
        """


class Project(Protocol):
    """A QuPath project."""

    @property
    def path(self) -> Path:
        """The ``.qpproj`` file."""

    @property
    def backend(self) -> Literal["native", "paquo"]:
        """``"native"`` or ``"paquo"``."""

    @property
    def image_root(self) -> Path | None:
        """Folder to search for images that are not at the path in the project."""

    @property
    def version(self) -> str | None:
        """Version of QuPath that wrote the project file."""

    @property
    def classes(self) -> Sequence[PathClass]:
        """The project's class list."""

    @property
    def images(self) -> Sequence[ImageEntry]:
        """The images, in project order."""

    def nuclei(self, image: str, mpp: float | None = None) -> NucleusRows:
        """Return the nuclei of an image, from any program, as a table.

        Parameters
        ----------
        image : str
            Name or entry ID.
        mpp : float, optional
            µm per level-0 px; overrides the pixel size of the project.

        Raises
        ------
        qpnuclei.errors.UsageError
            If there is no such image.
        qpnuclei.errors.FormatError
            If its objects cannot be read.
        """
