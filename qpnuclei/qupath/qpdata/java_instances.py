"""Make new instances of Java and QuPath classes.

Their class descriptors are the same in QuPath 0.2 to 0.7, so all of them read the new instances.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_nodes import (
    SC_EXTERNALIZABLE,
    SC_WRITE_METHOD,
    BlockData,
    ClassDesc,
    Content,
    Field,
    JavaArray,
    JavaEnum,
    JavaObject,
    JavaString,
    Node,
    Part,
    Value,
)
from qpnuclei.qupath.qpdata.path_classes import path_class_names


class Catalog:
    """Creates instances. They share strings and descriptors with the file, as in Java.

    Parameters
    ----------
    nodes : iterable of nodes
        Nodes of the file; empty for a new file.
    """

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self._descs: dict[str, ClassDesc] = {}
        self._boxed: dict[tuple[str, bytes], JavaObject] = {}
        self._strings: dict[str, JavaString] = {}
        self._path_classes: dict[tuple[str, ...], JavaObject] = {}
        self._name_lists: dict[tuple[str, ...], tuple[JavaObject, JavaObject]] = {}
        for node in nodes:
            if isinstance(node, ClassDesc) and jc.is_known(node):
                self._descs.setdefault(node.name, node)
            elif isinstance(node, JavaString) and node.data == b"Object ID":
                self._strings.setdefault("Object ID", node)
            elif isinstance(node, JavaObject) and node.class_name in (jc.INTEGER, jc.BOOLEAN):
                self._boxed.setdefault((node.class_name, node.parts[-1].primitives), node)
            elif isinstance(node, JavaObject) and node.class_name == jc.PATH_CLASS:
                self._path_classes.setdefault(path_class_names(node), node)

    def desc(self, name: str) -> ClassDesc:
        """Return the descriptor of a known class."""
        if name not in self._descs:
            uid, flags, super_name, fields = jc.DESCRIPTORS[name]
            self._descs[name] = ClassDesc(
                name,
                uid,
                flags,
                tuple(Field(code, f, self.string(t) if t else None) for code, f, t in fields),
                super_desc=None if super_name is None else self.desc(super_name),
            )
        return self._descs[name]

    def string(self, text: str) -> JavaString:
        """Return the shared string with this text."""
        if text not in self._strings:
            self._strings[text] = JavaString.of(text)
        return self._strings[text]

    def make(
        self,
        name: str,
        values: Mapping[str, Value | int | float | bool] | None = None,
        extra: Sequence[Content] | None = None,
    ) -> JavaObject:
        """Return a new instance; fields without a value are null or zero.

        Parameters
        ----------
        name : str
            Class.
        values : mapping of field name to value
        extra : sequence of contents
            Data that the class writes after its fields.
        """
        values = values or {}
        desc = self.desc(name)
        chain: list[ClassDesc] = []
        if desc.flags & SC_EXTERNALIZABLE:
            return JavaObject(desc, [Part(desc, b"", [], list(extra or ()))])
        current: object = desc
        while isinstance(current, ClassDesc):
            chain.insert(0, current)
            current = current.super_desc
        parts = []
        for part_desc in chain:
            primitives = jf.primitives_bytes(part_desc, values)
            references = [values.get(f.name) for f in part_desc.object_fields]
            own = list(extra or ()) if part_desc.flags & SC_WRITE_METHOD else None
            parts.append(Part(part_desc, primitives, references, own))  # type: ignore[arg-type]
        return JavaObject(desc, parts)

    def boxed(self, name: str, value: int | bool) -> JavaObject:
        """Return the shared ``Integer`` or ``Boolean`` of a value."""
        made = self.make(name, {"value": value})
        return self._boxed.setdefault((name, made.parts[-1].primitives), made)

    def objects(self, items: Iterable[Value]) -> JavaArray:
        """Return a new ``Object[]``."""
        return JavaArray(self.desc(jc.OBJECT_ARRAY), None, list(items))

    def floats(self, values: npt.ArrayLike) -> JavaArray:
        """Return a new ``float[]``."""
        return JavaArray(self.desc(jc.FLOAT_ARRAY), np.asarray(values, ">f4").tobytes(), None)

    def array_list(self, items: Sequence[Value]) -> JavaObject:
        """Return a new ``ArrayList``."""
        size = BlockData(len(items).to_bytes(4, "big"))
        return self.make(jc.ARRAY_LIST, {"size": len(items)}, [size, *items])

    def hash_map(self, items: Mapping[JavaString, Value]) -> JavaObject:
        """Return a new ``HashMap``."""
        capacity = 16
        while len(items) > 0.75 * capacity:
            capacity *= 2
        sizes = capacity.to_bytes(4, "big") + len(items).to_bytes(4, "big")
        pairs = [value for pair in items.items() for value in pair]
        return self.make(
            jc.HASH_MAP,
            {"loadFactor": 0.75, "threshold": capacity * 3 // 4},
            [BlockData(sizes), *pairs],
        )

    def metadata(self, items: Iterable[tuple[JavaString, JavaString]]) -> JavaObject:
        """Return a new ``MetadataMap``."""
        pairs = list(items)
        keys = self.objects(key for key, _ in pairs)
        values = self.objects(value for _, value in pairs)
        return self.make(jc.METADATA_MAP, extra=[self.boxed(jc.INTEGER, 1), keys, values])

    def measurement_names(self, names: tuple[str, ...]) -> tuple[JavaObject, JavaObject]:
        """Return the list of names and the map of their indices that closed lists share."""
        if names not in self._name_lists:
            strings = [JavaString.of(name) for name in names]
            inner = self.array_list(strings)
            outer = self.make(jc.UNMODIFIABLE_LIST, {"list": inner, "c": inner})
            indices = {s: self.boxed(jc.INTEGER, i) for i, s in enumerate(strings)}
            self._name_lists[names] = outer, self.hash_map(indices)
        return self._name_lists[names]

    def measurements(self, values: Mapping[str, float]) -> JavaObject:
        """Return an open list of measurements as double, which QuPath can extend."""
        strings = [JavaString.of(name) for name in values]
        doubles = np.array([*values.values()], ">f8").tobytes()
        return self.make(
            jc.DOUBLE_LIST,
            {
                "isClosed": False,
                "map": self.hash_map({s: self.boxed(jc.INTEGER, i) for i, s in enumerate(strings)}),
                "names": self.array_list(strings),
                "values": JavaArray(self.desc(jc.DOUBLE_ARRAY), doubles, None),
            },
        )

    def path_object(
        self,
        class_name: str,
        *,
        metadata: JavaObject,
        name: str | None = None,
        color: int | None = None,
        measurements: JavaObject | None = None,
        is_locked: bool = False,
        path_class: JavaObject | None = None,
        roi: JavaObject | None = None,
        nucleus: JavaObject | None = None,
    ) -> JavaObject:
        """Return a new PathObject without children; only a cell has a nucleus, the root no ROI."""
        extra: list[Content] = [
            None if name is None else JavaString.of(name),
            None if color is None else self.boxed(jc.INTEGER, color),
            metadata,
            measurements,
            BlockData(bytes(4)),  # number of children
        ]
        if class_name != jc.ROOT:
            no_probability = BlockData(np.array(np.nan, ">f8").tobytes())
            extra += [self.boxed(jc.BOOLEAN, is_locked), path_class, roi, no_probability]
        if class_name == jc.CELL:
            extra.append(nucleus)
        return self.make(class_name, extra=extra)

    def path_class(self, name: str, color: int | None) -> JavaObject:
        """Return the ``PathClass`` with a name (``"A: B"`` is B below A); make it if necessary."""
        names = tuple(part.strip() for part in name.split(": "))
        if names not in self._path_classes:
            parent = self.path_class(": ".join(names[:-1]), color) if len(names) > 1 else None
            self._path_classes[names] = self.make(
                jc.PATH_CLASS,
                {
                    "colorRGB": None if color is None else self.boxed(jc.INTEGER, color),
                    "name": JavaString.of(names[-1]),
                    "parentClass": parent,
                },
            )
        return self._path_classes[names]

    def image_type(self, name: str) -> JavaEnum:
        """Return a constant of QuPath's ``ImageType``."""
        return JavaEnum(self.desc(jc.IMAGE_TYPE), JavaString.of(name))
