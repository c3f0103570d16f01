"""Write a graph of nodes as a Java Object Serialization Stream, protocol 2.

A stream that `java_parser` has read is written byte for byte the same: a node is defined at its
first occurrence, and later occurrences are references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

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
    STRING,
    AnyClassDesc,
    BlockData,
    Bulk,
    ClassDesc,
    Content,
    JavaArray,
    JavaClass,
    JavaEnum,
    JavaException,
    JavaObject,
    JavaString,
    Node,
    Part,
    Reset,
    Step,
    Value,
    encode_utf,
    run,
)


def write(items: Iterable[Content], emit: Callable[[bytes], object]) -> None:
    """Write a stream with the top-level items `items`, in pieces, to `emit`."""
    emit(MAGIC)
    writer = StreamWriter(emit)
    run(writer.contents(items))


class StreamWriter:
    """Writes nodes: the definition at the first occurrence, then back-references.

    Parameters
    ----------
    emit : callable
        Called with the next bytes of the stream.
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
            elif not self.leaf(item):
                yield self.value(item)

    def leaf(self, node: Value) -> bool:
        """Write null, a reference or a string; for a node that must be defined, return False."""
        if node is None:
            self.emit(bytes([NULL]))
        elif self.is_defined(node):
            self.reference(node)
        elif isinstance(node, JavaString):
            self.define(node)
            self.string(node)
        else:
            return False
        return True

    def value(self, node: Value) -> Step:
        """Write a node, a reference to it, or null."""
        if self.leaf(node) or node is None:
            return
        if isinstance(node, JavaObject):
            self.emit(bytes([OBJECT]))
            if not self.leaf(node.desc):
                yield self.value(node.desc)
            self.define(node)
            yield self.parts(node.parts)
        elif isinstance(node, JavaArray):
            self.emit(bytes([ARRAY]))
            if not self.leaf(node.desc):
                yield self.value(node.desc)
            self.define(node)
            if node.data is not None:
                self.primitive_array(node)
            else:
                items = node.items or []
                self.emit(len(items).to_bytes(4, "big"))
                for item in items:
                    if not self.leaf(item):
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
        elif not isinstance(node, JavaString):  # a string is a leaf
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
        """Write the data of all classes of an object."""
        for part in parts:
            if part.primitives:
                self.primitives(part)
            for value in part.references:
                if not self.leaf(value):
                    yield self.value(value)
            if part.contents is not None:
                yield self.contents(part.contents)
                self.emit(bytes([END_BLOCK_DATA]))

    # A subclass overrides the methods below to analyse the structure: the handles, and the bytes
    # that vary between objects of one structure.

    def is_defined(self, node: Node) -> bool:
        """Tell whether the stream already contains the node."""
        return node in self.handles

    def define(self, node: Node) -> None:
        """Assign the next handle to a node."""
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
    """Return the bytes of a handle in a back-reference."""
    return (FIRST_HANDLE + handle).to_bytes(4, "big")


def _utf(text: str) -> bytes:
    data = encode_utf(text)
    return len(data).to_bytes(2, "big") + data
