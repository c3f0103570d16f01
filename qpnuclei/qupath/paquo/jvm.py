"""Start the Java virtual machine, and run loops over many objects inside it.

A call from Python into Java takes microseconds. So many objects are read by loops inside Java.
Method handles (``java.lang.invoke``) of QuPath's public methods are combined into one function. A
Java stream applies this function to all objects, and only whole columns are transferred to Python.

In signatures, types are named as in Java: ``"double"``, ``"double[]"``, ``"java.lang.String"``.
"""

from __future__ import annotations

import importlib
import logging
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import UsageError
from qpnuclei.qupath.paquo.installation import (
    HOW_TO_POINT_TO_QUPATH,
    find_qupath,
    paquo_settings,
    shield_paquo,
)
from qpnuclei.system.interrupts import interrupt_postponed
from qpnuclei.system.memory import available_memory

#: A ``java.lang.invoke.MethodHandle``; any other Java object.
Handle: TypeAlias = Any
JavaObject: TypeAlias = Any

#: Share of the memory that the virtual machine may use for its objects.
HEAP_SHARE = 0.5
#: By default, JPype requests a full Java garbage collection after each of Python's. That is slow
#: with many objects, and unnecessary.
NO_FORCED_COLLECTION = "-XX:+DisableExplicitGC"
#: Java's default collector starts with a small space for new objects; run times then vary by up to
#: a factor of two.
COLLECTOR = "-XX:+UseParallelGC"

_log = logging.getLogger(__name__)


def start() -> None:
    """Start the virtual machine with QuPath's classes, once per process.

    Its options are those in paquo's settings (``PAQUO_JAVA_OPTS``). If they do not set the heap, it
    is half of the memory that this process may use.

    Raises
    ------
    qpnuclei.errors.UsageError
        If there is no QuPath, or its virtual machine does not start.
    """
    import jpype

    if jpype.isJVMStarted():
        return
    found = find_qupath()
    if found is None:
        raise UsageError("no QuPath found", HOW_TO_POINT_TO_QUPATH)
    shield_paquo()
    from paquo.jpype_backend import start_jvm

    # Otherwise Java handles Ctrl-C and ends the process without Python's clean-up.
    options = [*_java_options(paquo_settings()), "-Xrs"]
    _log.info("starting QuPath %s in %s with %s", found.version, found.path, " ".join(options))
    try:
        # A Python exception in a callback from Java would end the process.
        with interrupt_postponed():
            start_jvm(
                finder_kwargs={
                    **paquo_settings(),
                    "qupath_dir": found.path,
                    "java_opts": options,
                }
            )
            system = jpype.JClass("java.lang.System")
            # Standard output is for results. paquo logs to the stream that is current when it is
            # imported.
            system.setOut(system.err)
            importlib.import_module("paquo._logging")  # asks QuPath for debug messages
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise UsageError(
            f"QuPath in {found.path} does not start: {error}",
            "check PAQUO_QUPATH_DIR and PAQUO_JAVA_OPTS, or use --backend native",
        ) from error
    java_class("qupath.lib.gui.logging.LogManager").setWarn()


@contextmanager
def quiet() -> Iterator[None]:
    """Redirect QuPath's log to Python's logger ``qupath`` within the context."""
    from paquo._logging import redirect

    with redirect():  # type: ignore[no-untyped-call]
        yield


def java_class(name: str) -> Any:
    """Return a Java class by its name, for calling its static methods."""
    import jpype

    return jpype.JClass(name)


def byte_array(data: bytearray) -> JavaObject:
    """Return a Java ``byte[]`` of bytes."""
    import jpype

    array = jpype.JArray(jpype.JByte)(len(data))
    jpype.nio.convertToDirectBuffer(data).get(array)  # several times faster than assignment
    return array


# Handles -----------------------------------------------------------------------------------------


def method(owner: str, name: str, returns: str, *parameters: str) -> Handle:
    """Return the function ``(owner, *parameters) -> returns`` that calls a public method."""
    return _lookup().findVirtual(_type(owner), name, _signature(returns, *parameters))


def static(owner: str, name: str, returns: str, *parameters: str) -> Handle:
    """Return the function ``(*parameters) -> returns`` that calls a public static method."""
    return _lookup().findStatic(_type(owner), name, _signature(returns, *parameters))


def bind(function: Handle, position: int, *values: JavaObject) -> Handle:
    """Return `function` with its parameters from `position` fixed to values."""
    import jpype

    handles = java_class("java.lang.invoke.MethodHandles")
    boxed = [box(value) for value in values]
    return handles.insertArguments(function, position, jpype.JArray(jpype.JObject)(boxed))


def pipe(*functions: Handle) -> Handle:
    """Return the function that applies functions one after the other."""
    handles = java_class("java.lang.invoke.MethodHandles")
    result = functions[0]
    for function in functions[1:]:
        given = result.type().returnType()
        fitted = function.asType(function.type().changeParameterType(0, given))
        result = handles.filterReturnValue(result, fitted)
    return result


# Loops -------------------------------------------------------------------------------------------


def map_list(items: JavaObject, function: Handle) -> JavaObject:
    """Return the Java list of ``function(item)`` for all items of a Java collection."""
    return _collect_list(items.stream().map(_as_interface("java.util.function.Function", function)))


