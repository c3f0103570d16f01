"""Read the fields of Java objects, and the elements of lists."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata.java_nodes import (
    BlockData,
    ClassDesc,
    Content,
    JavaArray,
    JavaObject,
    JavaString,
    Part,
    Value,
)

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
#: The same, as format characters of `struct`.
_FORMATS = {"B": "b", "C": "H", "D": "d", "F": "f", "I": "i", "J": "q", "S": "h", "Z": "?"}


def primitives_dtype(desc: ClassDesc) -> np.dtype[np.void]:
    """Return the structured dtype of the primitive fields of a class."""
    return np.dtype([(f.name, _DTYPES[f.code]) for f in desc.fields if f.code in _DTYPES])


def primitives_bytes(desc: ClassDesc, values: Mapping[str, Any]) -> bytes:
    """Return the bytes of the primitive fields of a class; fields without a value are zero."""
    fields = [f for f in desc.fields if f.code in _FORMATS]
    codes = "".join(_FORMATS[f.code] for f in fields)
    return struct.pack(f">{codes}", *(values.get(f.name, 0) for f in fields))


def primitive_column(part: Part, name: str, data: bytes) -> npt.NDArray[Any]:
    """Return a primitive field of many objects.

    Parameters
    ----------
    part : Part
        The part of one object, which defines the fields.
    name : str
        Name of the field.
    data : bytes
        The primitive fields of all objects, one after the other.

    Raises
    ------
    qpnuclei.errors.FormatError
        If the class has no such primitive field.
    """
    dtype = primitives_dtype(part.desc)
    if name not in (dtype.names or ()):
        raise FormatError(f"{part.desc.name} has no number {name!r}")
    return np.frombuffer(data, dtype)[name]


def part_with(node: JavaObject, name: str) -> Part:
    """Return the part of an object whose class has the field `name`.

    Raises
    ------
    qpnuclei.errors.FormatError
        If no class of the object has the field.
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
    """Return an object field that contains a string or null."""
    value = reference(node, name)
    if value is not None and not isinstance(value, JavaString):
        raise FormatError(f"field {name!r} of {node.class_name} should be a string")
    return value


def array_field(node: JavaObject, name: str, class_name: str) -> JavaArray:
    """Return an object field that contains an array of class `class_name`."""
    value = reference(node, name)
    if not isinstance(value, JavaArray) or value.desc.name != class_name:
        raise FormatError(f"field {name!r} of {node.class_name} should be a {class_name}")
    return value


def contents(node: JavaObject) -> list[Content]:
    """Return the data that the object's class wrote after its fields."""
    for part in reversed(node.parts):
        if part.contents is not None:
            return part.contents
    raise FormatError(f"{node.class_name} has no data after its fields")


def list_items(node: Value) -> Sequence[Value]:
    """Return the elements of a ``java.util.List`` of any class that occurs in QuPath's files.

    Raises
    ------
    qpnuclei.errors.FormatError
        If it is not a list of a known class.
    """
    for _ in range(8):  # lists may wrap lists; the limit is for damaged files
        if isinstance(node, JavaArray) and node.items is not None:
            return node.items
        if not isinstance(node, JavaObject):
            break
        if node.class_name in (jc.ARRAY_LIST, "java.util.CollSer", "java.util.LinkedList"):
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
