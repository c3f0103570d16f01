"""``project.qpproj`` and the small JSON files around it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpnuclei.choices import IGNORE_CLASS
from qpnuclei.errors import FormatError, NotFoundError, QpnucleiError, UsageError
from qpnuclei.qupath.model import ImageServer, PathClass, Project, packed_rgb
from qpnuclei.qupath.names import replace_lone_surrogates_in_json
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.system.arguments import checked_text
from qpnuclei.system.files import one_spelling_each, read_regular, resolved, unreadable
from qpnuclei.system.json_text import parse_json

if TYPE_CHECKING:
    from qpnuclei.nuclei.exports.rows import NucleusRows

Json = dict[str, Any]

#: Folder beside a project file in which qpnuclei keeps its runs and reports.
OWN_FOLDER = "qpnuclei"

#: Colours of QuPath's default classes.
DEFAULT_COLORS = {
    "Tumor": packed_rgb(200, 0, 0),
    "Stroma": packed_rgb(150, 200, 150),
    "Immune cells": packed_rgb(160, 90, 160),
    "Necrosis": packed_rgb(50, 50, 50),
    "Other": packed_rgb(255, 200, 0),
    "Region*": packed_rgb(0, 0, 180),
    IGNORE_CLASS: packed_rgb(180, 180, 180),
    "Positive": packed_rgb(250, 62, 62),
    "Negative": packed_rgb(112, 112, 225),
}
#: QuPath's default classes, for projects without a class list.
DEFAULT_CLASSES = tuple(PathClass(name, color) for name, color in DEFAULT_COLORS.items())


class ProjectFolder:
    """The files of a project that both backends read in the same way."""

    path: Path

    @property
    def classes(self) -> Sequence[PathClass]:
        """The project's class list."""
        return read_classes(self.classes_path)

    @property
    def classes_path(self) -> Path:
        """The file of the class list."""
        return self.path.parent / "classifiers" / "classes.json"

    def nuclei(self: Project, image: str, mpp: float | None = None) -> NucleusRows:
        """Return the nuclei of an image, from any program, as a table (see `Project.nuclei`)."""
        from qpnuclei.qupath.image_names import one_image
        from qpnuclei.qupath.nucleus_rows import nuclei_of
        from qpnuclei.qupath.pixel_size import AskedMpp

        entry = one_image(self.images, checked_text("image", image))
        return nuclei_of(self, entry, pixel_sizes=AskedMpp(mpp))


def data_file(project_folder: Path, entry_id: str) -> Path:
    """Return the file with the objects of an image: ``data/<entry ID>/data.qpdata``."""
    return project_folder / "data" / entry_id / "data.qpdata"


def read_json(path: Path, what: str) -> Json:
    """Read a JSON object.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file.
    qpnuclei.errors.FormatError
        If it is not JSON in UTF-8, or not an object; the error names line and column.
    """
    try:
        content = read_regular(path)
        if not content:
            raise FormatError(f"{path}: {what} is empty (0 bytes)", _backup_hint(path))
        text = content.decode("utf-8-sig")
        value = replace_lone_surrogates_in_json(parse_json(text), text)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: {what} is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise FormatError(
            f"{path}: {what} is broken at {where}: {error.msg}", _backup_hint(path)
        ) from None
    except ValueError as error:
        raise FormatError(f"{path}: {what} is broken: {error}", _backup_hint(path)) from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: {what} is a {type(value).__name__}, not an object")
    return value


def _backup_hint(path: Path) -> str:
    backup = path.with_name(f"{path.name}.backup")
    if backup.exists():
        return f"QuPath kept the previous version in {backup.name}: rename it"
    return "restore the file from a backup"


def to_json(value: Mapping[str, Any], *, pretty: bool = True) -> bytes:
    """Return JSON in QuPath's layout."""
    separators = None if pretty else (",", ":")
    text = json.dumps(
        value, ensure_ascii=False, indent=2 if pretty else None, separators=separators
    )
    return text.encode()


