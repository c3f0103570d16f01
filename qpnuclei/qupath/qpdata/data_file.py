"""Read, edit and write ``data.qpdata``, the file in which QuPath stores one image's objects.

The stream's top-level items are, in this order: ``Data file version 3`` (2 in QuPath 0.2); a
string that describes the server; a Locale; the ImageType; colour deconvolution stains or null; the
Workflow; the PathObjectHierarchy; a map of properties; ``EOF``. QuPath recognises them by class,
and so does this module. Unknown items are written back unchanged.
"""

from __future__ import annotations

import contextlib
import json
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import is_not
from typing import Any

import numpy as np

from qpnuclei.errors import FormatError, UsageError
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.qupath.model import Annotation, Detections, Edit, TmaCore
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata import java_nodes, java_parser, java_writer
from qpnuclei.qupath.qpdata.annotations import (
    annotation_node,
    check_annotation,
    id_metadata,
    read_annotation,
    read_core,
)
from qpnuclei.qupath.qpdata.detections import FileDetections, packed_ids
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.java_nodes import (
    BlockData,
    Content,
    JavaEnum,
    JavaObject,
    JavaString,
    Value,
)
from qpnuclei.qupath.qpdata.new_detections import (
    Additions,
    NewDetections,
    check_same,
    uniform_parts,
)
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.path_objects import (
    DETECTION_KINDS,
    PathObject,
    is_packable,
    located,
    object_count,
    split_children,
    walk,
)
from qpnuclei.qupath.qpdata.record_packer import RecordPacker
from qpnuclei.qupath.qpdata.rois import Plane
from qpnuclei.qupath.qpdata.stains import parse_stains, stains_node
from qpnuclei.slides.stains import Stains
from qpnuclei.system.compiled import loops_are_loaded
from qpnuclei.system.memory import no_collection

#: Up to this many detections, parsing takes less time than loading Numba for the compiled loops.
_FEW = 500
_VERSION_PREFIX = b"Data file version"
_TYPE_COUNTS = {
    "root": "Root objects",
    "annotation": "Annotations",
    "core": "TMA cores",
    "detection": "Detections",
    "cell": "Cells",
    "tile": "Tiles",
}


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of a file, how many there are of each kind, and the image's properties.

    Only text properties are included.
    """

    annotations: tuple[Annotation, ...]
    detections: Detections
    type_counts: Mapping[str, int]
    properties: Mapping[str, str]
    cores: tuple[TmaCore, ...] = ()

    def summary(self) -> dict[str, object]:
        """Return the ``hierarchy`` of QuPath's ``summary.json``."""

        def classes(names: Sequence[str | None]) -> dict[str, int]:
            return dict(Counter("Unclassified" if n is None else n for n in names))

        return {
            "nObjects": sum(self.type_counts.values()),
            "objectTypeCounts": dict(self.type_counts),
            "annotationClassificationCounts": classes([a.class_name for a in self.annotations]),
            "detectionClassificationCounts": classes(self.detections.class_names),
        }