def keep_if(items: JavaObject, test: Handle) -> JavaObject:
    """Return the Java list of the items of a Java collection that pass a test."""
    return _collect_list(items.stream().filter(_as_interface("java.util.function.Predicate", test)))


def take(items: JavaObject, indices: npt.NDArray[np.integer[Any]]) -> JavaObject:
    """Return the Java list of the items of a Java list at `indices`."""
    import jpype

    get = method("java.util.List", "get", "java.lang.Object", "int").bindTo(items)
    chosen = java_class("java.util.stream.IntStream").of(jpype.JArray.of(indices.astype(np.int32)))
    return _collect_list(chosen.mapToObj(_as_interface("java.util.function.IntFunction", get)))


def doubles(items: JavaObject, function: Handle) -> npt.NDArray[np.float64]:
    """Return ``function(item)``, a double, for all items of a Java collection."""
    to_double = _as_interface("java.util.function.ToDoubleFunction", function)
    return np.array(items.stream().mapToDouble(to_double).toArray(), dtype=np.float64)


def flat_doubles(
    items: JavaObject, to_collection: Handle, function: Handle
) -> npt.NDArray[np.float64]:
    """Return ``function(part)``, a double, for all parts of all ``to_collection(item)``."""
    to_stream = pipe(
        to_collection, method("java.util.Collection", "stream", "java.util.stream.Stream")
    )
    parts = items.stream().flatMap(_as_interface("java.util.function.Function", to_stream))
    to_double = _as_interface("java.util.function.ToDoubleFunction", function)
    return np.array(parts.mapToDouble(to_double).toArray(), dtype=np.float64)


def ints(items: JavaObject, function: Handle) -> npt.NDArray[np.int64]:
    """Return ``function(item)``, an int, for all items of a Java collection."""
    to_int = _as_interface("java.util.function.ToIntFunction", function)
    return np.array(items.stream().mapToInt(to_int).toArray(), dtype=np.int64)


def texts(items: JavaObject, function: Handle) -> list[str]:
    """Return ``str(function(item))`` for all items of a Java collection, ``""`` for null.

    The texts must not contain line breaks.
    """
    return [] if items.isEmpty() else joined_texts(items, function).split("\n")


def joined_texts(items: JavaObject, function: Handle) -> str:
    """Return `texts` as one text, with a line for each item."""
    or_empty = bind(
        static(
            "java.util.Objects", "toString", "java.lang.String", "java.lang.Object",
            "java.lang.String",
        ),
        1,
        "",
    )  # fmt: skip
    mapped = items.stream().map(
        _as_interface("java.util.function.Function", pipe(function, or_empty))
    )
    return str(mapped.collect(java_class("java.util.stream.Collectors").joining("\n")))


# Details -----------------------------------------------------------------------------------------

_PRIMITIVES = {
    "boolean": "Boolean",
    "double": "Double",
    "int": "Integer",
}


def _type(name: str) -> JavaObject:
    if name in _PRIMITIVES:
        return java_class(f"java.lang.{_PRIMITIVES[name]}").TYPE
    return java_class(name).class_


def _signature(returns: str, *parameters: str) -> JavaObject:
    import jpype

    kinds = jpype.JArray(java_class("java.lang.Class"))([_type(name) for name in parameters])
    return java_class("java.lang.invoke.MethodType").methodType(_type(returns), kinds)


def box(value: JavaObject) -> JavaObject:
    """Return a Python int, bool or str as the Java object for a parameter of that type."""
    import jpype

    kinds = {bool: "java.lang.Boolean", int: "java.lang.Integer", str: "java.lang.String"}
    return jpype.JObject(value, kinds[type(value)]) if type(value) in kinds else value


def _lookup() -> JavaObject:
    return java_class("java.lang.invoke.MethodHandles").publicLookup()


def _as_interface(interface: str, function: Handle) -> JavaObject:
    """Wrap a handle as a Java functional interface, for example `java.util.function.Function`."""
    generic = {
        "IntFunction": ("java.lang.Object", "int"),
        "Predicate": ("boolean", "java.lang.Object"),
        "Function": ("java.lang.Object", "java.lang.Object"),
        "ToDoubleFunction": ("double", "java.lang.Object"),
        "ToIntFunction": ("int", "java.lang.Object"),
    }[interface.rpartition(".")[2]]
    return java_class("java.lang.invoke.MethodHandleProxies").asInterfaceInstance(
        _type(interface), function.asType(_signature(*generic))
    )


def _collect_list(stream: JavaObject) -> JavaObject:
    return stream.collect(java_class("java.util.stream.Collectors").toList())


def _java_options(settings: dict[str, Any]) -> list[str]:
    chosen = settings["java_opts"] or []
    options = shlex.split(chosen) if isinstance(chosen, str) else [str(item) for item in chosen]
    if not any(re.fullmatch(r"-XX:\+Use\w+GC", option) for option in options):
        options.insert(0, COLLECTOR)  # Java refuses to start with two collectors
    options.insert(0, NO_FORCED_COLLECTION)  # for other options, the last one counts
    if not any(option.startswith(("-Xmx", "-XX:MaxRAM", "-XX:MaxHeap")) for option in options):
        memory = available_memory()
        options.append(
            f"-Xmx{int(memory * HEAP_SHARE) >> 20}m" if memory else "-XX:MaxRAMPercentage=50"
        )
    return options
