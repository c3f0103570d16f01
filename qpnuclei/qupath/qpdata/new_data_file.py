"""Make new data files, as QuPath 0.3 to 0.7 lay them out."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_nodes
from qpnuclei.qupath.qpdata.annotations import id_metadata
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.java_nodes import BlockData, Content, JavaObject, JavaString
from qpnuclei.qupath.qpdata.path_objects import PathObject
from qpnuclei.qupath.qpdata.stains import stains_node
from qpnuclei.slides.stains import Stains


def new_data_file(
    builder: Mapping[str, Any],
    image_type: str,
    stains: Stains | None,
    *,
    qupath_version: str,
    entry_property: str,
) -> DataFile:
    """Make the file of an image without objects, as QuPath 0.3 to 0.7 lay it out.

    Parameters
    ----------
    builder : mapping
        The image's ``serverBuilder`` in the project.
    image_type : str
        ``"BRIGHTFIELD_H_E"``, ``"UNSET"``, ...
    stains : Stains or None
    qupath_version : str
        QuPath version that the file states.
    entry_property : str
        Project file and entry ID, as QuPath notes them: ``"/path/project.qpproj::1"``.
    """
    server = {"dataVersion": 3, "qupathVersion": qupath_version, "server": builder}
    server_json = json.dumps(server, ensure_ascii=False, separators=(",", ":"))
    properties = {"PROJECT_ENTRY_ID": entry_property}
    catalog = Catalog()
    empty = JavaString(b"")
    locale = catalog.make(
        jc.LOCALE,
        {
            "hashcode": -1,
            "country": catalog.string("US"),
            "extensions": empty,
            "language": catalog.string("en"),
            "script": empty,
            "variant": empty,
        },
        [],
    )
    return DataFile(
        [
            _version_block(),
            JavaString.of(server_json),
            locale,
            catalog.image_type(image_type),
            None if stains is None else stains_node(catalog, stains),
            catalog.make(jc.WORKFLOW, extra=[BlockData(struct.pack(">ii", 1, 0))]),
            _hierarchy_node(catalog),
            catalog.hash_map({JavaString.of(k): JavaString.of(v) for k, v in properties.items()}),
            JavaString.of("EOF"),
        ],
        catalog,
        "new data file",
    )


def data_file_of_objects(catalog: Catalog, objects: Sequence[Content]) -> DataFile:
    """Make a minimal file from which QuPath can read the given objects.

    Parameters
    ----------
    catalog : Catalog
        The catalog that created the objects.
    objects : sequence of contents
        Directly under the image.
    """
    return DataFile([_version_block(), _hierarchy_node(catalog, objects)], catalog, "new objects")


def _hierarchy_node(catalog: Catalog, objects: Sequence[Content] = ()) -> JavaObject:
    """Make the hierarchy of an image with objects directly under it."""
    root = catalog.path_object(jc.ROOT, metadata=id_metadata(catalog, uuid.uuid4()))
    PathObject.of(root).set_children(list(objects))
    return catalog.make(jc.HIERARCHY, {"rootObject": root})


def _version_block() -> BlockData:
    version = java_nodes.encode_utf("Data file version 3")
    return BlockData(len(version).to_bytes(2, "big") + version)
