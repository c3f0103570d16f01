"""Java Object Serialization Stream, protocol 2: bytes to a graph and back, byte for byte.

`parse` turns a stream into the list of its top-level items; `write` turns such a list into bytes
again. A node that occurs more than once in the graph is the same Python object each time. The
writer defines it at its first occurrence and writes back-references after that. Handle numbers are
not stored, so an edited graph is numbered anew.

This module knows nothing of QuPath and never loads a class or runs code from the file. Nesting uses
no Python recursion, and a length from the file is checked against the bytes that exist.

References
----------
"Object Serialization Stream Protocol", chapter 6 of the Java Object Serialization Specification.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from qpnuclei.errors import FormatError

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

#: Largest number of nested parser steps, two or three per nested object. Java's own recursion
#: overflows its stack after some thousands of levels, so no file written by Java is nested deeper;
#: the limit keeps a forged file from exhausting the memory.
MAX_STEPS = 120_000
#: Limit against forged files: empty superclasses add parts to every object at no cost in bytes.
MAX_SUPERCLASSES = 64


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
    """A field of a class: type code, name, and for ``L`` and ``[`` its type's name."""

    code: str
    name: str
    type_name: JavaString | None = None


@dataclass(eq=False, slots=True)
class ClassDesc:
    """Descriptor of a class: what the instances that follow it hold."""

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
        """The fields that hold objects or arrays."""
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

    `offset` is the byte at which it begins in the stream it was read from; None for a new one.
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
    """Handles start anew from here (top level only)."""


@dataclass(eq=False, slots=True)
class JavaException:
    """Java failed while it wrote the stream; `throwable` says why (top level only)."""

    throwable: Value


class Bulk(ABC):
    """Many objects of a contents list, kept in a more compact form than as nodes."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of objects."""

    @abstractmethod
    def write(self, writer: StreamWriter) -> Step:
        """Write all of them, as a step of `writer`."""


Node = JavaString | ClassDesc | ProxyClassDesc | JavaObject | JavaArray | JavaEnum | JavaClass
Value = Node | None
Content = Value | BlockData | Reset | JavaException | Bulk

#: A step of the parser or writer: a generator that yields nested steps and receives their results.
Step = Generator["Step", Any, Any]


class Packer(Protocol):
    """Keeps runs of similar objects as bytes while a stream is parsed (see `records`)."""

    def take(self, data: bytes, start: int, handle: int) -> tuple[Bulk, int, int] | None:
        """Pack the objects at `start`; return them, the end offset and the next handle."""

    def learn(self, node: Content, handles: Mapping[Node, int], first_handle: int) -> None:
        """Look at an object that was parsed, to recognise the next one like it.

        `handles` are those of all nodes so far; the object itself has `first_handle` and above.
        """

    def unpack(self, handle: int) -> tuple[int, int] | None:
        """Mark the packed object that owns `handle` as needed; return its start and handle."""

    def unpacked(self, handle: int, node: JavaObject) -> None:
        """Receive the parsed object that `unpack` asked for."""


def run(step: Step, max_steps: float = math.inf) -> Any:
    """Run a step and all steps nested in it, however deep, and return its result.

    Raises
    ------
    RecursionError
        If more than `max_steps` wait for each other.
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


@dataclass(frozen=True, slots=True)
class Stream:
    """A parsed stream: its top-level items, and all its nodes in the order of their handles."""

    items: list[Content]
    nodes: list[Node]


def parse(data: bytes, source: str, packer: Packer | None = None) -> Stream:
    """Parse a whole stream.

    Parameters
    ----------
    data : bytes
    source : str
        Name of the stream in errors: its path.
    packer : Packer, optional
        Keeps runs of similar objects as bytes; without it every object becomes nodes.

    Raises
    ------
    qpnuclei.errors.FormatError
        Names source, offset and meaning.
    """
    parser = _Parser(data, source, packer)
    items = list(parser.items())
    return Stream(items, list(parser.nodes.values()))


def parse_items(data: bytes, source: str) -> Iterator[Content]:
    """Parse the top-level items of a stream one by one, as they are asked for.

    Raises
    ------
    qpnuclei.errors.FormatError
        As `parse`, when the item is reached.
    """
    return _Parser(data, source, None).items()


def write(items: Iterable[Content], emit: Callable[[bytes], object]) -> None:
    """Write a stream whose top-level items are `items`, in pieces, to `emit`."""
    emit(MAGIC)
    writer = StreamWriter(emit)
    run(writer.contents(items))


def dump(items: Iterable[Content]) -> bytes:
    """Return the stream whose top-level items are `items`."""
    buffer = bytearray()
    write(items, buffer.extend)
    return bytes(buffer)


def parse_object(data: bytes, start: int, nodes: Mapping[int, Node]) -> JavaObject:
    """Parse one object of a stream, given the nodes by handle that it refers to outside itself."""
    parser = _Parser(data, "object", None)
    parser.pos = start
    parser.nodes.update(nodes)
    parser.next_handle = max(nodes, default=-1) + 1
    node: JavaObject = run(parser.step())
    return node


def decode_utf(data: bytes) -> str:
    """Decode Java's modified UTF-8 (NUL as two bytes, other planes as surrogate pairs).

    Half a pair, which Java allows, becomes U+FFFD.

    Raises
    ------
    qpnuclei.errors.FormatError
        If `data` is not modified UTF-8.
    """
    try:
        text = data.replace(b"\xc0\x80", b"\0").decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise FormatError(f"{data[:40]!r} is not modified UTF-8: {error.reason}") from None
    if any("\ud800" <= c <= "\udfff" for c in text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def encode_utf(text: str) -> bytes:
    """Encode text as Java's modified UTF-8."""
    if any(c > "\uffff" for c in text):
        units = text.encode("utf-16-le", "surrogatepass")
        text = "".join(
            chr(int.from_bytes(units[i : i + 2], "little")) for i in range(0, len(units), 2)
        )
    return text.encode("utf-8", "surrogatepass").replace(b"\0", b"\xc0\x80")


class _Parser:
    def __init__(self, data: bytes, source: str, packer: Packer | None) -> None:
        self.data = data
        self.pos = 0
        self.source = source
        self.packer = packer
        self.nodes: dict[int, Node] = {}
        self.handles: dict[Node, int] = {}
        self.next_handle = 0

    def fail(self, meaning: str, offset: int | None = None) -> NoReturn:
        where = self.pos if offset is None else offset
        raise FormatError(f"{self.source}: byte {where}: {meaning}")

    # Primitives of the stream

    def take(self, size: int, what: str) -> bytes:
        end = self.pos + size
        if size < 0 or end > len(self.data):
            self.fail(f"{what} needs {size} bytes, {len(self.data) - self.pos} are left")
        taken = self.data[self.pos : end]
        self.pos = end
        return taken

    def unsigned(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "big")

    def tag(self) -> int:
        return self.unsigned(1, "the next item")

    def utf(self, what: str) -> str:
        offset = self.pos
        raw = self.take(self.unsigned(2, f"the length of {what}"), what)
        try:
            text = decode_utf(raw)
        except FormatError as error:
            self.fail(f"{what}: {error.what}", offset)
        if encode_utf(text) != raw:
            self.fail(f"{what} {raw[:40]!r} is not in the form that Java writes", offset)
        return text

    def define(self, node: Node) -> None:
        self.nodes[self.next_handle] = node
        self.handles[node] = self.next_handle
        self.next_handle += 1

    def reference(self) -> Node:
        offset = self.pos - 1
        handle = self.unsigned(4, "a reference") - FIRST_HANDLE
        node = self.nodes.get(handle)
        if node is None and self.packer is not None:
            record = self.packer.unpack(handle)
            if record is not None:
                self.unpack(*record)
                node = self.nodes.get(handle)
        if node is None:
            self.fail(f"reference to object {handle}, which is not defined before it", offset)
        return node

    def unpack(self, start: int, handle: int) -> None:
        """Parse a packed object that a later reference points into."""
        here = self.pos, self.next_handle, self.packer
        self.pos, self.next_handle, self.packer = start, handle, None
        node: JavaObject = run(self.step())
        self.pos, self.next_handle, self.packer = here
        if self.packer is not None:
            self.packer.unpacked(handle, node)

    # Grammar

    def items(self) -> Iterator[Content]:
        if self.data[:4] != MAGIC:
            self.fail(f"starts with {self.data[:4].hex()!r}, not as a Java object stream")
        self.pos = 4
        while self.pos < len(self.data):
            try:
                yield run(self.item(), MAX_STEPS)
            except RecursionError:
                self.fail("objects are nested deeper than Java could have written them")

    def item(self) -> Step:
        tag = self.data[self.pos]
        if tag == RESET:
            self.pos += 1
            self.reset()
            return Reset()
        if tag == EXCEPTION:
            self.pos += 1
            self.reset()
            throwable = yield self.step()
            self.reset()
            return JavaException(throwable)
        return (yield self.step(block_data=True))

    def reset(self) -> None:
        self.nodes.clear()
        self.handles.clear()
        self.next_handle = 0
        # After a reset, one handle could mean two nodes; QuPath's files have no reset.
        self.packer = None

    def contents(self) -> Step:
        items: list[Content] = []
        data = self.data
        while True:
            if self.pos >= len(data):
                self.fail("ends within the data of an object")
            tag = data[self.pos]
            if tag == END_BLOCK_DATA:
                self.pos += 1
                return items
            if tag == OBJECT and self.packer is not None:
                packed = self.packer.take(data, self.pos, self.next_handle)
                if packed is not None:
                    bulk, self.pos, self.next_handle = packed
                    items.append(bulk)
                    continue
                base = self.next_handle
                items.append((yield self.step()))
                if self.packer is not None:
                    self.packer.learn(items[-1], self.handles, base)
                continue
            items.append((yield self.step(block_data=True)))

    def leaf(self, block_data: bool = False) -> Content | None:
        """Read an item without nested items; None for others, which are left unread."""
        tag = self.data[self.pos] if self.pos < len(self.data) else -1
        if tag == REFERENCE:
            self.pos += 1
            return self.reference()
        if tag == STRING:
            self.pos += 1
            string = JavaString(self.take(self.unsigned(2, "a string's length"), "a string"))
            self.define(string)
            return string
        if block_data and tag == BLOCK_DATA:
            self.pos += 1
            return BlockData(self.take(self.unsigned(1, "a block's length"), "a data block"))
        return None

    def step(self, block_data: bool = False) -> Step:
        leaf = self.leaf(block_data)
        if leaf is not None:
            return leaf
        offset = self.pos
        tag = self.tag()
        if tag == NULL:
            return None
        if tag == OBJECT:
            return (yield self.object())
        if tag == ARRAY:
            return (yield self.array())
        if tag == LONG_STRING:
            string = JavaString(self.take(self.unsigned(8, "a string's length"), "a string"), True)
            self.define(string)
            return string
        if tag == ENUM:
            return (yield self.enum())
        if tag == CLASS:
            node = JavaClass((yield self.class_desc()))
            self.define(node)
            return node
        if tag in (CLASS_DESC, PROXY_CLASS_DESC):
            self.pos = offset
            return (yield self.class_desc())
        if block_data and tag == BLOCK_DATA_LONG:
            return BlockData(self.take(self.unsigned(4, "a block's length"), "a data block"), True)
        if tag == EXCEPTION:
            self.fail("Java reported an error here while it wrote the file", offset)
        if tag in (RESET, BLOCK_DATA, BLOCK_DATA_LONG, END_BLOCK_DATA):
            self.fail(f"item type 0x{tag:02x} has no place here", offset)
        self.fail(f"unknown item type 0x{tag:02x}", offset)

    def class_desc(self) -> Step:
        offset = self.pos
        tag = self.tag()
        desc: AnyClassDesc
        if tag == NULL:
            return None
        if tag == REFERENCE:
            node = self.reference()
            if not isinstance(node, ClassDesc | ProxyClassDesc):
                self.fail(f"a {type(node).__name__} stands where a class should", offset)
            return node
        if tag == CLASS_DESC:
            name = self.utf("a class name")
            uid = int.from_bytes(self.take(8, "a class version"), "big", signed=True)
            desc = known = ClassDesc(name, uid, 0)
            self.define(desc)
            known.flags = self.unsigned(1, "class flags")
            known.fields = yield self.fields(name)
        elif tag == PROXY_CLASS_DESC:
            desc = proxy = ProxyClassDesc(())
            self.define(desc)
            count = self.unsigned(4, "the number of interfaces")
            if 2 * count > len(self.data) - self.pos:
                self.fail(f"{count} interfaces are more than the file can hold", offset)
            proxy.interfaces = tuple(self.utf("an interface's name") for _ in range(count))
        else:
            self.fail(f"item type 0x{tag:02x} stands where a class should", offset)
        desc.annotation = yield self.contents()
        desc.super_desc = yield self.class_desc()
        self.hierarchy(desc, offset)
        return desc

    def fields(self, class_name: str) -> Step:
        fields: list[Field] = []
        for _ in range(self.unsigned(2, "the number of fields")):
            offset = self.pos
            code = chr(self.tag())
            name = self.utf(f"a field name of {class_name}")
            if code in PRIMITIVE_SIZE:
                if fields and fields[-1].code in "L[":
                    self.fail(f"primitive field {name} of {class_name} after objects", offset)
                fields.append(Field(code, name))
            elif code in "L[":
                type_name = yield self.step()
                if not isinstance(type_name, JavaString):
                    self.fail(f"field {name} of {class_name} has no type", offset)
                fields.append(Field(code, name, type_name))
            else:
                self.fail(f"field {name} of {class_name} has unknown type {code!r}", offset)
        return tuple(fields)

    def hierarchy(self, desc: AnyClassDesc | None, offset: int) -> list[ClassDesc]:
        """Return the ordinary classes of a hierarchy, superclasses first."""
        chain: list[ClassDesc] = []
        length = 0
        while desc is not None:
            length += 1
            if length > MAX_SUPERCLASSES:
                self.fail(f"a class has more than {MAX_SUPERCLASSES} superclasses", offset)
            if isinstance(desc, ClassDesc):
                chain.append(desc)
            desc = desc.super_desc
        return chain[::-1]

    def object(self) -> Step:
        offset = self.pos - 1
        desc = yield self.class_desc()
        if desc is None:
            self.fail("an object without a class", offset)
        node = JavaObject(desc, [], offset)
        self.define(node)
        if isinstance(desc, ClassDesc) and desc.flags & SC_EXTERNALIZABLE:
            if not desc.flags & SC_BLOCK_DATA:
                self.fail(f"{desc.name} was written with protocol 1, which has no lengths", offset)
            node.parts.append(Part(desc, b"", [], (yield self.contents())))
            return node
        if isinstance(desc, ClassDesc) and desc.flags & SC_ENUM:
            self.fail(f"enum {desc.name} stands where an object should", offset)
        for part_desc in self.hierarchy(desc, offset):
            if not part_desc.flags & SC_SERIALIZABLE:
                continue
            part = Part(part_desc, b"", [], None)
            part.primitives = self.take(part_desc.primitives_size, f"fields of {part_desc.name}")
            for _ in part_desc.object_fields:
                part.references.append((yield self.step()))
            if part_desc.flags & SC_WRITE_METHOD:
                part.contents = yield self.contents()
            node.parts.append(part)
        return node

    def array(self) -> Step:
        offset = self.pos - 1
        desc = yield self.class_desc()
        if not isinstance(desc, ClassDesc) or desc.name[:1] != "[" or len(desc.name) < 2:
            self.fail(f"an array of class {getattr(desc, 'name', None)!r}", offset)
        node = JavaArray(desc, None, None)
        self.define(node)
        length = self.unsigned(4, "an array's length")
        code = desc.name[1]
        if code in PRIMITIVE_SIZE:
            node.data = self.take(length * PRIMITIVE_SIZE[code], f"an array of {length} values")
        elif code in "L[":
            if length > len(self.data) - self.pos:
                self.fail(f"an array of {length} objects is more than the file can hold", offset)
            node.items = []
            for _ in range(length):
                node.items.append((yield self.step()))
        else:
            self.fail(f"an array of unknown type {desc.name!r}", offset)
        return node

    def enum(self) -> Step:
        offset = self.pos - 1
        desc = yield self.class_desc()
        if not isinstance(desc, ClassDesc):
            self.fail("an enum constant without a class", offset)
        node = JavaEnum(desc, JavaString(b""))
        self.define(node)
        name = yield self.step()
        if not isinstance(name, JavaString):
            self.fail(f"a constant of {desc.name} without a name", offset)
        node.name = name
        return node


class StreamWriter:
    """Writes nodes: the definition at the first occurrence, then back-references.

    Parameters
    ----------
    emit : callable
        Takes the next bytes of the stream.
    """

    def __init__(self, emit: Callable[[bytes], object]) -> None:
        self.emit = emit
        self.handles: dict[Node, int] = {}
        self.next_handle = 0

    def contents(self, items: Iterable[Content]) -> Step:
        """Write items one after the other."""
        for item in items:
            if isinstance(item, Bulk):
                yield item.write(self)
            elif isinstance(item, BlockData):
                self.block_data(item)
            elif isinstance(item, Reset):
                self.emit(bytes([RESET]))
                self.reset()
            elif isinstance(item, JavaException):
                self.emit(bytes([EXCEPTION]))
                self.reset()
                yield self.value(item.throwable)
                self.reset()
            else:
                yield self.value(item)

    def value(self, node: Value) -> Step:
        """Write a node, a reference to it, or null."""
        if node is None:
            self.emit(bytes([NULL]))
        elif self.is_defined(node):
            self.reference(node)
        elif isinstance(node, JavaString):
            self.define(node)
            self.string(node)
        elif isinstance(node, JavaObject):
            self.emit(bytes([OBJECT]))
            yield self.value(node.desc)
            self.define(node)
            yield self.parts(node.parts)
        elif isinstance(node, JavaArray):
            self.emit(bytes([ARRAY]))
            yield self.value(node.desc)
            self.define(node)
            if node.data is not None:
                self.primitive_array(node)
            else:
                items = node.items or []
                self.emit(len(items).to_bytes(4, "big"))
                for item in items:
                    yield self.value(item)
        elif isinstance(node, JavaEnum):
            self.emit(bytes([ENUM]))
            yield self.value(node.desc)
            self.define(node)
            yield self.value(node.name)
        elif isinstance(node, JavaClass):
            self.emit(bytes([CLASS]))
            yield self.value(node.desc)
            self.define(node)
        else:
            yield self.class_desc(node)

    def class_desc(self, desc: AnyClassDesc) -> Step:
        """Define a class descriptor."""
        if isinstance(desc, ClassDesc):
            self.emit(bytes([CLASS_DESC]) + _utf(desc.name))
            self.emit(desc.uid.to_bytes(8, "big", signed=True))
            self.define(desc)
            self.emit(bytes([desc.flags]) + len(desc.fields).to_bytes(2, "big"))
            for f in desc.fields:
                self.emit(f.code.encode() + _utf(f.name))
                if f.type_name is not None:
                    yield self.value(f.type_name)
        else:
            self.emit(bytes([PROXY_CLASS_DESC]))
            self.define(desc)
            self.emit(len(desc.interfaces).to_bytes(4, "big"))
            self.emit(b"".join(map(_utf, desc.interfaces)))
        yield self.contents(desc.annotation)
        self.emit(bytes([END_BLOCK_DATA]))
        yield self.value(desc.super_desc)

    def parts(self, parts: Sequence[Part]) -> Step:
        """Write what the classes of an object hold."""
        for part in parts:
            if part.primitives:
                self.primitives(part)
            for value in part.references:
                yield self.value(value)
            if part.contents is not None:
                yield self.contents(part.contents)
                self.emit(bytes([END_BLOCK_DATA]))

    # The methods below are overridden by a subclass that analyses the structure: handles, and the
    # bytes that vary between objects of one structure.

    def is_defined(self, node: Node) -> bool:
        """Tell whether the stream has the node already."""
        return node in self.handles

    def define(self, node: Node) -> None:
        """Give the next handle to a node."""
        self.handles[node] = self.next_handle
        self.next_handle += 1

    def reset(self) -> None:
        """Forget all handles."""
        self.handles.clear()
        self.next_handle = 0

    def reference(self, node: Node) -> None:
        """Write a back-reference."""
        self.emit(bytes([REFERENCE]) + handle_bytes(self.handles[node]))

    def string(self, node: JavaString) -> None:
        """Write the string item itself."""
        tag, size = (LONG_STRING, 8) if node.is_long else (STRING, 2)
        self.emit(bytes([tag]) + len(node.data).to_bytes(size, "big") + node.data)

    def primitive_array(self, node: JavaArray) -> None:
        """Write length and values of a primitive array."""
        data = node.data or b""
        length = len(data) // PRIMITIVE_SIZE[node.desc.name[1]]
        self.emit(length.to_bytes(4, "big") + data)

    def primitives(self, part: Part) -> None:
        """Write the primitive fields of a class."""
        self.emit(part.primitives)

    def block_data(self, block: BlockData) -> None:
        """Write a block of data."""
        tag, size = (BLOCK_DATA_LONG, 4) if block.is_long else (BLOCK_DATA, 1)
        self.emit(bytes([tag]) + len(block.data).to_bytes(size, "big") + block.data)


def handle_bytes(handle: int) -> bytes:
    """Return a handle as a back-reference writes it."""
    return (FIRST_HANDLE + handle).to_bytes(4, "big")


def _utf(text: str) -> bytes:
    data = encode_utf(text)
    return len(data).to_bytes(2, "big") + data
