"""QuPath's PathClass: a name, and perhaps a parent that it refines."""

from __future__ import annotations

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata.java_fields import reference, string_field
from qpnuclei.qupath.qpdata.java_nodes import JavaObject


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