def is_project(path: Path) -> bool:
    """Tell whether a path is a QuPath project: a ``.qpproj`` file, or a folder with one."""
    if path.is_dir():
        return any(path.glob("*.qpproj"))
    return path.suffix.lower() == ".qpproj"


def one_of_each_project(paths: Iterable[Path]) -> list[Path]:
    """Return paths of projects without further spellings of the same project."""
    return one_spelling_each(paths, resolved_project)


def resolved_project(path: Path) -> Path:
    """Return the path that all spellings of a project share, its file and its folder among them."""
    try:
        return resolved(find_project_file(path))
    except QpnucleiError:  # opening it raises this, too
        return resolved(path)


def find_project_file(path: Path) -> Path:
    """Return `path` if it is a ``.qpproj`` file, otherwise the only ``.qpproj`` in that folder.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file or folder, or the folder contains no project.
    qpnuclei.errors.UsageError
        If it is another kind of file, or the folder contains several projects.
    qpnuclei.errors.SlideError
        If the folder is an image (Zarr).
    """
    if path.is_dir():
        found = sorted(path.glob("*.qpproj"))
        if not found:
            from qpnuclei.slides.readers import check_no_zarr  # imports tifffile

            check_no_zarr(path)
            raise NotFoundError(
                f"{path}: no QuPath project (*.qpproj) in this folder", "name the .qpproj file"
            )
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise UsageError(
                f"{path}: contains {len(found)} QuPath projects: {names}",
                "name the .qpproj file",
            )
        return found[0]
    if not path.exists():
        raise NotFoundError(f"{path}: no such file", "name a project.qpproj or its folder")
    if path.suffix.lower() != ".qpproj":
        raise UsageError(
            f"{path}: not a QuPath project", "name a file that ends in .qpproj, or its folder"
        )
    return path


def read_project(path: Path) -> Json:
    """Read a ``.qpproj`` and check the fields that the rest of the program relies on.

    Raises
    ------
    qpnuclei.errors.FormatError
        If it is not a QuPath project, or an entry has no usable ID or server.
    """
    project = read_json(path, "the project")
    images = project.get("images")
    if not isinstance(images, list) or ("version" not in project and "lastID" not in project):
        raise FormatError(
            f"{path}: not a project of QuPath 0.2 or later: no list of images, or no version",
            "name the .qpproj file that QuPath wrote, or its folder",
        )
    seen: set[str] = set()
    for number, entry in enumerate(images, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("serverBuilder"), dict):
            raise FormatError(f"{path}: image {number} has no server")
        own_id = entry_id(entry)
        if own_id is None:
            # The ID becomes part of a path: allow only digits.
            raise FormatError(
                f"{path}: image {number}: entryID {entry.get('entryID')!r:.80} is not an integer"
            )
        if own_id in seen:
            raise FormatError(f"{path}: two images have the entryID {own_id}")
        seen.add(own_id)
    return project


def entry_id(entry: Mapping[str, Any]) -> str | None:
    """Return the ID of an entry as text; None if it is not an integer."""
    value = entry.get("entryID")
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value)
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return value
    return None


def read_classes(path: Path) -> list[PathClass]:
    """Read ``classes.json``; no file means no classes.

    Raises
    ------
    qpnuclei.errors.FormatError
        If it is broken.
    """
    if not path.exists():
        return []
    items = read_json(path, "the class list").get("pathClasses")
    if not isinstance(items, list):
        raise FormatError(f"{path}: has no list of classes")
    classes = []
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str | None):
            raise FormatError(f"{path}: {item!r:.80} is not a class")
        color = item.get("color", item.get("colorRGB"))
        if item.get("name"):
            is_argb = isinstance(color, int) and -(2**31) <= color < 2**31
            classes.append(PathClass(item["name"], color if is_argb else None))
    return classes