class DataFile:
    """The content of one ``data.qpdata``.

    Parameters
    ----------
    items : list of contents
        The stream's top-level items.
    catalog : Catalog
        Creates the new objects.
    source : str
        Name of the file in errors.
    hint : callable, optional
        Returns the hint for errors about a damaged file.
    """

    def __init__(
        self,
        items: list[Content],
        catalog: Catalog,
        source: str,
        hint: Callable[[], str] = str,
    ) -> None:
        self._items = items
        self._catalog = catalog
        self._source = source
        self._hint = hint

    @classmethod
    def parse(cls, data: bytes, source: str, hint: Callable[[], str] = str) -> DataFile:
        """Parse the bytes of a file.

        Raises
        ------
        qpnuclei.errors.FormatError
            If they are not a Java object stream, are truncated, or hold no image objects.
        """
        with _refused(hint), no_collection():
            few = 0 if loops_are_loaded() else _FEW
            stream = java_parser.parse(data, source, RecordPacker(is_packable, few))
            _check_version(stream.items[0] if stream.items else None, source)
            last = stream.items[-1]
            if not isinstance(last, JavaString) or last.data != b"EOF":
                raise FormatError(f"{source}: byte {len(data)}: ends before its end mark")
        made = cls(stream.items, Catalog(stream.nodes), source, hint)
        with made._errors():
            made._root()
        return made

    @classmethod
    def parse_header(cls, data: bytes, source: str, hint: Callable[[], str] = str) -> DataFile:
        """Parse only as far as image type and stains, which precede the objects.

        Raises
        ------
        qpnuclei.errors.FormatError
            As `parse`, for the part that is read.
        """
        items: list[Content] = []
        with _refused(hint):
            for item in java_parser.parse_items(data, source):
                _check_version(item if not items else items[0], source)
                items.append(item)
                if isinstance(item, JavaObject) and item.class_name in (jc.WORKFLOW, jc.STAINS):
                    break
        return cls(items, Catalog(), source, hint)

    @classmethod
    def new(
        cls,
        builder: Mapping[str, Any],
        image_type: str,
        stains: Stains | None,
        *,
        qupath_version: str,
        entry_property: str,
    ) -> DataFile:
        """Make the file of an image without objects, as QuPath 0.3 to 0.7 lay it out.

        Parameters
        ----------
        builder : mapping
            The image's ``serverBuilder`` in the project.
        image_type : str
            ``"BRIGHTFIELD_H_E"``, ``"UNSET"``, ...
        stains : Stains or None
        qupath_version : str
            QuPath version that the file states.
        entry_property : str
            Project file and entry ID, as QuPath notes them: ``"/path/project.qpproj::1"``.
        """
        server = {"dataVersion": 3, "qupathVersion": qupath_version, "server": builder}
        server_json = json.dumps(server, ensure_ascii=False, separators=(",", ":"))
        properties = {"PROJECT_ENTRY_ID": entry_property}
        catalog = Catalog()
        empty = JavaString(b"")
        locale = catalog.make(
            jc.LOCALE,
            {
                "hashcode": -1,
                "country": catalog.string("US"),
                "extensions": empty,
                "language": catalog.string("en"),
                "script": empty,
                "variant": empty,
            },
            [],
        )
        return cls(
            [
                _version_block(),
                JavaString.of(server_json),
                locale,
                catalog.image_type(image_type),
                None if stains is None else stains_node(catalog, stains),
                catalog.make(jc.WORKFLOW, extra=[BlockData(struct.pack(">ii", 1, 0))]),
                _hierarchy_node(catalog),
                catalog.hash_map(
                    {JavaString.of(k): JavaString.of(v) for k, v in properties.items()}
                ),
                JavaString.of("EOF"),
            ],
            catalog,
            "new data file",
        )

    @classmethod
    def of_objects(cls, catalog: Catalog, objects: Sequence[Content]) -> DataFile:
        """Make a minimal file from which QuPath can read the given objects.

        Parameters
        ----------
        catalog : Catalog
            The catalog that created the objects.
        objects : sequence of contents
            Directly under the image.
        """
        made = cls([_version_block(), _hierarchy_node(catalog)], catalog, "new objects")
        PathObject.of(made._root()).set_children(list(objects))
        return made

    @property
    def image_type(self) -> str | None:
        """Name of QuPath's ``ImageType``; None if the file has none."""
        with self._errors():
            for item in self._items:
                if isinstance(item, JavaEnum) and item.desc.name == jc.IMAGE_TYPE:
                    return item.name.text
        return None

    @property
    def stains(self) -> Stains | None:
        """Colour deconvolution stains; None if the image has none."""
        node = self._find(jc.STAINS)
        if node is None:
            return None
        with self._errors():
            for item in jf.contents(node):
                if isinstance(item, JavaString):
                    return parse_stains(item.text)
            raise FormatError("colour deconvolution stains without values")

    @property
    def properties(self) -> dict[str, str]:
        """Properties of the image whose values are texts."""
        if self._find(jc.HASH_MAP) is None:
            return {}
        with self._errors():
            items = self._properties()[1:]
        return {
            name.text: value.text
            for name, value in zip(items[::2], items[1::2], strict=False)
            if isinstance(name, JavaString) and isinstance(value, JavaString)
        }

    def read(self) -> Objects:
        """Read annotations, and detections lazily: a column is read on first access.

        Raises
        ------
        qpnuclei.errors.FormatError
            If objects are not written as QuPath writes them.
        """
        with self._errors():
            return self._read()

    def remove(self, ids: Collection[uuid.UUID]) -> None:
        """Remove our detections and annotations; their children move up.

        Raises
        ------
        qpnuclei.errors.UsageError
            If one of them is not ours or does not exist.
        """
        foreign = [i for i in ids if not is_ours(i)]
        if foreign:
            raise UsageError(f"{foreign[0]} was not written by qpnuclei and is not removed")
        if ids:
            with self._errors():
                self._remove({str(i) for i in ids})

    def set_properties(self, values: Mapping[str, str]) -> None:
        """Set properties of the image; the others stay as they are."""
        if not values:
            return
        with self._errors():
            items = self._properties()
            for name, value in values.items():
                for index in range(1, len(items) - 1, 2):
                    key = items[index]
                    if isinstance(key, JavaString) and key.text == name:
                        items[index + 1] = JavaString.of(value)
                        break
                else:
                    items += [JavaString.of(name), JavaString.of(value)]
            block = items[0]
            if not isinstance(block, BlockData) or len(block.data) != 8:
                raise FormatError("the number of the image's properties is missing")
            # Java allocates by the number of entries and ignores the written capacity.
            size = struct.pack(">i", (len(items) - 1) // 2)
            items[0] = BlockData(block.data[:4] + size, block.is_long)

    def add(self, edit: Edit) -> Additions:
        """Add the new objects of an edit, and its workflow step.

        The new detections are created while the file is written, so `read` works only after writing
        and parsing.

        Returns
        -------
        Additions
            For `withdraw`.

        Raises
        ------
        qpnuclei.errors.UsageError
            If the edit has a duplicate UUID, one that is in use, or an unknown annotation.
        """
        additions, ids = Additions.of(edit)
        with self._errors():
            self._check_free(ids)
            new = [annotation_node(self._catalog, annotation) for annotation in edit.annotations]
            parents: dict[int | None, PathObject] = {None: PathObject.of(self._root())}
            if any(parent is not None for parent in additions.counts):
                parents.update(enumerate([*self._annotations(), *map(PathObject.of, new)]))
            for parent in additions.counts:
                if parent not in parents:
                    raise UsageError(f"{self._source} has no annotation number {parent}")
                view = parents[parent]
                plane = Plane() if view.roi is None else Plane.of(view.roi)
                detections = NewDetections(self._catalog, additions, parent, plane)
                view.set_children([*view.children, detections])
            if new:
                parents[None].set_children([*parents[None].children, *new])
            if edit.workflow_step is not None:
                self._add_step(*edit.workflow_step)
        return additions

    def withdraw(self, additions: Additions, grid_px: float = 0.0) -> None:
        """Remove the additions of an edit again, checking that all of them are there.

        Parameters
        ----------
        additions : Additions
            What `add` returned.
        grid_px : float
            Grid to which the writer may have rounded vertices of outlines with holes.

        Raises
        ------
        qpnuclei.errors.FormatError
            If something is missing or has other values.
        """
        edit = additions.edit
        with self._errors():
            annotations = self._annotations()
            root = PathObject.of(self._root())
            if edit.annotations:
                kept, nodes = _split_last(root.children, len(edit.annotations))
                views = annotations[-len(edit.annotations) :]
                if [view.node for view in views] != nodes:
                    raise FormatError("a new annotation is missing, or in another place")
                for view, new in zip(views, edit.annotations, strict=True):
                    check_annotation(read_annotation(view, 0, None), new)
                root.set_children(kept)
            parents: dict[int | None, PathObject] = {None: root, **dict(enumerate(annotations))}
            for parent, counts in additions.counts.items():
                view = parents[parent]
                kept, left = _split_last(view.children, sum(counts.values()))
                view.set_children(kept)
                for group in additions.groups(parent):
                    for part in uniform_parts(group):
                        items, left = split_children(left, len(part.ids))
                        check_same(_read_items(items), part, grid_px)
            if edit.workflow_step is not None:
                contents, version, count = self._workflow()
                contents.pop()
                contents[0] = BlockData(struct.pack(">ii", version, count - 1))

    def write(self, emit: Callable[[bytes], object]) -> None:
        """Write the file, in pieces, to `emit`."""
        java_writer.write(self._items, emit)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return _refused(self._hint, self._source)

    def _find(self, class_name: str) -> JavaObject | None:
        for item in self._items:
            if isinstance(item, JavaObject) and item.class_name == class_name:
                return item
        return None

    def _properties(self) -> list[Content]:
        """Return the contents of the map of properties: its sizes, then keys and values."""
        node = self._find(jc.HASH_MAP)
        if node is None:
            node = self._catalog.hash_map({})
            self._items.insert(len(self._items) - 1, node)  # before the end mark
        return jf.contents(node)

    def _root(self) -> JavaObject:
        hierarchy = self._find(jc.HIERARCHY)
        root = None if hierarchy is None else jf.reference(hierarchy, "rootObject")
        if not isinstance(root, JavaObject) or root.class_name != jc.ROOT:
            raise FormatError("holds no objects of an image")
        return root

    def _annotations(self) -> list[PathObject]:
        """Return the annotations in the order of their handles."""
        return [
            item
            for item, _ in walk(self._root())
            if isinstance(item, PathObject) and item.kind == "annotation"
        ]

    def _read(self) -> Objects:
        annotations: list[Annotation] = []
        cores: list[TmaCore] = []
        nearest: dict[PathObject, int] = {}  # handle of the annotation that an object is or is in
        detections: list[tuple[PathObject | Packed, int]] = []
        counts: Counter[str] = Counter()
        for item, ancestors in walk(self._root()):
            parent = nearest[ancestors[-1]] if ancestors else -1
            if isinstance(item, Packed):
                detections.append((item, parent))
                continue
            nearest[item] = parent
            if item.kind in DETECTION_KINDS:
                detections.append((item, parent))
                continue
            counts[_TYPE_COUNTS[item.kind]] += 1
            if item.kind == "annotation":
                nearest[item] = len(annotations)
                own_parent = None if parent < 0 else parent
                with located(item.node.offset):
                    annotations.append(read_annotation(item, len(annotations), own_parent))
            elif item.kind == "core" and item.roi is not None:
                with located(item.node.offset):
                    cores.append(read_core(item, -1 - len(cores)))
        table = FileDetections(detections, self._errors)
        for kind, count in table.kind_counts().items():
            counts[_TYPE_COUNTS[kind]] += count
        return Objects(tuple(annotations), table, counts, self.properties, tuple(cores))

    def _check_free(self, ids: Container[str]) -> None:
        """Raise UsageError if an object of the file has one of some new UUIDs."""
        for item, _ in walk(self._root()) if ids else ():
            if isinstance(item, Packed):
                found = [text for _, texts in packed_ids(item) for text in texts if text in ids]
            else:
                own_id = item.id_string
                found = [own_id.text] if own_id is not None and own_id.text in ids else []
            if found:
                raise UsageError(f"{self._source} already has an object {found[0]}")

    def _remove(self, ids: set[str]) -> None:
        left = set(ids)
        parents = [view for view, _ in walk(self._root()) if isinstance(view, PathObject)]
        for view in reversed(parents):  # innermost first: what moves up is already without ours
            children: list[Content] = []
            for item in view.children:
                if isinstance(item, Packed):
                    stays = np.ones(len(item), bool)
                    for rows, texts in packed_ids(item):
                        stays[rows] = [text not in ids for text in texts]
                        left.difference_update(texts)
                    if stays.any():
                        children.append(item if stays.all() else item.take(stays))
                    continue
                child = PathObject.of(item) if isinstance(item, JavaObject) else None
                own_id = None if child is None else child.id_string
                if child is None or own_id is None or own_id.text not in ids:
                    children.append(item)
                elif child.kind not in (*DETECTION_KINDS, "annotation"):
                    raise UsageError(
                        f"{own_id.text} is a {child.kind}: only annotations and detections can be"
                    )
                else:
                    left.discard(own_id.text)
                    children += child.children
            if len(children) != len(view.children) or any(map(is_not, children, view.children)):
                view.set_children(children)
        if left:
            raise UsageError(f"{self._source} has no object {min(left)} to remove")

    def _add_step(self, name: str, script: str) -> None:
        contents, version, count = self._workflow()
        contents[0] = BlockData(struct.pack(">ii", version, count + 1))
        values: dict[str, Value] = {"name": JavaString.of(name), "script": JavaString.of(script)}
        contents.append(self._catalog.make(jc.SCRIPT_STEP, values))

    def _workflow(self) -> tuple[list[Content], int, int]:
        """Return the workflow's contents, its version and its number of steps."""
        workflow = self._find(jc.WORKFLOW)
        if workflow is None:
            raise FormatError("has no workflow")
        contents = jf.contents(workflow)
        block = contents[0] if contents else None
        if not isinstance(block, BlockData) or len(block.data) != 8:
            raise FormatError("the workflow's number of steps is missing")
        version, count = struct.unpack(">ii", block.data)
        return contents, version, count


@contextlib.contextmanager
def _refused(hint: Callable[[], str], source: str = "") -> Iterator[None]:
    """Add the file's name and a hint to errors about its content."""
    try:
        yield
    except FormatError as error:
        what = f"{source}: {error.what}" if source else error.what
        raise FormatError(what, error.hint or hint()) from None


def _hierarchy_node(catalog: Catalog) -> JavaObject:
    """Make the hierarchy of an image without objects."""
    root = catalog.path_object(jc.ROOT, metadata=id_metadata(catalog, uuid.uuid4()))
    return catalog.make(jc.HIERARCHY, {"rootObject": root})


def _version_block() -> BlockData:
    version = java_nodes.encode_utf("Data file version 3")
    return BlockData(len(version).to_bytes(2, "big") + version)


def _check_version(item: Content, source: str) -> None:
    if not isinstance(item, BlockData) or item.data[2:19] != _VERSION_PREFIX:
        raise FormatError(f"{source}: a Java object stream, but no QuPath data file")


def _split_last(children: Sequence[Content], count: int) -> tuple[list[Content], list[Content]]:
    """Split off the last `count` children."""
    return split_children(children, object_count(children) - count)


def _read_items(items: Sequence[Content]) -> FileDetections:
    """Read detections."""
    views = (PathObject.of(item) if isinstance(item, JavaObject) else item for item in items)
    return FileDetections([(i, -1) for i in views if isinstance(i, PathObject | Packed)])
