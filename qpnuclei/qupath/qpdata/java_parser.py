"""Parse a Java Object Serialization Stream, protocol 2, to a graph of nodes.

The parser never loads a class or runs code from the file. Nesting uses no Python recursion, and
every length in the file is checked against the number of remaining bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata.java_nodes import (
    ARRAY,
    BLOCK_DATA,
    BLOCK_DATA_LONG,
    CLASS,
    CLASS_DESC,
    END_BLOCK_DATA,
    ENUM,
    EXCEPTION,
    FIRST_HANDLE,
    LONG_STRING,
    MAGIC,
    NULL,
    OBJECT,
    PRIMITIVE_SIZE,
    PROXY_CLASS_DESC,
    REFERENCE,
    RESET,
    SC_BLOCK_DATA,
    SC_ENUM,
    SC_EXTERNALIZABLE,
    SC_SERIALIZABLE,
    SC_WRITE_METHOD,
    STRING,
    AnyClassDesc,
    BlockData,
    Bulk,
    ClassDesc,
    Content,
    Field,
    JavaArray,
    JavaClass,
    JavaEnum,
    JavaException,
    JavaObject,
    JavaString,
    Node,
    Part,
    ProxyClassDesc,
    Reset,
    Step,
    decode_utf,
    encode_utf,
    run,
)

#: Largest number of nested parser steps, two or three per nested object. Java's own recursion
#: overflows its stack after some thousands of levels, so Java writes no deeper files. The limit
#: prevents a malicious file from exhausting the memory.
MAX_STEPS = 120_000
#: Limit against malicious files: empty superclasses add parts to every object without any bytes.
MAX_SUPERCLASSES = 64


class Packer(Protocol):
    """Keeps runs of similar objects as bytes while a stream is parsed (see `record_packer`)."""

    def take(self, data: bytes, start: int, handle: int) -> tuple[Bulk, int, int] | None:
        """Pack the objects at `start`; return them, the end offset and the next handle."""

    def learn(self, node: Content, handles: Mapping[Node, int], first_handle: int) -> None:
        """Learn the shape of a parsed object, to recognise the next similar one.

        `handles` are those of all nodes so far; the object itself has handles from `first_handle`.
        """

    def unpack(self, handle: int) -> tuple[int, int] | None:
        """Mark the packed object that owns `handle` as needed; return its start and handle."""

    def unpacked(self, handle: int, node: JavaObject) -> None:
        """Receive the parsed object that was marked by `unpack`."""


#: What `_Parser.leaf` returns instead of an item that contains others.
_NESTED = BlockData(b"")


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
        Name of the stream for errors: its path.
    packer : Packer, optional
        Keeps runs of similar objects as bytes; without it, every object becomes nodes.

    Raises
    ------
    qpnuclei.errors.FormatError
        If the stream is damaged; the error names source, offset and reason.
    """
    parser = _Parser(data, source, packer)
    items = list(parser.items())
    return Stream(items, list(parser.nodes.values()))


def parse_items(data: bytes, source: str) -> Iterator[Content]:
    """Yield the top-level items of a stream; each one is parsed when it is needed.

    Raises
    ------
    qpnuclei.errors.FormatError
        As `parse`, when the item is reached.
    """
    return _Parser(data, source, None).items()


def parse_object(data: bytes, start: int, nodes: Mapping[int, Node]) -> JavaObject:
    """Parse one object of a stream; `nodes` are the other nodes that it refers to, by handle."""
    parser = _Parser(data, "object", None)
    parser.pos = start
    parser.nodes.update(nodes)
    parser.next_handle = max(nodes, default=-1) + 1
    node: JavaObject = run(parser.step())
    return node


@dataclass(frozen=True, slots=True)
class _PartLayout:
    """What one class of a hierarchy writes: bytes of primitives, then this number of objects."""

    desc: ClassDesc
    primitives_size: int
    objects: int


