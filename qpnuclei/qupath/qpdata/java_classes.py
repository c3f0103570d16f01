"""The Java and QuPath classes of a data file: reading their fields, making new instances.

Class descriptors are the same in QuPath 0.2 to 0.7, so all of them read the new instances.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata.java_nodes import (
    SC_BLOCK_DATA,
    SC_ENUM,
    SC_EXTERNALIZABLE,
    SC_SERIALIZABLE,
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

HASH_MAP = "java.util.HashMap"
ARRAY_LIST = "java.util.ArrayList"
UNMODIFIABLE_LIST = "java.util.Collections$UnmodifiableList"
INTEGER = "java.lang.Integer"
BOOLEAN = "java.lang.Boolean"
LOCALE = "java.util.Locale"
OBJECT_ARRAY = "[Ljava.lang.Object;"
FLOAT_ARRAY = "[F"
BYTE_ARRAY = "[B"
DOUBLE_ARRAY = "[D"

PATH_CLASS = "qupath.lib.objects.classes.PathClass"
METADATA_MAP = "qupath.lib.objects.MetadataMap"
IMAGE_TYPE = "qupath.lib.images.ImageData$ImageType"
STAINS = "qupath.lib.color.ColorDeconvolutionStains"
WORKFLOW = "qupath.lib.plugins.workflow.Workflow"
SCRIPT_STEP = "qupath.lib.plugins.workflow.DefaultScriptableWorkflowStep"
HIERARCHY = "qupath.lib.objects.hierarchy.PathObjectHierarchy"
ROOT = "qupath.lib.objects.PathRootObject"
ANNOTATION = "qupath.lib.objects.PathAnnotationObject"
DETECTION = "qupath.lib.objects.PathDetectionObject"
CELL = "qupath.lib.objects.PathCellObject"
TILE = "qupath.lib.objects.PathTileObject"
TMA_CORE = "qupath.lib.objects.TMACoreObject"
_PATH_OBJECT = "qupath.lib.objects.PathObject"
_ROI_OBJECT = "qupath.lib.objects.PathROIObject"

MEASUREMENTS = "qupath.lib.measurements."
_ABSTRACT_LIST = MEASUREMENTS + "NumericMeasurementList$AbstractNumericMeasurementList"
FLOAT_LIST = MEASUREMENTS + "NumericMeasurementList$FloatList"
DOUBLE_LIST = MEASUREMENTS + "NumericMeasurementList$DoubleList"
DEFAULT_LIST = MEASUREMENTS + "DefaultMeasurementList"

ROI = "qupath.lib.roi."
POLYGON = ROI + "PolygonROI$SerializationProxy"
POLYLINE = ROI + "PolylineROI$SerializationProxy"
LINE = ROI + "LineROI$SerializationProxy"
POINTS = ROI + "PointsROI$SerializationProxy"
GEOMETRY = ROI + "GeometryROI$WKBSerializationProxy"

_EXTERNAL = SC_EXTERNALIZABLE | SC_BLOCK_DATA
_PLAIN = SC_SERIALIZABLE
_CUSTOM = SC_SERIALIZABLE | SC_WRITE_METHOD
_STRING = "Ljava/lang/String;"
_PLANE = (("I", "c", ""), ("I", "t", ""), ("I", "z", ""))

#: Name -> serialVersionUID, flags, superclass, fields (type code, name, type) in stream order.
_KNOWN: dict[str, tuple[int, int, str | None, tuple[tuple[str, str, str], ...]]] = {
    BYTE_ARRAY: (-5984413125824719648, _PLAIN, None, ()),
    FLOAT_ARRAY: (836686056779680834, _PLAIN, None, ()),
    OBJECT_ARRAY: (-8012369246846506644, _PLAIN, None, ()),
    "java.lang.Enum": (0, SC_ENUM | SC_SERIALIZABLE, None, ()),
    "java.lang.Number": (-8742448824652078965, _PLAIN, None, ()),
    INTEGER: (1360826667806852920, _PLAIN, "java.lang.Number", (("I", "value", ""),)),
    BOOLEAN: (-3665804199014368530, _PLAIN, None, (("Z", "value", ""),)),
    ARRAY_LIST: (8683452581122892189, _CUSTOM, None, (("I", "size", ""),)),
    "java.util.Collections$UnmodifiableCollection": (
        1820017752578914078,
        _PLAIN,
        None,
        (("L", "c", "Ljava/util/Collection;"),),
    ),
    UNMODIFIABLE_LIST: (
        -283967356065247728,
        _PLAIN,
        "java.util.Collections$UnmodifiableCollection",
        (("L", "list", "Ljava/util/List;"),),
    ),
    HASH_MAP: (
        362498820763181265,
        _CUSTOM,
        None,
        (("F", "loadFactor", ""), ("I", "threshold", "")),
    ),
    LOCALE: (
        9149081749638150636,
        _CUSTOM,
        None,
        (
            ("I", "hashcode", ""),
            ("L", "country", _STRING),
            ("L", "extensions", _STRING),
            ("L", "language", _STRING),
            ("L", "script", _STRING),
            ("L", "variant", _STRING),
        ),
    ),
    IMAGE_TYPE: (0, SC_ENUM | SC_SERIALIZABLE, "java.lang.Enum", ()),
    STAINS: (1, _EXTERNAL, None, ()),
    WORKFLOW: (1, _EXTERNAL, None, ()),
    SCRIPT_STEP: (
        1,
        _PLAIN,
        None,
        (("L", "map", "Ljava/util/Map;"), ("L", "name", _STRING), ("L", "script", _STRING)),
    ),
    HIERARCHY: (
        1,
        _PLAIN,
        None,
        (
            ("L", "rootObject", "Lqupath/lib/objects/PathObject;"),
            ("L", "tmaGrid", "Lqupath/lib/objects/hierarchy/TMAGrid;"),
        ),
    ),
    _PATH_OBJECT: (1, _EXTERNAL, None, ()),
    _ROI_OBJECT: (1, _EXTERNAL, _PATH_OBJECT, ()),
    ROOT: (1, _EXTERNAL, _PATH_OBJECT, ()),
    ANNOTATION: (1, _EXTERNAL, _ROI_OBJECT, ()),
    DETECTION: (1, _EXTERNAL, _ROI_OBJECT, ()),
    CELL: (1, _EXTERNAL, DETECTION, ()),
    METADATA_MAP: (1, _EXTERNAL, None, ()),
    PATH_CLASS: (
        1,
        _PLAIN,
        None,
        (
            ("L", "colorRGB", "Ljava/lang/Integer;"),
            ("L", "name", _STRING),
            ("L", "parentClass", "Lqupath/lib/objects/classes/PathClass;"),
        ),
    ),
    _ABSTRACT_LIST: (
        1,
        _PLAIN,
        None,
        (
            ("Z", "isClosed", ""),
            ("L", "map", "Ljava/util/Map;"),
            ("L", "names", "Ljava/util/List;"),
        ),
    ),
    FLOAT_LIST: (1, _PLAIN, _ABSTRACT_LIST, (("[", "values", FLOAT_ARRAY),)),
    POLYGON: (
        1,
        _PLAIN,
        None,
        (
            *_PLANE,
            ("L", "name", _STRING),
            ("L", "stats", "Lqupath/lib/roi/ClosedShapeStatistics;"),
            ("[", "x", FLOAT_ARRAY),
            ("[", "y", FLOAT_ARRAY),
        ),
    ),
    POLYLINE: (1, _PLAIN, None, (*_PLANE, ("[", "x", FLOAT_ARRAY), ("[", "y", FLOAT_ARRAY))),
    POINTS: (
        1,
        _PLAIN,
        None,
        (*_PLANE, ("L", "name", _STRING), ("[", "x", FLOAT_ARRAY), ("[", "y", FLOAT_ARRAY)),
    ),
    GEOMETRY: (
        1,
        _PLAIN,
        None,
        (
            *_PLANE,
            ("L", "stats", "Lqupath/lib/roi/GeometryROI$GeometryStats;"),
            ("[", "wkb", BYTE_ARRAY),
        ),
    ),
}

_DTYPES = {
    "B": ">i1",
    "C": ">u2",
    "D": ">f8",
    "F": ">f4",
    "I": ">i4",
    "J": ">i8",
    "S": ">i2",
    "Z": "?",
}


def primitives_dtype(desc: ClassDesc) -> np.dtype[np.void]:
    """Return the structured dtype of the primitive fields of a class."""
    return np.dtype([(f.name, _DTYPES[f.code]) for f in desc.fields if f.code in _DTYPES])


def primitive_column(part: Part, name: str, data: bytes) -> npt.NDArray[Any]:
    """Return a primitive field of many objects.

    Parameters
    ----------
    part : Part
        The part of one of them, which defines the fields.
    name : str
        Field.
    data : bytes
        The primitive fields of all of them, one after the other.

    Raises
    ------
    qpnuclei.errors.FormatError
        If the class has no such primitive field.
    """
    dtype = primitives_dtype(part.desc)
    if name not in (dtype.names or ()):
        raise FormatError(f"{part.desc.name} has no number {name!r}")
    return np.frombuffer(data, dtype)[name]


def array_values(array: JavaArray) -> npt.NDArray[np.generic]:
    """Return the values of a primitive array."""
    return np.frombuffer(array.data or b"", _DTYPES[array.desc.name[1]])


def part_with(node: JavaObject, name: str) -> Part:
    """Return the part of an object whose class has the field `name`.

    Raises
    ------
    qpnuclei.errors.FormatError
        If no class of the object has it.
    """
    for part in node.parts:
        if any(f.name == name for f in part.desc.fields):
            return part
    raise FormatError(f"{node.class_name or 'a proxy'} has no field {name!r}")


def reference(node: JavaObject, name: str) -> Value:
    """Return the value of an object field."""
    part = part_with(node, name)
    for f, value in zip(part.desc.object_fields, part.references, strict=True):
        if f.name == name:
            return value
    raise FormatError(f"field {name!r} of {node.class_name} is a number, not an object")


def primitive(node: JavaObject, name: str) -> int | float | bool:
    """Return the value of a primitive field."""
    part = part_with(node, name)
    value: int | float | bool = primitive_column(part, name, part.primitives)[0].item()
    return value


def string_field(node: JavaObject, name: str) -> JavaString | None:
    """Return an object field that holds a string or null."""
    value = reference(node, name)
    if value is not None and not isinstance(value, JavaString):
        raise FormatError(f"field {name!r} of {node.class_name} should be a string")
    return value


def array_field(node: JavaObject, name: str, class_name: str) -> JavaArray:
    """Return an object field that holds an array of class `class_name`."""
    value = reference(node, name)
    if not isinstance(value, JavaArray) or value.desc.name != class_name:
        raise FormatError(f"field {name!r} of {node.class_name} should be a {class_name}")
    return value


def contents(node: JavaObject) -> list[Content]:
    """Return the data that an object's own class wrote after its fields."""
    for part in reversed(node.parts):
        if part.contents is not None:
            return part.contents
    raise FormatError(f"{node.class_name} has no data after its fields")


