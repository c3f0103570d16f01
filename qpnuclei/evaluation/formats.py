"""Read published data sets in the layout of their authors: MoNuSeg, TNBC, CoNSeP."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import shapely
import skimage.measure

from qpnuclei.choices import DatasetLayout
from qpnuclei.errors import FormatError, NotFoundError, UsageError
from qpnuclei.evaluation.datasets import (
    GEOJSON_SUFFIXES,
    IMAGE_SUFFIXES,
    AnnotatedImage,
    by_stem,
    label_suffix,
    read_folder,
    read_instance_map,
    read_split,
    same_name,
)
from qpnuclei.evaluation.labelmap import label_map
from qpnuclei.qupath.areas import polygons_in
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.slides.readers.reader import warn_once
from qpnuclei.system.arguments import check_choice
from qpnuclei.system.files import check_folder

_log = logging.getLogger(__name__)

#: Resolution of all three in µm/px: they were scanned at 40x.
_MPP_40X = 0.25

#: File of a data set that maps splits to names of images.
SPLITS_FILE = "splits.json"


@dataclass(frozen=True)
class MonusegImage(AnnotatedImage):
    """An image of MoNuSeg [1]_: a TIFF, with nuclei drawn in Aperio ImageScope.

    References
    ----------
    .. [1] N. Kumar et al., "A multi-organ nucleus segmentation challenge", IEEE TMI 39(5), 2020.
    """

    def read_labels(self) -> npt.NDArray[np.int32]:
        """Return the (H, W) int32 instance map of the regions in the XML file.

        A pixel belongs to the first outline in the file that contains its centre, as in the
        authors' own script. Regions without any pixel are counted in a warning.

        Raises
        ------
        FormatError
            If the file is not an XML file of ImageScope, or all its areas lie outside of the image.
        """
        nuclei = [polygons_in(region) for region in _regions(self.labels_path)]
        labels = _draw(nuclei, self.read_image().shape[:2])
        _check_drawn(self, nuclei, labels)
        return labels


@dataclass(frozen=True)
class MaskImage(AnnotatedImage):
    """An image with a mask in which nuclei do not touch."""

    def read_labels(self) -> npt.NDArray[np.int32]:
        """Return the (H, W) int32 instance map: 8-connected components of equal value.

        This is right for masks of 0 and 255, and for masks with the class or the number of each
        nucleus.

        Raises
        ------
        FormatError
            If the file is not an image with one channel.
        """
        components: npt.NDArray[np.int32] = skimage.measure.label(  # type: ignore[no-untyped-call]
            read_instance_map(self.labels_path), connectivity=2
        ).astype(np.int32)
        return components


@dataclass(frozen=True)
class GeojsonImage(AnnotatedImage):
    """An image with outlines exported from QuPath: annotations, detections or cells.

    Parameters
    ----------
    classes : tuple of str
        Only objects of these classes; empty for all.
    """

    classes: tuple[str, ...] = ()

    def read_labels(self) -> npt.NDArray[np.int32]:
        """Return the (H, W) int32 instance map.

        The nuclei of cells are drawn. Where outlines overlap, the first one counts. Objects without
        any pixel are counted in a warning.

        Raises
        ------
        FormatError
            If the file is not GeoJSON, has no area of these classes, or all lie outside of the
            image.
        """
        nuclei = []
        for found in read_objects(self.labels_path):
            name = None if found.path_class is None else found.path_class.name
            if not self.classes or name in self.classes:
                nuclei.append(polygons_in(found.nucleus or found.geometry))
        if not any(map(len, nuclei)):
            of = f" of class {' or '.join(map(repr, self.classes))}" if self.classes else ""
            raise FormatError(f"{self.labels_path}: contains no outline{of} with an area")
        labels = _draw(nuclei, self.read_image().shape[:2])
        _check_drawn(self, nuclei, labels)
        return labels


@dataclass(frozen=True)
class TnbcImage(MaskImage):
    """An image of the TNBC set [1]_: PNG, and a PNG mask in which nuclei do not touch.

    References
    ----------
    .. [1] P. Naylor et al., "Segmentation of nuclei in histopathology images by deep regression of
           the distance map", IEEE TMI 38(2), 2019.
    """


@dataclass(frozen=True)
class ConsepImage(AnnotatedImage):
    """An image of CoNSeP [1]_: PNG, and a MATLAB file with ``inst_map``.

    References
    ----------
    .. [1] S. Graham et al., "HoVer-Net: simultaneous segmentation and classification of nuclei in
           multi-tissue histology images", Medical Image Analysis 58, 2019.
    """


def _draw(
    nuclei: Sequence[npt.NDArray[np.object_]], shape: tuple[int, int]
) -> npt.NDArray[np.int32]:
    """Draw nuclei, each of any number of polygons, into an instance map of (H, W) px."""
    owners = np.repeat(np.arange(len(nuclei), dtype=np.int32), [len(parts) for parts in nuclei])
    labels = label_map([part for parts in nuclei for part in parts], shape)
    return np.append(np.int32(0), owners + np.int32(1))[labels]


def _check_drawn(
    image: AnnotatedImage,
    nuclei: Sequence[npt.NDArray[np.object_]],
    labels: npt.NDArray[np.int32],
) -> None:
    """Warn of nuclei without a pixel in the instance map; refuse them if all lie outside of it.

    Lines and points, such as the rulers of ImageScope, do not lie anywhere.
    """
    without_pixel = np.setdiff1d(np.arange(1, len(nuclei) + 1), labels)
    if not len(without_pixel):
        return
    height, width = labels.shape
    place = f"the image {image.image_path.name} of {width} x {height} px"
    areas = [part for parts in nuclei for part in parts if part.area > 0]
    x0, y0, x1, y1 = shapely.bounds(areas).reshape(-1, 4).T
    is_outside = (x1 <= 0) | (y1 <= 0) | (x0 >= width) | (y0 >= height)
    if areas and is_outside.all():
        raise FormatError(
            f"{image.labels_path}: no outline with an area lies in {place}",
            "give outlines in px of this image, not of the slide that it was cut from",
        )
    warn_once(
        _log,
        f"{image.labels_path}: outlines without a pixel in {place}: {len(without_pixel)} of "
        f"{len(nuclei)} (outside of it, covered by others, or without an area)",
    )


def read_monuseg(folder: Path) -> list[AnnotatedImage]:
    """Find the images of MoNuSeg: TIFF and XML with the same stem, anywhere below a folder."""
    annotations = by_stem(folder.rglob("*.xml"))
    images = by_stem(p for p in folder.rglob("*") if p.suffix.lower() in (".tif", ".tiff"))
    _check_pairs(folder, images, annotations, "XML file of annotations")
    return [MonusegImage(n, images[n], annotations[n], _MPP_40X) for n in sorted(annotations)]


def read_tnbc(folder: Path) -> list[AnnotatedImage]:
    """Find the images of TNBC: ``Slide_NN/*.png`` and ``GT_NN/*.png`` with the same name.

    Images of several slides with the same name are told apart by the folder: ``Slide_01/1``.
    """
    found: list[AnnotatedImage] = []
    for slide in sorted(folder.glob("Slide_*")):
        truth = slide.with_name(slide.name.replace("Slide_", "GT_"))
        images, masks = by_stem(slide.glob("*.png")), by_stem(truth.glob("*.png"))
        _check_pairs(slide, images, masks, f"mask in {truth.name}")
        found += [TnbcImage(name, images[name], masks[name], _MPP_40X) for name in sorted(images)]
    times = Counter(image.name for image in found)
    return [
        replace(image, name=f"{image.image_path.parent.name}/{image.name}")
        if times[image.name] > 1
        else image
        for image in found
    ]


def read_consep(folder: Path) -> list[AnnotatedImage]:
    """Find the images of CoNSeP: ``Images/*.png`` and ``Labels/*.mat``, also in Train and Test."""
    found: list[AnnotatedImage] = []
    for labels in _consep_labels(folder):
        images = by_stem(
            p for p in (labels.parent / "Images").glob("*") if p.suffix.lower() in IMAGE_SUFFIXES
        )
        maps = by_stem(labels.glob("*.mat"))
        _check_pairs(labels.parent, images, maps, "MATLAB file in Labels")
        found += [ConsepImage(name, images[name], maps[name], _MPP_40X) for name in sorted(images)]
    return found


def read_dataset(
    folder: Path,
    layout: str = "auto",
    split: str | None = None,
    splits: Path | None = None,
    *,
    components: bool = False,
    truth_classes: Sequence[str] = (),
) -> tuple[str, list[AnnotatedImage]]:
    """Find the annotated images of a data set in any known layout.

    Parameters
    ----------
    folder : pathlib.Path
    layout : {"auto", "folder", "monuseg", "tnbc", "consep"}
        Layout of the files; ``"auto"`` recognises it.
    split : str, optional
        Only the images of this split.
    splits : pathlib.Path, optional
        JSON file that maps splits to lists of image names; ``splits.json`` in `folder` if not
        given.
    components : bool
        Whether each connected part of a mask is a nucleus, in the layouts ``"folder"`` and
        ``"consep"``.
    truth_classes : sequence of str
        Only objects of these classes, for GeoJSON labels in the layout ``"folder"``.

    Returns
    -------
    layout : str
        The given or recognised layout.
    images : list of AnnotatedImage
        At least one, sorted by name.

    Raises
    ------
    NotFoundError
        If the folder, an image, its labels, or an image of the split is missing.
    FormatError
        If two images have the same name.
    UsageError
        If the layout is not recognised, there is no such layout or split, or no image, or the
        layout has no masks for `components`.
    """
    check_choice("layout", layout, get_args(DatasetLayout))
    check_folder(folder, "of an annotated data set")
    if layout == "auto":
        layout = _detect(folder)
        _log.info("%s: read as %s", folder, layout)
    names = None if split is None else read_split(splits or folder / SPLITS_FILE, split)
    if layout == "folder":
        return layout, [
            _of_folder(image, components, truth_classes)
            for image in read_folder(folder, names=names)
        ]
    if truth_classes:
        raise UsageError(
            f"--truth-class is for projects and GeoJSON, and {folder} has the layout of {layout}",
            "leave it out",
        )
    if components and layout != "consep":
        raise UsageError(
            f"--components is for masks in labels/, and {folder} has the layout of {layout}",
            "leave it out",
        )
    by_name: dict[str, AnnotatedImage] = {}
    for image in _READERS[layout](folder):
        if image.name in by_name:
            raise same_name(image.image_path, by_name[image.name].image_path)
        by_name[image.name] = _as_mask(image) if components else image
    if not by_name:
        raise UsageError(f"{folder}: contains no image in the layout of {layout}")
    wanted = by_name if names is None else names
    if missing := sorted(set(wanted) - by_name.keys()):
        raise NotFoundError(f"{folder}: no image {missing[0]!r} of the split {split!r}")
    if not wanted:
        raise UsageError(f"{folder}: no annotated image is selected")
    return layout, [by_name[name] for name in sorted(wanted)]


_READERS: Mapping[str, Callable[[Path], list[AnnotatedImage]]] = {
    "monuseg": read_monuseg,
    "tnbc": read_tnbc,
    "consep": read_consep,
}


def _of_folder(
    image: AnnotatedImage, components: bool, truth_classes: Sequence[str]
) -> AnnotatedImage:
    """Return an image of the layout ``"folder"``, by the kind of its labels."""
    is_geojson = label_suffix(image.labels_path) in GEOJSON_SUFFIXES
    if components and is_geojson:
        raise UsageError(f"--components is for masks, not for {image.labels_path}", "leave it out")
    if truth_classes and not is_geojson:
        raise UsageError(
            f"--truth-class is for outlines with classes, not for {image.labels_path}",
            "leave it out",
        )
    if is_geojson:
        same = (image.name, image.image_path, image.labels_path, image.mpp)
        return GeojsonImage(*same, tuple(truth_classes))
    return _as_mask(image) if components else image


def _as_mask(image: AnnotatedImage) -> MaskImage:
    return MaskImage(image.name, image.image_path, image.labels_path, image.mpp)


def _detect(folder: Path) -> str:
    # CoNSeP first: some file systems do not distinguish Images from images.
    if _consep_labels(folder):
        return "consep"
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return "folder"
    if any(folder.glob("Slide_*")) and any(folder.glob("GT_*")):
        return "tnbc"
    if any(folder.rglob("*.xml")):
        return "monuseg"
    raise UsageError(
        f"{folder}: not in the layout of a known data set",
        "put images into images/ and instance maps of the same names into labels/, or see the "
        "other layouts in docs/evaluation.md",
    )


def _consep_labels(folder: Path) -> list[Path]:
    candidates = (folder / "Labels", *sorted(folder.glob("*/Labels")))
    return [labels for labels in candidates if any(labels.glob("*.mat"))]


def _check_pairs(
    folder: Path, images: Mapping[str, Path], labels: Mapping[str, Path], what: str
) -> None:
    if without := sorted(images.keys() - labels.keys()):
        raise NotFoundError(f"{images[without[0]]}: there is no {what} of that name")
    if without := sorted(labels.keys() - images.keys()):
        raise NotFoundError(f"{labels[without[0]]}: there is no image of that name in {folder}")


def _regions(path: Path) -> Sequence[shapely.Polygon]:
    """Return the outlines of ImageScope's regions in px; those of fewer than 3 points are empty."""
    try:
        root = ElementTree.parse(path).getroot()
        outlines = [
            [(_px(v.attrib["X"]), _px(v.attrib["Y"])) for v in region.iter("Vertex")]
            for region in root.iter("Region")
        ]
    except (OSError, ElementTree.ParseError, KeyError, ValueError) as error:
        raise FormatError(f"{path}: is not an XML file of ImageScope: {error!r}") from error
    if not outlines and root.tag != "Annotations":
        raise FormatError(f"{path}: is XML of <{root.tag}>, not of ImageScope's <Annotations>")
    return [shapely.Polygon(outline if len(outline) >= 3 else None) for outline in outlines]


def _px(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"a vertex is at {text}")
    return value
