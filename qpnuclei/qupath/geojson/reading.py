"""Read QuPath's GeoJSON object by object, in constant memory."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from qpnuclei.errors import FormatError, NotFoundError, short_reason
from qpnuclei.qupath.geojson.features import objects_of
from qpnuclei.qupath.geojson.json_stream import Scanner, open_texts, read_values
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.problems import GeoJsonError, Problems, Reporter
from qpnuclei.system.files import unreadable


def read_objects(path: Path, problems: Problems | None = None) -> Iterator[GeoJsonObject]:
    """Read the objects of a GeoJSON file one after the other, children after their parent.

    Parameters
    ----------
    path : Path
        A FeatureCollection, a Feature, a geometry, or an array of features and geometries. The file
        may be plain, gzipped, or in a .zip (all its GeoJSON files are read). All dialects of QuPath
        0.2 to 0.7 are supported. A root object represents the image: it is skipped, and its
        children are read. Bytes that are not UTF-8 are read as Windows-1252 (Latin-1).
    problems : Problems, optional
        Collects invalid features and values while the others are read. By default the first one
        raises an error.

    Raises
    ------
    NotFoundError
        If there is no such file.
    FormatError
        If it is truncated, not JSON, or has an invalid feature and `problems` is not given. The
        error names the file and the number of the feature.
    """
    path = Path(path)
    index = 0
    try:
        with open_texts(path) as streams:
            for stream in streams:
                scanner = Scanner(stream)
                for value in read_values(scanner):
                    reporter = Reporter(problems, index)
                    if scanner.was_not_utf8:
                        reporter.report_value("text that is not UTF-8 was read as Windows-1252")
                    yield from objects_of(value, reporter)
                    index += 1
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file", "check the path") from error
    except GeoJsonError as error:
        raise FormatError(
            f"{path}, feature {index}: {short_reason(error)}", "export it again from QuPath"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile) as error:
        raise FormatError(
            f"{path}, feature {index}: {error}", "the file is damaged; export it again"
        ) from error
    except (OSError, RuntimeError, NotImplementedError) as error:  # the last two are from zipfile
        raise unreadable(f"{path}, feature {index}", error) from error