def with_classes(path: Path, classes: Sequence[PathClass]) -> bytes | None:
    """Return ``classes.json`` with the missing `classes` added; None if none is missing.

    A project without the file has QuPath's default classes, so the file gets these, too.
    """
    known = {c.name for c in read_classes(path)}
    if path.exists():
        content = read_json(path, "the class list")
    else:
        content = {"pathClasses": [class_json(c) for c in DEFAULT_CLASSES]}
        known = {c.name for c in DEFAULT_CLASSES}
    missing = list({c.name: c for c in classes if c.name not in known}.values())
    if not missing:
        return None
    content["pathClasses"] = [*content["pathClasses"], *map(class_json, missing)]
    return to_json(content)


def class_json(path_class: PathClass) -> Json:
    """Return an element of ``classes.json``."""
    color = {} if path_class.color is None else {"color": path_class.color}
    return {"name": path_class.name, **color}


def image_server(builder: Mapping[str, Any]) -> ImageServer:
    """Read a server builder and the builders that it wraps."""
    types: list[str] = []
    inner: Any = builder
    while isinstance(inner, dict):
        if not _changes_nothing(inner):
            types.append(str(inner.get("builderType", "uri" if "uri" in inner else "")))
        last, inner = inner, inner.get("builder")
    metadata = server_metadata(builder) or {}
    arguments = last.get("args") or []
    return ImageServer(
        builder_types=tuple(types),
        provider=str(last.get("providerClassName", "")),
        uris=tuple(_uris(builder)),
        args=tuple(str(a) for a in arguments) if isinstance(arguments, list) else (),
        width=_whole(metadata.get("width")),
        height=_whole(metadata.get("height")),
        size_z=_whole(metadata.get("sizeZ")) or 1,
        size_t=_whole(metadata.get("sizeT")) or 1,
        mpp=pixel_calibration(builder).mpp_xy,
    )


def _changes_nothing(wrapper: Mapping[str, Any]) -> bool:
    """Tell whether a wrapper leaves level 0 of the image unchanged.

    QuPath wraps large images without levels in a pyramid on import, and keeps a rotation by 0° as a
    wrapper.
    """
    kind = wrapper.get("builderType")
    if kind == "pyramidize":
        return True
    if kind == "rotated":
        return wrapper.get("rotation") == "ROTATE_NONE"
    if kind == "affine":
        transform = wrapper.get("transform")
        if isinstance(transform, dict):
            transform = [transform.get(key) for key in ("m00", "m10", "m01", "m11", "m02", "m12")]
        return transform == [1, 0, 0, 1, 0, 0]
    return False


def server_metadata(builder: Mapping[str, Any]) -> Json | None:
    """Return the metadata of the outermost builder that has metadata."""
    inner: Any = builder
    while isinstance(inner, dict):
        if isinstance(inner.get("metadata"), dict):
            metadata: Json = inner["metadata"]
            return metadata
        inner = inner.get("builder")
    return None


def pixel_calibration(builder: Mapping[str, Any]) -> PixelCalibration:
    """Return the pixel size of an image in the project."""
    calibration = (server_metadata(builder) or {}).get("pixelCalibration")
    if not isinstance(calibration, dict):
        return PixelCalibration()
    return PixelCalibration(
        _micrometres(calibration.get("pixelWidth")), _micrometres(calibration.get("pixelHeight"))
    )


def _micrometres(quantity: object) -> float | None:
    if not isinstance(quantity, dict):
        return None
    value, unit = quantity.get("value"), quantity.get("unit")
    # The micro sign is U+00B5; the Greek letter U+03BC is accepted as well.
    if unit not in ("\u00b5m", "\u03bcm", "um") or not isinstance(value, int | float):
        return None
    try:
        size = float(value)
    except OverflowError:  # an integer too large for float
        return None
    return size if math.isfinite(size) and size > 0 else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and 0 < value < 2**31 else None


def _uris(builder: Mapping[str, Any]) -> Iterator[str]:
    """Yield the URIs of all nested builders (a sparse image has several)."""
    pending: list[Any] = [builder]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("uri"), str):
                yield value["uri"]
            pending += reversed(list(value.values()))
        elif isinstance(value, list):
            pending += reversed(value)
