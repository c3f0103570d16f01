"""What to learn from: patches, slides, folders of them, and QuPath projects."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import shapely

from qpnuclei.errors import (
    FormatError,
    MppError,
    NotFoundError,
    QpnucleiError,
    SlideError,
    UsageError,
    number_of,
)
from qpnuclei.evaluation.datasets import read_split
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.areas import union
from qpnuclei.qupath.image_names import image_option, match_images
from qpnuclei.qupath.images import open_image, stains_of
from qpnuclei.qupath.model import Annotation, ImageEntry
from qpnuclei.qupath.names import is_utf8
from qpnuclei.qupath.pixel_size import AskedMpp, pixel_size
from qpnuclei.qupath.project_file import is_project, resolved_project
from qpnuclei.slides.files import SLIDE_SUFFIXES, one_per_slide, slide_of_each, slides_in
from qpnuclei.slides.hdab_as_he import seen_by_network
from qpnuclei.slides.resolution import checked_mpp, resolve_mpp
from qpnuclei.slides.slide import PixelSource, Slide, open_slide
from qpnuclei.slides.stains import DEFAULT_HE, Stains
from qpnuclei.system.files import resolved

_log = logging.getLogger(__name__)

#: An image of at most this many px in each direction is a patch, not a whole slide.
MAX_PATCH_PX = 4096


@dataclass(frozen=True)
class Source:
    """One image to learn from.

    Parameters
    ----------
    name : str
        Name in messages and in the model's metadata.
    path : pathlib.Path
    mpp : (float, float)
        Level-0 µm/px in x and y.
    width, height : int
        Level-0 size in px, in QuPath's frame.
    crop_to_bounds, series, apply_icc
        See `qpnuclei.slides.slide.open_slide`.
    roi : shapely geometry or None
        In level-0 px; None is all of the image.
    stains : Stains
        Of the image; with DAB, they decide the colours that are learned.
    """

    name: str
    path: Path
    mpp: tuple[float, float]
    width: int
    height: int
    crop_to_bounds: bool = False
    roi: shapely.Geometry | None = None
    series: int | None = None
    apply_icc: bool = False
    stains: Stains = DEFAULT_HE

    @property
    def is_patch(self) -> bool:
        """Whether it is small enough to be an image patch rather than a whole slide."""
        return max(self.width, self.height) <= MAX_PATCH_PX

    def open(self) -> Slide:
        """Open the image; the caller closes it."""
        return open_slide(
            self.path,
            crop_to_bounds=self.crop_to_bounds,
            series=self.series,
            apply_icc=self.apply_icc,
        )

    def pixels(self, slide: Slide) -> PixelSource:
        """Return the pixels of the open image in the colours that a run shows the network."""
        return seen_by_network(slide, self.stains)


def find_sources(
    paths: Sequence[Path],
    *,
    mpp: Sequence[float] = (),
    roi: Sequence[str] = (),
    image_root: Path | None = None,
    images: Sequence[str] = (),
) -> list[Source]:
    """Find every image that the arguments of ``qpnuclei train`` name.

    Parameters
    ----------
    paths : sequence of pathlib.Path
        Each is an image or slide; a folder of them; a folder that holds ``images/`` (and perhaps
        ``splits.json``: then only the images of its ``train`` split); or a QuPath project
        (``.qpproj``, or its folder).
    mpp : sequence of float
        Their resolution in µm/px, which overrides projects and files: one for all, or one for each
        of `paths`. By default it is read from the files; for images of projects see
        `qpnuclei.qupath.pixel_size.pixel_size`.
    roi : sequence of str
        Classes of annotations in QuPath projects: only what lies in one of these is used, and
        images without one are left out. Without `roi`, whole images are used.
    image_root : pathlib.Path, optional
        Where to look for the slides of projects that were moved.
    images : sequence of str
        Names or patterns (``*``, ``?``) of images of the projects; all by default.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If a path does not exist.
    qpnuclei.errors.UsageError
        If a folder holds no image (of the split ``train``), `mpp` is neither one nor as many as
        `paths`, two of `paths` name the same image and have different `mpp`, `roi` is given without
        a project, or no annotation has any of its classes.
    qpnuclei.errors.MppError
        If an image's resolution is not known, or absurd.
    qpnuclei.errors.SlideError, qpnuclei.errors.FormatError
        If an image, a project or ``splits.json`` cannot be read, or the name of an image is not
        UTF-8.

    Notes
    -----
    A project or slide that several of `paths` name is used once, in all spellings; a slide that is
    also an image of a project, as that image. With `roi`, areas of one slide in several projects
    are all used.

    Of a project, images that cannot be read or have no resolution are left out with a warning, as
    long as another one is left.
    """
    projects = [path for path in paths if is_project(path)]
    if roi and not projects:
        raise UsageError(
            f"--roi {roi[0]!r} was given, but no source is a QuPath project",
            "only projects have annotations",
        )
    if images and not projects:
        raise UsageError(
            f"--image {images[0]!r} was given, but no source is a QuPath project",
            "name the slides themselves",
        )
    if len(mpp) not in (0, 1, len(paths)):
        raise UsageError(
            f"--mpp was given {len(mpp)} times for {number_of(len(paths), 'source')}",
            "give it once for all of them, or once for each",
        )
    files = [
        (n, file) for n, path in enumerate(paths) if path not in projects for file in _files(path)
    ]
    mpp = [checked_mpp("mpp", one) for one in mpp]
    named = _Named(paths, [mpp[n % len(mpp)] if mpp else None for n in range(len(paths))])
    found: list[list[Source]] = [[] for _ in paths]
    # First the projects: they know more of a slide than its file does.
    for number, path in enumerate(paths):
        if path in projects and named.is_new(resolved_project(path), number):
            resolution = named.resolutions[number]
            found[number] = _project_sources(path, resolution, roi, image_root, images)
    whole = [(n, source) for n, of_path in enumerate(found) for source in of_path]
    whole = [(n, source) for n, source in whole if source.roi is None]
    slides = slide_of_each([*(source.path for _, source in whole), *(file for _, file in files)])
    for (number, source), slide in zip(whole, slides[: len(whole)], strict=True):
        if not named.is_new(slide, number, source.series):
            found[number].remove(source)
    for (number, _), slide in zip(files, slides[len(whole) :], strict=True):
        if named.is_new(slide, number):
            found[number].append(_file_source(slide, named.resolutions[number]))
    sources = [source for of_path in found for source in of_path]
    if projects and roi and not any(source.roi is not None for source in sources):
        raise UsageError(
            f"no annotation has the class {' or '.join(map(repr, roi))}",
            "qpnuclei info PROJECT lists the classes",
        )
    if not sources:
        raise UsageError("there is no image to train on", "name slides, folders or projects")
    return sources


class _Named:
    """What the arguments have named so far; each project and slide is learned from once.

    Parameters
    ----------
    paths : sequence of Path
        The arguments.
    resolutions : sequence of float or None
        The ``--mpp`` of each.
    """

    def __init__(self, paths: Sequence[Path], resolutions: Sequence[float | None]) -> None:
        self.resolutions = resolutions
        self._paths = paths
        self._first: dict[tuple[Path, int], int] = {}

    def is_new(self, path: Path, number: int, series: int | None = None) -> bool:
        """Tell whether an argument is the first that names a project, or an image of a slide.

        Raises
        ------
        UsageError
            If the first one has another ``--mpp``.
        """
        key = resolved(path), series or 0
        first = self._first.setdefault(key, number)
        if self.resolutions[first] != self.resolutions[number]:
            a, b = sorted((first, number))
            raise UsageError(
                f"{self._paths[a]} and {self._paths[b]} both name {path.name}, with different "
                f"--mpp: {self.resolutions[a]} and {self.resolutions[b]}",
                "give --mpp once, or name it once",
            )
        return first == number


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise NotFoundError(f"no such slide, folder or project: {path}", "check the path")
    if not path.is_dir():
        return [path]
    images = path / "images"
    if images.is_dir():
        return _training_images(images, path / "splits.json")
    return _images_in(path)


def _images_in(folder: Path) -> list[Path]:
    files = one_per_slide(slides_in(folder))
    if not files:
        raise UsageError(
            f"folder {folder} holds no image", f"known suffixes: {' '.join(sorted(SLIDE_SUFFIXES))}"
        )
    return files


def _training_images(folder: Path, splits: Path) -> list[Path]:
    """Images of the ``train`` split, so that validation images are not used for training."""
    files = _images_in(folder)
    if not splits.is_file():
        return files
    stems = frozenset(read_split(splits, "train"))
    chosen = [file for file in files if file.stem in stems]
    if not chosen:
        raise UsageError(
            f"{folder} holds no image of the split 'train' of {splits}",
            "the split lists names of images without their suffix",
        )
    _log.info("%s: only %s of its split 'train'", splits, number_of(len(chosen), "image"))
    return chosen


def _file_source(path: Path, mpp: float | None) -> Source:
    if not is_utf8(path.name):
        raise SlideError(
            f"{path}: its name is not UTF-8, as the model's metadata require", "rename it"
        )
    with open_slide(path) as slide:
        true_mpp, _ = resolve_mpp(mpp, None, slide.mpp, str(path))
        return Source(path.name, path, true_mpp, slide.width, slide.height)


def _project_sources(
    path: Path,
    mpp: float | None,
    roi: Sequence[str],
    image_root: Path | None,
    images: Sequence[str],
) -> list[Source]:
    from qpnuclei.qupath.project import open_project

    sources = []
    unusable: QpnucleiError | None = None
    for entry in match_images(open_project(path, image_root=image_root), images):
        try:
            objects = entry.read()
            geometry = None
            if roi:
                geometry = _area([a for a in objects.annotations if a.class_name in roi])
                if geometry is None:
                    continue
            record = Record.of(objects.properties, entry.name)
            sources.append(_entry_source(entry, record, mpp, geometry))
        except (SlideError, MppError, FormatError) as error:
            # If one image of a project cannot be used, learn from the others.
            _log.warning("%s: an image is left out: %s", path, error)
            unusable = error
    if not sources and unusable is not None:
        raise unusable
    return sources


def _entry_source(
    entry: ImageEntry, record: Record, mpp: float | None, roi: shapely.Geometry | None
) -> Source:
    with open_image(entry) as slide:
        try:
            true_mpp, _ = pixel_size(entry, record, AskedMpp(mpp), lambda: slide.mpp)
        except MppError as error:
            raise MppError(
                error.what,
                "give it with --mpp, in µm per level-0 pixel; if images differ, first analyse some "
                f"of this one with run {image_option(entry)} --mpp 0.5",
            ) from error
        return Source(
            name=entry.name,
            path=slide.path,
            mpp=true_mpp,
            width=slide.width,
            height=slide.height,
            crop_to_bounds=slide.crop_to_bounds,
            roi=roi,
            series=slide.series,
            apply_icc=slide.apply_icc,
            stains=stains_of(entry),
        )


def _area(annotations: Sequence[Annotation]) -> shapely.Geometry | None:
    """Union of the annotations that have an area; None if none has."""
    areas = [a.area for a in annotations if a.is_area]
    return union(areas) if areas else None