class _Parser:
    def __init__(self, data: bytes, source: str, packer: Packer | None) -> None:
        self.data = data
        self.pos = 0
        self.source = source
        self.packer = packer
        self.nodes: dict[int, Node] = {}
        self.handles: dict[Node, int] = {}
        self.layouts: dict[AnyClassDesc, list[_PartLayout]] = {}
        self.next_handle = 0

    def fail(self, meaning: str, offset: int | None = None) -> NoReturn:
        where = self.pos if offset is None else offset
        raise FormatError(f"{self.source}: byte {where}: {meaning}")

    # Primitives of the stream

    def take(self, size: int, what: str) -> bytes:
        end = self.pos + size
        if size < 0 or end > len(self.data):
            self.fail(f"{what} needs {size} bytes, but only {len(self.data) - self.pos} are left")
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
        """Parse a packed object that contains the target of a later reference."""
        state = self.pos, self.next_handle, self.packer
        self.pos, self.next_handle, self.packer = start, handle, None
        node: JavaObject = run(self.step())
        self.pos, self.next_handle, self.packer = state
        if self.packer is not None:
            self.packer.unpacked(handle, node)

    # Grammar

    def items(self) -> Iterator[Content]:
        if self.data[:4] != MAGIC:
            self.fail(f"starts with {self.data[:4].hex()!r}, unlike a Java object stream")
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
        # After a reset, a handle could refer to two nodes; QuPath's files have no reset.
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
                self.pos += 1
                items.append((yield self.object()))
                if self.packer is not None:
                    self.packer.learn(items[-1], self.handles, base)
                continue
            item = self.leaf(block_data=True)
            items.append((yield self.step(block_data=True)) if item is _NESTED else item)

    def leaf(self, block_data: bool = False) -> Any:
        """Read an item without nested items; for all others, return `_NESTED` without reading."""
        tag = self.data[self.pos] if self.pos < len(self.data) else -1
        if tag == REFERENCE:
            self.pos += 1
            return self.reference()
        if tag == NULL:
            self.pos += 1
            return None
        if tag == STRING:
            self.pos += 1
            string = JavaString(self.take(self.unsigned(2, "a string's length"), "a string"))
            self.define(string)
            return string
        if block_data and tag == BLOCK_DATA:
            self.pos += 1
            return BlockData(self.take(self.unsigned(1, "a block's length"), "a data block"))
        return _NESTED

    def step(self, block_data: bool = False) -> Step:
        leaf = self.leaf(block_data)
        if leaf is not _NESTED:
            return leaf
        offset = self.pos
        tag = self.tag()
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
            self.fail(f"item type 0x{tag:02x} is not allowed here", offset)
        self.fail(f"unknown item type 0x{tag:02x}", offset)

    def class_desc(self) -> Step:
        offset = self.pos
        tag = self.tag()
        desc: AnyClassDesc
        if tag == NULL:
            return None
        if tag == REFERENCE:
            self.pos = offset
            return self.known_class()
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
                self.fail(f"{count} interfaces do not fit into the file", offset)
            proxy.interfaces = tuple(self.utf("an interface's name") for _ in range(count))
        else:
            self.fail(f"item type 0x{tag:02x} is not a class", offset)
        desc.annotation = yield self.contents()
        desc.super_desc = yield self.class_desc()
        self.layouts[desc] = self.layout(desc, offset)
        return desc

    def known_class(self) -> AnyClassDesc | None:
        """Read a reference to a class; if there is none here, return None without reading."""
        offset = self.pos
        if offset >= len(self.data) or self.data[offset] != REFERENCE:
            return None
        self.pos += 1
        node = self.reference()
        if not isinstance(node, ClassDesc | ProxyClassDesc):
            self.fail(f"a {type(node).__name__} is not a class", offset)
        return node

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

    def layout(self, desc: AnyClassDesc | None, offset: int) -> list[_PartLayout]:
        """Return what the classes of a hierarchy write, superclasses first."""
        chain: list[ClassDesc] = []
        length = 0
        while desc is not None:
            length += 1
            if length > MAX_SUPERCLASSES:
                self.fail(f"a class has more than {MAX_SUPERCLASSES} superclasses", offset)
            if isinstance(desc, ClassDesc):
                chain.append(desc)
            desc = desc.super_desc
        return [
            _PartLayout(part, part.primitives_size, len(part.object_fields))
            for part in reversed(chain)
            if part.flags & SC_SERIALIZABLE
        ]

    def object(self) -> Step:
        offset = self.pos - 1
        desc = self.known_class() or (yield self.class_desc())
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
            self.fail(f"enum {desc.name} is not an object", offset)
        # A class that is not read to its end has no layout yet.
        for layout in self.layouts.get(desc) or self.layout(desc, offset):
            part = Part(layout.desc, b"", [], None)
            part.primitives = self.take(layout.primitives_size, f"fields of {layout.desc.name}")
            for _ in range(layout.objects):
                value = self.leaf()
                part.references.append((yield self.step()) if value is _NESTED else value)
            if layout.desc.flags & SC_WRITE_METHOD:
                part.contents = yield self.contents()
            node.parts.append(part)
        return node

    def array(self) -> Step:
        offset = self.pos - 1
        desc = self.known_class() or (yield self.class_desc())
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
                self.fail(f"an array of {length} objects does not fit into the file", offset)
            node.items = []
            for _ in range(length):
                value = self.leaf()
                node.items.append((yield self.step()) if value is _NESTED else value)
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
