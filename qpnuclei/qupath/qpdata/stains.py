"""QuPath's colour deconvolution stains in a data file."""

from __future__ import annotations

import struct

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.java_nodes import BlockData, JavaObject, JavaString
from qpnuclei.slides.stains import Stains
from qpnuclei.system.json_text import parse_json


def parse_stains(text: str) -> Stains:
    """Parse QuPath's text form of colour deconvolution stains.

    Raises
    ------
    qpnuclei.errors.FormatError
        If it is not as QuPath writes it.
    """
    try:
        fields = parse_json(text)
        numbers = [k for k in (1, 2, 3) if f"Stain {k}" in fields]
        stains = Stains(
            fields["Name"],
            tuple(fields[f"Stain {k}"] for k in numbers),
            tuple(_triple(fields[f"Values {k}"]) for k in numbers),
            _triple(fields["Background"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FormatError(f"stains {text[:200]!r} are not as QuPath writes them") from None
    if len(numbers) < 2:
        raise FormatError(f"stains {text[:200]!r}: at least two are needed")
    return stains


def format_stains(stains: Stains) -> str:
    """Return QuPath's text form of colour deconvolution stains."""
    parts = [f'"Name" : "{stains.name}"']
    for k, (name, vector) in enumerate(zip(stains.stain_names, stains.vectors, strict=True), 1):
        parts.append(f'"Stain {k}" : "{name}"')
        parts.append(f'"Values {k}" : "{" ".join(f"{v:.8g}" for v in vector)}"')
    parts.append(f'"Background" : " {" ".join(f"{v:g}" for v in stains.background)}"')
    return "{" + ", ".join(parts) + "}"


def stains_node(catalog: Catalog, stains: Stains) -> JavaObject:
    """Make the object that holds an image's colour deconvolution stains."""
    text = JavaString.of(format_stains(stains))
    return catalog.make(jc.STAINS, extra=[BlockData(struct.pack(">i", 1)), text])


def _triple(text: str) -> tuple[float, float, float]:
    red, green, blue = map(float, text.split())
    return red, green, blue
