"""Read annotated images from a data set of any layout, or from boxes in a project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qpnuclei.errors import UsageError
from qpnuclei.evaluation.boxes import read_boxes
from qpnuclei.evaluation.datasets import AnnotatedImage, AnnotatedSet
from qpnuclei.evaluation.formats import read_dataset
from qpnuclei.qupath.project_file import find_project_file, is_project
from qpnuclei.system.files import check_folder


def read_annotated(
    path: Path,
    layout: str = "auto",
    split: str | None = None,
    splits: Path | None = None,
    *,
    components: bool = False,
    roi: Sequence[str] = (),
    truth_classes: Sequence[str] = (),
    images: Sequence[str] = (),
    mpp: float | None = None,
    image_root: Path | None = None,
    limit: int | None = None,
) -> AnnotatedSet[AnnotatedImage]:
    """Find annotated images, in a data set or in a project.

    Parameters
    ----------
    path : Path
        A folder for `qpnuclei.evaluation.formats.read_dataset`, or a project for
        `qpnuclei.evaluation.boxes.read_boxes`. Most other parameters are described there.
    limit : int, optional
        Only the first images of a data set, or boxes of a project, up to this number. The others
        are not read, and have no part in the description and the remarks.

    Raises
    ------
    UsageError
        If a parameter does not apply to a data set, or to a project.
    QpnucleiError
        As these functions.
    """
    if is_project(path):
        find_project_file(path)
        given = {
            "--split": split is not None,
            "--splits": splits is not None,
            "--components": components,
            "--format": layout != "auto",
        }
        for option, is_given in given.items():
            if is_given:
                raise UsageError(
                    f"{option} is for data sets, and {path} is a project", "leave it out"
                )
        drawn = read_boxes(
            path, roi, truth_classes, images=images, mpp=mpp, image_root=image_root, limit=limit
        )
        described = {
            "path": str(path),
            "format": "project",
            "split": None,
            "limit": limit,
            **drawn.described,
        }
        return AnnotatedSet(drawn.images, described, drawn.notes)
    check_folder(path, "of an annotated data set")
    for option, values in (("--roi", roi), ("--image", images), ("--image-root", image_root)):
        if values:
            raise UsageError(
                f"{option} is for QuPath projects, and {path} is not one", "name a project.qpproj"
            )
    found, annotated = read_dataset(
        path, layout, split, splits, components=components, truth_classes=truth_classes
    )
    described = {"path": str(path), "format": found, "split": split, "limit": limit}
    if components:
        described["components"] = True
    if truth_classes:
        described["truth_class"] = list(truth_classes)
    return AnnotatedSet(annotated[:limit], described)
