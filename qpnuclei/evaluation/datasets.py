"""Annotated images for evaluation: a folder of images and instance maps."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import scipy.io
import shapely
import tifffile

from qpnuclei.errors import FormatError, NotFoundError, SlideError, UsageError, number_of
from qpnuclei.evaluation.labelmap import consecutive
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.slides.readers.plain import pillow_image
from qpnuclei.slides.readers.reader import reading
from qpnuclei.slides.readers.tiff import SIGNATURES as TIFF_SIGNATURES
from qpnuclei.slides.slide import open_slide
from qpnuclei.system.files import open_regular
from qpnuclei.system.json_text import parse_json

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
GEOJSON_SUFFIXES = (".geojson", ".geojson.gz")
_INSTANCE_MAP_SUFFIXES = (".png", ".tif", ".tiff", ".npy")
LABEL_SUFFIXES = (*_INSTANCE_MAP_SUFFIXES, *GEOJSON_SUFFIXES)
_MATLAB_SUFFIX = ".mat"
#: A mask of classes has up to so many values, each in more parts than this.
_MOST_CLASSES, _MOST_PARTS = 10, 3


@dataclass(frozen=True)
class AnnotatedImage:
    """One image and the file of its annotated nuclei; pixels are read on demand.

    Parameters
    ----------
    name : str
        The common stem of both files.
    image_path, labels_path : Path
        The RGB image and its instance map.
    mpp : float or None
        µm/px of the data set, if known; None to read it from each file.
    """

    name: str
    image_path: Path
    labels_path: Path
    mpp: float | None = None

    def read(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Return image and instance map, as `read_image` and `read_labels` do.

        Raises
        ------
        qpnuclei.errors.SlideError
            If the image cannot be read.
        FormatError
            If the labels cannot be read, or they differ from the image in size.
        """
        rgb, labels = self.read_image(), self.read_labels()
        if rgb.shape[:2] != labels.shape:
            raise FormatError(
                f"{self.labels_path}: nuclei on {labels.shape[1]} x {labels.shape[0]} px do not "
                f"fit the image {self.image_path.name} of {rgb.shape[1]} x {rgb.shape[0]} px",
                "give both files the same size",
            )
        return rgb, labels

    def read_alone(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Return image and instance map without the surroundings of the annotated area."""
        return self.read()

    def counted(self, nuclei: NucleiTable) -> NucleiTable:
        """Return the found nuclei that are scored: here, all of them."""
        return nuclei

    @property
    def border(self) -> shapely.Geometry:
        """The annotated area, in px of the image, if it is not all of it; empty if it is."""
        return shapely.Polygon()

    def read_image(self) -> npt.NDArray[np.uint8]:
        """Return the image as (H, W, 3) uint8 RGB.

        Raises
        ------
        qpnuclei.errors.SlideError
            As `read_rgb`.
        """
        return read_rgb(self.image_path)

    def read_labels(self) -> npt.NDArray[np.int32]:
        """Return the instance map as (H, W) int32, 0 = background.

        Raises
        ------
        FormatError
            As `read_instance_map`, or if the file is a mask without separate nuclei.
        """
        labels = read_instance_map(self.labels_path)
        values = np.unique(labels[labels != 0])
        if 1 <= len(values) <= _MOST_CLASSES:
            parts = sum(
                cv2.connectedComponents((labels == value).astype(np.uint8), connectivity=8)[0] - 1
                for value in values.tolist()
            )
            # Nuclei of an instance map are seldom in several parts.
            if parts > (1 if len(values) == 1 else _MOST_PARTS * len(values)):
                number = "one value" if len(values) == 1 else f"{len(values)} values"
                raise FormatError(
                    f"{self.labels_path}: a mask with {number} in {parts} parts, not an instance "
                    "map: all nuclei of a value would be one",
                    "give each nucleus its own value, or evaluate with --components, which treats "
                    "each connected part as a nucleus",
                )
        return labels


Image = TypeVar("Image", bound=AnnotatedImage, covariant=True)


@dataclass(frozen=True)
class AnnotatedSet(Generic[Image]):
    """Annotated images of a data set, or boxes of projects.

    Parameters
    ----------
    images : sequence of AnnotatedImage
        One for each image or box.
    described : dict
        What a report says of them, as JSON types.
    notes : tuple of str
        Sentences for a report on what is compared.
    """

    images: Sequence[Image]
    described: dict[str, Any]
    notes: tuple[str, ...] = ()


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Return an image file as (H, W, 3) uint8 RGB, with the same colours as in a run.

    Raises
    ------
    qpnuclei.errors.SlideError
        As `qpnuclei.slides.slide.open_slide`.
    """
    with open_slide(path) as slide:
        return slide.read(0, 0, slide.width, slide.height)


def read_instance_map(path: Path) -> npt.NDArray[np.int32]:
    """Return the integers in a PNG, TIFF, NPY or MATLAB file as (H, W) int32.

    Of a MATLAB file, it is the array ``inst_map``. Labels beyond 16 bits are renumbered from 1.

    Raises
    ------
    FormatError
        If the file cannot be decoded, is not a 2-D array of integers, or has a label that is
        negative, or is -1 that was stored as an unsigned number of 32 or 64 bits.
    """
    return _checked_labels(path, _stored_labels(path))


def _stored_labels(path: Path) -> npt.NDArray[np.integer]:
    """Return the (H, W) integers of a file, of the type that it has; a mask of bits as uint8."""
    if path.suffix.lower() == _MATLAB_SUFFIX:
        return _matlab_labels(path)
    with _reading_labels(path, "an instance map"):
        if path.suffix.lower() == ".npy":
            labels = np.load(path, allow_pickle=False)
        elif _is_tiff(path):
            labels = tifffile.imread(path)
        else:
            with pillow_image(path, "save it as TIFF or NPY, or cut it into parts") as image:
                labels = np.asarray(image)
    labels = _with_bits_as_numbers(np.asarray(labels))
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise FormatError(
            f"{path}: an array of {labels.dtype}{labels.shape} is not an instance map",
            "one channel of integers is needed: 0 = background, one value per nucleus",
        )
    return labels


def _is_tiff(path: Path) -> bool:
    """Tell whether the content of a file is a TIFF, whatever its name."""
    with open_regular(path) as file:
        return file.read(4) in TIFF_SIGNATURES


def _matlab_labels(path: Path) -> npt.NDArray[np.integer]:
    """Return ``inst_map`` of a MATLAB file, whose whole numbers may be stored as doubles."""
    with _reading_labels(path, "a MATLAB file"):
        try:
            content = scipy.io.loadmat(path)
        except NotImplementedError as error:
            raise SlideError(
                f"{path}: is a MATLAB file of version 7.3, which cannot be read",
                "save it in version 7: save(..., '-v7') in MATLAB",
            ) from error
        except (scipy.io.matlab.MatReadError, zlib.error) as error:
            raise OSError(str(error)) from error
    whole = _whole_numbers(content.get("inst_map"))
    if whole is None:
        names = sorted(name for name in content if not name.startswith("__"))
        raise FormatError(f"{path}: has no 2-D array of whole numbers 'inst_map', only {names!r}")
    return whole


def _whole_numbers(found: object) -> npt.NDArray[np.integer] | None:
    """Return a 2-D array as integers, doubles as few bits as hold them; None for anything else."""
    if not isinstance(found, np.ndarray) or found.ndim != 2:
        return None
    found = _with_bits_as_numbers(found)
    if np.issubdtype(found.dtype, np.integer):
        return found
    if not np.issubdtype(found.dtype, np.floating):
        return None
    with np.errstate(invalid="ignore"):  # NaN, infinity, and numbers beyond 64 bits
        whole = found.astype(np.int64)
    if not np.array_equal(whole, found):
        return None
    is_unsigned = whole.min(initial=0) >= 0
    return whole.astype(np.min_scalar_type(whole.max(initial=0))) if is_unsigned else whole


def _with_bits_as_numbers(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def doubts_about_labels(images: Iterable[AnnotatedImage]) -> list[str]:
    """Return a note if the largest label of 8 or 16 bits seems to mark pixels to be ignored.

    Other programs use 255 or 65535 for this. Here, it is a nucleus like the others.

    Parameters
    ----------
    images : iterable of AnnotatedImage
        Those with an instance map in a file are examined.

    Returns
    -------
    list of str
        One note at most, for all images together; it names the first file.

    Raises
    ------
    FormatError
        As `read_instance_map`.
    """
    found: list[tuple[Path, int]] = []
    for image in images:
        if label_suffix(image.labels_path) in (*_INSTANCE_MAP_SUFFIXES, _MATLAB_SUFFIX):
            label = _seemingly_ignored(_stored_labels(image.labels_path))
            if label is not None:
                found.append((image.labels_path, label))
    if not found:
        return []
    path, label = found[0]
    others = f" and {number_of(len(found) - 1, 'more file')}" if len(found) > 1 else ""
    return [
        f"{path}{others}: the label {label} is far above the others and counts as a nucleus. If it "
        "marks pixels to be ignored, crop image and labels to the annotated part."
    ]


def _seemingly_ignored(labels: npt.NDArray[np.integer]) -> int | None:
    """Return the largest number of 8 or 16 bits if it is a label, but the number below is not."""
    if labels.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        return None
    largest = int(np.iinfo(labels.dtype).max)
    used = np.unique(labels[labels != 0])
    # A mask has no other label.
    is_gap = len(used) > 1 and used[-1] == largest and used[-2] < largest - 1
    return largest if is_gap else None


@contextmanager
def _reading_labels(path: Path, kind: str) -> Iterator[None]:
    """Turn exceptions of the file libraries into a `FormatError` that names the file."""
    try:
        with reading(path, f"cannot be read as {kind}", "copy the file again"):
            yield
    except SlideError as error:
        raise FormatError(error.what, error.hint) from error


def _checked_labels(path: Path, labels: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    lowest, largest = labels.min(initial=0), labels.max(initial=0)
    unsigned = np.issubdtype(labels.dtype, np.unsignedinteger) and labels.dtype.itemsize >= 4
    if lowest < 0 or (unsigned and largest == np.iinfo(labels.dtype).max):
        raise FormatError(
            f"{path}: has the label {lowest if lowest < 0 else f'{largest} (-1 without a sign)'}, "
            "which is not a nucleus",
            "no area of an image can be ignored: crop image and labels to the annotated part",
        )
    # Scores need memory for every number up to the largest label.
    if largest > np.iinfo(np.uint16).max:
        return consecutive(labels)
    return labels.astype(np.int32)


def read_folder(folder: Path, names: Sequence[str] | None = None) -> Iterator[AnnotatedImage]:
    """Find the annotated images of a folder with ``images/`` and ``labels/``.

    Parameters
    ----------
    folder : Path
        ``images/STEM.{png,jpg,tif}`` are RGB images, ``labels/STEM.{png,tif,npy}`` their instance
        maps (uint16; 0 = background), or ``labels/STEM.geojson`` (or ``.geojson.gz``) outlines.
    names : sequence of str, optional
        Only these stems.

    Returns
    -------
    iterator of AnnotatedImage
        Sorted by stem.

    Raises
    ------
    NotFoundError
        If the folder, a subfolder, or a file of a selected stem is missing.
    UsageError
        If no image is left.
    FormatError
        If two images or two label files have the same stem.
    """
    images = _in_folder(folder / "images", IMAGE_SUFFIXES)
    labels = _in_folder(folder / "labels", LABEL_SUFFIXES)
    wanted = set(images if names is None else names)
    if not wanted:
        raise UsageError(f"{folder}: no annotated image is selected")
    for kind, found in (("images", images), ("labels", labels)):
        missing = sorted(wanted - set(found))
        if missing:
            raise NotFoundError(
                f"{folder / kind}: no file for {missing[0]!r}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
                "an image and its instance map must have the same name before the suffix",
            )
    return (AnnotatedImage(stem, images[stem], labels[stem]) for stem in sorted(wanted))


def _in_folder(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise NotFoundError(
            f"{folder}: no such folder", "a data set is a folder with images/ and labels/"
        )
    return by_stem(path for path in folder.iterdir() if label_suffix(path) in suffixes)


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Return files by their names without suffix (see `label_suffix`), without hidden files.

    Raises
    ------
    FormatError
        If two have the same name.
    """
    found: dict[str, Path] = {}
    # Copying to and from a Mac leaves a hidden "._name" beside every file.
    for path in sorted(p for p in paths if not p.name.startswith(".")):
        stem = path.name[: -len(label_suffix(path))]
        if stem in found:
            raise same_name(path, found[stem])
        found[stem] = path
    return found


def same_name(path: Path, first: Path) -> FormatError:
    """Return the error about two files that cannot be told apart."""
    return FormatError(
        f"{path}: {first} has the same name", "keep one of the two, or evaluate them separately"
    )


def label_suffix(path: Path) -> str:
    """Return the suffix of a file in lower case; ``.gz`` includes the suffix before it."""
    count = 2 if path.suffix.lower() == ".gz" else 1
    return "".join(path.suffixes[-count:]).lower()


def read_split(path: Path, split: str) -> list[str]:
    """Return the image names of a split, each once, from a JSON file that maps splits to names.

    Raises
    ------
    NotFoundError
        If there is no such file.
    FormatError
        If it is not such a mapping.
    UsageError
        If it has no such split.
    """
    if not path.is_file():
        raise NotFoundError(f"{path}: no such file", f"it should list the images of {split!r}")
    try:
        splits = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path}: not JSON: {error}") from error
    if not isinstance(splits, dict) or not all(isinstance(s, list) for s in splits.values()):
        raise FormatError(f"{path}: not a mapping of split names to lists of image names")
    if not isinstance(split, str) or split not in splits:
        raise UsageError(f"{path}: no split {split!r}", f"it has {', '.join(sorted(splits))}")
    return list(dict.fromkeys(str(stem) for stem in splits[split]))
