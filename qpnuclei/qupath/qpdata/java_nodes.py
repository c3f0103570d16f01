"""The nodes of a Java object stream: `java_parser` reads them, and `java_writer` writes them.

A node that occurs more than once in the graph is the same Python object each time. Handle numbers
are not stored; the writer assigns new ones. Nothing here is specific to QuPath.

References
----------
"Object Serialization Stream Protocol", chapter 6 of the Java Object Serialization Specification.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qpnuclei.errors import FormatError

if TYPE_CHECKING:
    from qpnuclei.qupath.qpdata.java_writer import StreamWriter

MAGIC = b"\xac\xed\x00\x05"
FIRST_HANDLE = 0x7E0000

NULL = 0x70
REFERENCE = 0x71
CLASS_DESC = 0x72
OBJECT = 0x73
STRING = 0x74
ARRAY = 0x75
CLASS = 0x76
BLOCK_DATA = 0x77
END_BLOCK_DATA = 0x78
RESET = 0x79
BLOCK_DATA_LONG = 0x7A
EXCEPTION = 0x7B
LONG_STRING = 0x7C
PROXY_CLASS_DESC = 0x7D
ENUM = 0x7E

SC_WRITE_METHOD = 0x01
SC_SERIALIZABLE = 0x02
SC_EXTERNALIZABLE = 0x04
SC_BLOCK_DATA = 0x08
SC_ENUM = 0x10

#: Bytes of a primitive value, by its type code in class descriptors and array class names.
PRIMITIVE_SIZE = {"B": 1, "C": 2, "D": 8, "F": 4, "I": 4, "J": 8, "S": 2, "Z": 1}


@dataclass(eq=False, slots=True)
class JavaString:
    """A string, kept as the modified UTF-8 of the file (`is_long`: with an 8-byte length)."""

    data: bytes
    is_long: bool = False

    @property
    def text(self) -> str:
        """The decoded text.

        Raises
        ------
        qpnuclei.errors.FormatError
            If the bytes are not modified UTF-8.
        """
        return decode_utf(self.data)

    @classmethod
    def of(cls, text: str) -> JavaString:
        """Return a new string (a new object: Java's strings have identity) with this text."""
        data = encode_utf(text)
        return cls(data, len(data) > 0xFFFF)


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a class: type code, name, and for ``L`` and ``[`` the name of its type."""

    code: str
    name: str
    type_name: JavaString | None = None


@dataclass(eq=False, slots=True)
class ClassDesc:
    """Descriptor of a class: the fields and data of its instances."""

    name: str
    uid: int
    flags: int
    fields: tuple[Field, ...] = ()
    annotation: list[Content] = field(default_factory=list)
    super_desc: AnyClassDesc | None = None

    @property
    def primitives_size(self) -> int:
        """Bytes of the primitive fields, which precede the object fields."""
        return sum(PRIMITIVE_SIZE.get(f.code, 0) for f in self.fields)

    @property
    def object_fields(self) -> list[Field]:
        """The fields that contain objects or arrays."""
        return [f for f in self.fields if f.code in "L["]


@dataclass(eq=False, slots=True)
class ProxyClassDesc:
    """Descriptor of a dynamic proxy class."""

    interfaces: tuple[str, ...]
    annotation: list[Content] = field(default_factory=list)
    super_desc: AnyClassDesc | None = None


AnyClassDesc = ClassDesc | ProxyClassDesc


@dataclass(eq=False, slots=True)
class Part:
    """The data that one class of an object's hierarchy wrote.

    Parameters
    ----------
    desc : ClassDesc
    primitives : bytes
        Values of the primitive fields, big endian, in the order of ``desc.fields``.
    references : list
        Values of the object fields, in the order of ``desc.fields``.
    contents : list or None
        Data of a ``writeObject`` or ``writeExternal`` method; None if the class has none.
    """

    desc: ClassDesc
    primitives: bytes
    references: list[Value]
    contents: list[Content] | None


@dataclass(eq=False, slots=True)
class JavaObject:
    """An instance: one `Part` per serialised class, superclasses first.

    `offset` is its first byte in the stream that it was read from; None for a new object.
    """

    desc: AnyClassDesc
    parts: list[Part]
    offset: int | None = None

    @property
    def class_name(self) -> str:
        """Fully qualified name of its class; empty for a dynamic proxy."""
        return self.desc.name if isinstance(self.desc, ClassDesc) else ""


@dataclass(eq=False, slots=True)
class JavaArray:
    """An array: `data` of primitives (big endian), or `items` of objects; the other is None."""

    desc: ClassDesc
    data: bytes | None
    items: list[Value] | None


@dataclass(eq=False, slots=True)
class JavaEnum:
    """An enum constant."""

    desc: ClassDesc
    name: JavaString


@dataclass(eq=False, slots=True)
class JavaClass:
    """A ``java.lang.Class`` object."""

    desc: AnyClassDesc | None


@dataclass(eq=False, slots=True)
class BlockData:
    """Bytes that a class wrote as primitives (`is_long`: with a 4-byte length)."""

    data: bytes
    is_long: bool = False


@dataclass(eq=False, slots=True)
class Reset:
    """A reset of handle numbers (top level only)."""


@dataclass(eq=False, slots=True)
class JavaException:
    """An error of Java while it wrote the stream; `throwable` is the reason (top level only)."""

    throwable: Value


class Bulk(ABC):
    """Many objects of a contents list, in a form that is more compact than nodes."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of objects."""

    @abstractmethod
    def write(self, writer: StreamWriter) -> Step:
        """Write all objects, as a step of `writer`."""


Node = JavaString | ClassDesc | ProxyClassDesc | JavaObject | JavaArray | JavaEnum | JavaClass
Value = Node | None
Content = Value | BlockData | Reset | JavaException | Bulk
#: A step of the parser or writer: a generator that yields nested steps and receives their results.
Step = Generator["Step", Any, Any]


def run(step: Step, max_steps: float = math.inf) -> Any:
    """Run a step and all its nested steps, at any depth, and return its result.

    Raises
    ------
    RecursionError
        If more than `max_steps` steps are nested.
    """
    stack, result = [step], None
    while stack:
        try:
            nested = stack[-1].send(result)
        except StopIteration as stop:
            stack.pop()
            result = stop.value
        else:
            if len(stack) >= max_steps:
                raise RecursionError
            stack.append(nested)
            result = None
    return result


def decode_utf(data: bytes) -> str:
    """Decode Java's modified UTF-8 (NUL as two bytes, other planes as surrogate pairs).

    A lone surrogate, which Java allows, becomes U+FFFD.

    Raises
    ------
    qpnuclei.errors.FormatError
        If `data` is not modified UTF-8.
    """
    if data.isascii():
        return data.decode("ascii")
    try:
        text = data.replace(b"\xc0\x80", b"\0").decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise FormatError(f"{data[:40]!r} is not modified UTF-8: {error.reason}") from None
    if any("\ud800" <= c <= "\udfff" for c in text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def encode_utf(text: str) -> bytes:
    """Encode text as Java's modified UTF-8."""
    if not text.isascii() and any(c > "\uffff" for c in text):
        units = text.encode("utf-16-le", "surrogatepass")
        text = "".join(
            chr(int.from_bytes(units[i : i + 2], "little")) for i in range(0, len(units), 2)
        )
    return text.encode("utf-8", "surrogatepass").replace(b"\0", b"\xc0\x80")