def list_items(node: Value) -> Sequence[Value]:
    """Return the elements of a ``java.util.List`` of any class that QuPath's files hold.

    Raises
    ------
    qpnuclei.errors.FormatError
        If it is not a list of a known class.
    """
    for _ in range(8):  # lists may wrap lists, though not without end
        if isinstance(node, JavaArray) and node.items is not None:
            return node.items
        if not isinstance(node, JavaObject):
            break
        if node.class_name in (ARRAY_LIST, "java.util.CollSer", "java.util.LinkedList"):
            return [item for item in contents(node) if not isinstance(item, BlockData)]  # type: ignore[misc]
        if node.class_name.startswith("java.util.Collections$Unmodifiable"):
            node = reference(node, "list")
        elif node.class_name == "java.util.Arrays$ArrayList":
            node = reference(node, "a")
        elif node.class_name == "java.util.Collections$EmptyList":
            return []
        else:
            break
    raise FormatError(f"{getattr(node, 'class_name', node)!r} is not a list that QuPath writes")


class Catalog:
    """Creates instances, sharing strings and descriptors with the file as Java does.

    Parameters
    ----------
    nodes : iterable of nodes
        Those of the file; empty for a new one.
    """

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self._descs: dict[str, ClassDesc] = {}
        self._boxed: dict[tuple[str, bytes], JavaObject] = {}
        self._strings: dict[str, JavaString] = {}
        self._path_classes: dict[tuple[str, ...], JavaObject] = {}
        self._name_lists: dict[tuple[str, ...], tuple[JavaObject, JavaObject]] = {}
        for node in nodes:
            if isinstance(node, ClassDesc) and _is_known(node):
                self._descs.setdefault(node.name, node)
            elif isinstance(node, JavaString) and node.data == b"Object ID":
                self._strings.setdefault("Object ID", node)
            elif isinstance(node, JavaObject) and node.class_name in (INTEGER, BOOLEAN):
                self._boxed.setdefault((node.class_name, node.parts[-1].primitives), node)
            elif isinstance(node, JavaObject) and node.class_name == PATH_CLASS:
                self._path_classes.setdefault(path_class_names(node), node)

    def desc(self, name: str) -> ClassDesc:
        """Return the descriptor of a known class."""
        if name not in self._descs:
            uid, flags, super_name, fields = _KNOWN[name]
            self._descs[name] = ClassDesc(
                name,
                uid,
                flags,
                tuple(Field(code, f, self.string(t) if t else None) for code, f, t in fields),
                super_desc=None if super_name is None else self.desc(super_name),
            )
        return self._descs[name]

    def string(self, text: str) -> JavaString:
        """Return the shared string of this text."""
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
        at: object = desc
        while isinstance(at, ClassDesc):
            chain.insert(0, at)
            at = at.super_desc
        parts = []
        for part_desc in chain:
            dtype = primitives_dtype(part_desc)
            record = np.zeros((), dtype)
            for field_name in dtype.names or ():
                record[field_name] = values.get(field_name, 0)
            references = [values.get(f.name) for f in part_desc.object_fields]
            own = list(extra or ()) if part_desc.flags & SC_WRITE_METHOD else None
            parts.append(Part(part_desc, record.tobytes() if dtype.names else b"", references, own))  # type: ignore[arg-type]
        return JavaObject(desc, parts)

    def boxed(self, name: str, value: int | bool) -> JavaObject:
        """Return the shared ``Integer`` or ``Boolean`` of a value."""
        made = self.make(name, {"value": value})
        return self._boxed.setdefault((name, made.parts[-1].primitives), made)

    def objects(self, items: Iterable[Value]) -> JavaArray:
        """Return a new ``Object[]``."""
        return JavaArray(self.desc(OBJECT_ARRAY), None, list(items))

    def floats(self, values: npt.ArrayLike) -> JavaArray:
        """Return a new ``float[]``."""
        return JavaArray(self.desc(FLOAT_ARRAY), np.asarray(values, ">f4").tobytes(), None)

    def array_list(self, items: Sequence[Value]) -> JavaObject:
        """Return a new ``ArrayList``."""
        size = BlockData(len(items).to_bytes(4, "big"))
        return self.make(ARRAY_LIST, {"size": len(items)}, [size, *items])

    def hash_map(self, items: Mapping[JavaString, Value]) -> JavaObject:
        """Return a new ``HashMap``."""
        capacity = 16
        while len(items) > 0.75 * capacity:
            capacity *= 2
        sizes = capacity.to_bytes(4, "big") + len(items).to_bytes(4, "big")
        pairs = [value for pair in items.items() for value in pair]
        return self.make(
            HASH_MAP,
            {"loadFactor": 0.75, "threshold": capacity * 3 // 4},
            [BlockData(sizes), *pairs],
        )

    def metadata(self, items: Iterable[tuple[JavaString, JavaString]]) -> JavaObject:
        """Return a new ``MetadataMap``."""
        pairs = list(items)
        keys = self.objects(key for key, _ in pairs)
        values = self.objects(value for _, value in pairs)
        return self.make(METADATA_MAP, extra=[self.boxed(INTEGER, 1), keys, values])

    def measurement_names(self, names: tuple[str, ...]) -> tuple[JavaObject, JavaObject]:
        """Return the list of names and the map of their indices that closed lists share."""
        if names not in self._name_lists:
            strings = [JavaString.of(name) for name in names]
            inner = self.array_list(strings)
            outer = self.make(UNMODIFIABLE_LIST, {"list": inner, "c": inner})
            indices = {s: self.boxed(INTEGER, i) for i, s in enumerate(strings)}
            self._name_lists[names] = outer, self.hash_map(indices)
        return self._name_lists[names]

    def measurements(self, values: Mapping[str, float]) -> JavaObject:
        """Return an open list of measurements, which QuPath can extend."""
        strings = [JavaString.of(name) for name in values]
        return self.make(
            FLOAT_LIST,
            {
                "isClosed": False,
                "map": self.hash_map({s: self.boxed(INTEGER, i) for i, s in enumerate(strings)}),
                "names": self.array_list(strings),
                "values": self.floats(np.array([*values.values()])),
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
            None if color is None else self.boxed(INTEGER, color),
            metadata,
            measurements,
            BlockData(bytes(4)),  # number of children
        ]
        if class_name != ROOT:
            no_probability = BlockData(np.array(np.nan, ">f8").tobytes())
            extra += [self.boxed(BOOLEAN, is_locked), path_class, roi, no_probability]
        if class_name == CELL:
            extra.append(nucleus)
        return self.make(class_name, extra=extra)

    def path_class(self, name: str, color: int | None) -> JavaObject:
        """Return the ``PathClass`` of a name (``"A: B"`` is B below A), made if need be."""
        names = tuple(part.strip() for part in name.split(": "))
        if names not in self._path_classes:
            parent = self.path_class(": ".join(names[:-1]), color) if len(names) > 1 else None
            self._path_classes[names] = self.make(
                PATH_CLASS,
                {
                    "colorRGB": None if color is None else self.boxed(INTEGER, color),
                    "name": JavaString.of(names[-1]),
                    "parentClass": parent,
                },
            )
        return self._path_classes[names]

    def image_type(self, name: str) -> JavaEnum:
        """Return a constant of QuPath's ``ImageType``."""
        return JavaEnum(self.desc(IMAGE_TYPE), JavaString.of(name))


def path_class_chain(node: JavaObject) -> list[JavaObject]:
    """Return a ``PathClass`` and its parents, the outermost parent first."""
    chain = [node]
    while (parent := reference(chain[0], "parentClass")) is not None:
        if not isinstance(parent, JavaObject) or parent in chain:
            raise FormatError("a class (PathClass) has a parent that is not a class, or is itself")
        chain.insert(0, parent)
    return chain


def path_class_names(node: JavaObject) -> tuple[str, ...]:
    """Return the names of a ``PathClass`` and its parents, the outermost parent first."""
    names = (string_field(part, "name") for part in path_class_chain(node))
    return tuple("" if name is None else name.text for name in names)


def _is_known(desc: ClassDesc) -> bool:
    """Tell whether a descriptor of a file equals the known one."""
    if desc.name not in _KNOWN:
        return False
    uid, flags, super_name, fields = _KNOWN[desc.name]
    file_super = desc.super_desc.name if isinstance(desc.super_desc, ClassDesc) else None
    return (desc.uid, desc.flags, file_super, tuple((f.code, f.name) for f in desc.fields)) == (
        uid,
        flags,
        super_name,
        tuple((code, name) for code, name, _ in fields),
    )
