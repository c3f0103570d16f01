"""Read, edit and write ``data.qpdata``, the file in which QuPath stores one image's objects.

The stream's top-level items are, in this order: ``Data file version 3`` (2 in QuPath 0.2); a
string that describes the server; a Locale; the ImageType; colour deconvolution stains or null; the
Workflow; the PathObjectHierarchy; a map of properties; ``EOF``. QuPath recognises them by class,
and so does this module. Unknown items are written back unchanged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from qpnuclei.errors import FormatError, UsageError
from qpnuclei.qupath.model import Edit, check_ours
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata import java_parser, java_writer
from qpnuclei.qupath.qpdata.annotations import annotation_node, check_annotation, read_annotations
from qpnuclei.qupath.qpdata.detections import FileDetections
from qpnuclei.qupath.qpdata.hierarchy import (
    Objects,
    annotations_of,
    check_free,
    read_hierarchy,
    remove_objects,
)
from qpnuclei.qupath.qpdata.image_properties import read_properties, set_properties
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.java_nodes import BlockData, Content, JavaEnum, JavaObject, JavaString
from qpnuclei.qupath.qpdata.new_detections import (
    Additions,
    NewDetections,
    check_same,
    uniform_parts,
)
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.path_objects import (
    PathObject,
    are_annotations,
    object_count,
    packed_kind,
    split_children,
)
from qpnuclei.qupath.qpdata.record_packer import RecordPacker
from qpnuclei.qupath.qpdata.rois import Plane
from qpnuclei.qupath.qpdata.stains import parse_stains
from qpnuclei.qupath.qpdata.workflow import add_step, remove_last_step
from qpnuclei.slides.stains import Stains
from qpnuclei.system.compiled import loops_are_loaded
from qpnuclei.system.memory import no_collection

#: Up to this many detections, parsing takes less time than loading Numba for the compiled loops.
_FEW = 500
_VERSION_PREFIX = b"Data file version"


class DataFile:
    """The content of one ``data.qpdata``.

    Parameters
    ----------
    items : list of contents
        The stream's top-level items.
    catalog : Catalog
        Creates new objects.
    source : str
        Name of the file, for errors.
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
            If they are not a Java object stream, are truncated, or contain no objects of an image.
        """
        with _refused(hint), no_collection():
            few = 0 if loops_are_loaded() else _FEW
            stream = java_parser.parse(data, source, RecordPacker(packed_kind, few))
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
        """Parse only image type and stains, which come before the objects.

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
        """Text properties of the image."""
        node = self._find(jc.HASH_MAP)
        if node is None:
            return {}
        with self._errors():
            return read_properties(node)

    def read(self) -> Objects:
        """Read annotations, and detections lazily: a column is read on first access.

        Raises
        ------
        qpnuclei.errors.FormatError
            If objects are not in the form that QuPath writes.
        """
        with self._errors():
            return read_hierarchy(self._root(), self.properties, self._errors)

    def remove(self, rows: Collection[int], handles: Collection[int] = ()) -> None:
        """Remove our detections in these rows and annotations with these handles.

        Their children move up.

        Raises
        ------
        qpnuclei.errors.UsageError
            If an object is not ours or does not exist.
        """
        if not (rows or handles):
            return
        objects = self.read()
        detections, annotations = objects.detections, objects.annotations
        for kind, numbers, count in (
            ("detection", rows, len(detections)),
            ("annotation", handles, len(annotations)),
        ):
            if numbers and not 0 <= min(numbers) <= max(numbers) < count:
                raise UsageError(f"{self._source} has no {kind} number {max(numbers)} to remove")
        # Without reading all UUIDs, which takes longer.
        check_ours(detections.ids[row] for row in rows if not detections.ours[row])
        check_ours(annotations[handle].id for handle in handles)
        with self._errors():
            remove_objects(self._root(), rows, handles)

    def set_properties(self, values: Mapping[str, str]) -> None:
        """Set properties of the image; all others are unchanged."""
        if not values:
            return
        with self._errors():
            node = self._find(jc.HASH_MAP)
            if node is None:
                node = self._catalog.hash_map({})
                self._items.insert(len(self._items) - 1, node)  # before the end mark
            set_properties(node, values)

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
            If the edit has a duplicate UUID, a UUID that is in use, or an unknown parent.
        """
        additions, ids = Additions.of(edit)
        with self._errors():
            check_free(self._root(), ids, self._source)
            new = [annotation_node(self._catalog, annotation) for annotation in edit.annotations]
            root = PathObject.of(self._root())
            if new:
                root.set_children([*root.children, *new])
            parents = self._parents(additions)
            for parent in additions.counts:
                if parent not in parents:
                    raise UsageError(f"{self._source} has no annotation number {parent}")
                view = parents[parent]
                plane = Plane() if view.roi is None else Plane.of(view.roi)
                children = view.children
                at = len(children) - (len(new) if parent is None else 0)
                children.insert(at, NewDetections(self._catalog, additions, parent, plane))
                view.set_children(children)
            if edit.workflow_step is not None:
                add_step(self._workflow(), self._catalog, *edit.workflow_step)
        return additions

    def withdraw(self, additions: Additions, grid_px: float = 0.0) -> None:
        """Check that all additions of an edit are in the file, and remove them.

        Parameters
        ----------
        additions : Additions
            The result of `add`.
        grid_px : float
            Grid to which the writer may have rounded vertices of outlines with holes.

        Raises
        ------
        qpnuclei.errors.FormatError
            If an addition is missing or has other values.
        """
        edit = additions.edit
        with self._errors():
            parents = self._parents(additions)
            if edit.annotations:
                kept, last = _split_last(parents[None].children, len(edit.annotations))
                found = read_annotations([(item, None) for item in _annotations(last)])
                for own, new in zip(found, edit.annotations, strict=True):
                    check_annotation(own, new)
                parents[None].set_children(kept)
            for parent, counts in additions.counts.items():
                view = parents[parent]
                kept, left = _split_last(view.children, sum(counts.values()))
                view.set_children(kept)
                for group in additions.groups(parent):
                    for part in uniform_parts(group):
                        items, left = split_children(left, len(part.ids))
                        check_same(FileDetections([(i, -1) for i in _views(items)]), part, grid_px)
            if edit.workflow_step is not None:
                remove_last_step(self._workflow())

    def write(self, emit: Callable[[bytes], object]) -> None:
        """Write the file, in pieces, to `emit`."""
        java_writer.write(self._items, emit)

    def _parents(self, additions: Additions) -> dict[int | None, PathObject]:
        """Return the root (None), and the annotations below which there are new detections."""
        handles = [parent for parent in additions.counts if parent is not None]
        found = annotations_of(self._root(), handles) if handles else {}
        parents: dict[int | None, PathObject] = {None: PathObject.of(self._root())}
        parents.update(found.items())
        return parents

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return _refused(self._hint, self._source)

    def _find(self, class_name: str) -> JavaObject | None:
        for item in self._items:
            if isinstance(item, JavaObject) and item.class_name == class_name:
                return item
        return None

    def _root(self) -> JavaObject:
        hierarchy = self._find(jc.HIERARCHY)
        root = None if hierarchy is None else jf.reference(hierarchy, "rootObject")
        if not isinstance(root, JavaObject) or root.class_name != jc.ROOT:
            raise FormatError("contains no objects of an image")
        return root

    def _workflow(self) -> JavaObject:
        workflow = self._find(jc.WORKFLOW)
        if workflow is None:
            raise FormatError("has no workflow")
        return workflow


@contextlib.contextmanager
def _refused(hint: Callable[[], str], source: str = "") -> Iterator[None]:
    """Add the file's name and a hint to errors about its content."""
    try:
        yield
    except FormatError as error:
        what = f"{source}: {error.what}" if source else error.what
        raise FormatError(what, error.hint or hint()) from None


def _check_version(item: Content, source: str) -> None:
    if not isinstance(item, BlockData) or item.data[2:19] != _VERSION_PREFIX:
        raise FormatError(f"{source}: a Java object stream, but not a QuPath data file")


def _split_last(children: Sequence[Content], count: int) -> tuple[list[Content], list[Content]]:
    """Split off the last `count` children."""
    return split_children(children, object_count(children) - count)


def _views(items: Sequence[Content]) -> Iterator[PathObject | Packed]:
    for item in items:
        if isinstance(item, Packed):
            yield item
        elif isinstance(item, JavaObject):
            yield PathObject.of(item)


def _annotations(items: Sequence[Content]) -> list[PathObject | Packed]:
    views = list(_views(items))
    for view in views:
        if not (are_annotations(view) if isinstance(view, Packed) else view.kind == "annotation"):
            raise FormatError("a new annotation is missing, or in another place")
    return views
