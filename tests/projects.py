"""Small projects, and what a user does to them in QuPath."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import shapely

from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import NativeImage
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.path_objects import PathObject, walk
from qpnuclei.qupath.qpdata.rois import make_roi
from tests.paths import SAMPLES

#: H&E-stained tissue, of 256 x 256 px.
IMAGE = SAMPLES / "0.5.1" / "images" / "plain.tif"


def annotate(image: NativeImage, *areas: shapely.Geometry, class_name: str = "Tumor") -> None:
    new = [
        NewAnnotation(area, uuid.UUID(int=i + 1), f"a{i}", PathClass(class_name, -1))
        for i, area in enumerate(areas)
    ]
    image.write(Edit(annotations=new), image.read().fingerprint)


def make_project(folder: Path, *names: str) -> Path:
    """Make a project of copies of a small image, of 0.5 µm/px."""
    slides = [Path(shutil.copy(IMAGE, folder / f"{name}.tif")) for name in names]
    project = create_from_slides(folder / "p", slides, mpp=0.5)
    return Path(project.path.parent)


def lock(image: NativeImage, ids: Iterable[uuid.UUID], is_locked: bool = True) -> None:
    """Lock detections, or unlock them, as QuPath does when it saves."""
    _change(image, ids, lambda item, of: (item.lock, of.boxed(jc.BOOLEAN, is_locked)))


def reclassify(image: NativeImage, own_id: uuid.UUID, class_name: str) -> None:
    """Give an annotation another class, as QuPath does when it saves."""
    _change(image, [own_id], lambda item, of: (item.path_class, of.path_class(class_name, -1)))


def reshape(image: NativeImage, own_id: uuid.UUID, outline: shapely.Geometry) -> None:
    """Move or edit an annotation, as QuPath does when it saves."""
    _change(image, [own_id], lambda item, of: (item.roi, make_roi(of, outline)))


def _change(
    image: NativeImage,
    ids: Iterable[uuid.UUID],
    change: Callable[[PathObject, Catalog], tuple[object, object]],
) -> None:
    """Replace a field of some objects; `change` returns its old value and the new one."""
    with pytest.MonkeyPatch.context() as patched:
        # Packed detections, as many files have them, cannot be changed one by one.
        patched.setattr("qpnuclei.qupath.qpdata.data_file.packed_kind", lambda _: "")
        data_file = DataFile.parse(image.data_path.read_bytes(), "file")
    wanted = {str(own_id) for own_id in ids}
    for item, _ in walk(data_file._root()):
        if isinstance(item, PathObject) and item.id_string and item.id_string.text in wanted:
            contents = jf.contents(item.node)
            old, new = change(item, data_file._catalog)
            at = next(i for i, part in enumerate(contents) if part is old)
            contents[at] = new
            wanted.remove(item.id_string.text)
    assert not wanted
    with image.data_path.open("wb") as stream:
        data_file.write(stream.write)
