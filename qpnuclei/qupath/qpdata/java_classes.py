"""The Java and QuPath classes of a data file: their names and descriptors."""

from __future__ import annotations

from qpnuclei.qupath.qpdata.java_nodes import (
    SC_BLOCK_DATA,
    SC_ENUM,
    SC_EXTERNALIZABLE,
    SC_SERIALIZABLE,
    SC_WRITE_METHOD,
    ClassDesc,
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
POINTS = ROI + "PointsROI$SerializationProxy"
GEOMETRY = ROI + "GeometryROI$WKBSerializationProxy"

_EXTERNAL = SC_EXTERNALIZABLE | SC_BLOCK_DATA
_PLAIN = SC_SERIALIZABLE
_CUSTOM = SC_SERIALIZABLE | SC_WRITE_METHOD
_STRING = "Ljava/lang/String;"
_PLANE = (("I", "c", ""), ("I", "t", ""), ("I", "z", ""))

#: By name: serialVersionUID, flags, superclass, fields (type code, name, type) in stream order.
DESCRIPTORS: dict[str, tuple[int, int, str | None, tuple[tuple[str, str, str], ...]]] = {
    BYTE_ARRAY: (-5984413125824719648, _PLAIN, None, ()),
    FLOAT_ARRAY: (836686056779680834, _PLAIN, None, ()),
    DOUBLE_ARRAY: (4514449696888150558, _PLAIN, None, ()),
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
    DOUBLE_LIST: (1, _PLAIN, _ABSTRACT_LIST, (("[", "values", DOUBLE_ARRAY),)),
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


def is_known(desc: ClassDesc) -> bool:
    """Tell whether a descriptor in a file equals the known descriptor of that class."""
    if desc.name not in DESCRIPTORS:
        return False
    uid, flags, super_name, fields = DESCRIPTORS[desc.name]
    file_super = desc.super_desc.name if isinstance(desc.super_desc, ClassDesc) else None
    return (desc.uid, desc.flags, file_super, tuple((f.code, f.name) for f in desc.fields)) == (
        uid,
        flags,
        super_name,
        tuple((code, name) for code, name, _ in fields),
    )
