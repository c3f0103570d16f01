"""Find a QuPath installation on this machine, without starting it.

The places are those of paquo's settings (``PAQUO_QUPATH_DIR``, a ``.paquo.toml``, the usual folders
of each operating system, a conda environment), so that one setting serves both.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qpnuclei.errors import UsageError

#: What to tell someone whose QuPath is not found.
HOW_TO_POINT_TO_QUPATH = (
    "set PAQUO_QUPATH_DIR to the folder that QuPath was unpacked or installed to "
    "(the one that holds bin and lib on Linux, QuPath.app on macOS, "
    r"%LOCALAPPDATA%\QuPath-0.x.y on Windows), or use --backend native"
)

# Operating system -> folder of the jars, the Java virtual machine, the conda package in its prefix.
_LAYOUTS = {
    "Linux": ("lib/app", "lib/runtime/lib/server/libjvm.so", "opt/QuPath"),
    "Darwin": ("Contents/app", "Contents/runtime/Contents/Home/lib/libjli.dylib", "bin/QuPath.app"),
    "Windows": ("app", "runtime/bin/server/jvm.dll", "Library/QuPath"),
}
_CORE_JAR = re.compile(r"qupath-(?:core|app|gui-fx)-v?(\d+\.\d+\.\d+.*)\.jar", re.IGNORECASE)


@dataclass(frozen=True)
class QuPathInstallation:
    """A QuPath on this machine.

    Parameters
    ----------
    path : Path
        Its folder, as ``PAQUO_QUPATH_DIR`` wants it.
    version : str or None
        For example ``"0.5.1"``, from the names of its jars.
    """

    path: Path
    version: str | None

    @property
    def release(self) -> tuple[int, int] | None:
        """Major and minor version, for example ``(0, 5)``."""
        match = re.match(r"(\d+)\.(\d+)", self.version or "")
        return (int(match[1]), int(match[2])) if match else None


def find_qupath() -> QuPathInstallation | None:
    """Find the QuPath that paquo would use; None if there is none.

    Raises
    ------
    qpnuclei.errors.UsageError
        If paquo is told where QuPath is (``PAQUO_QUPATH_DIR``), and it is not there.
    """
    settings = paquo_settings()
    chosen = str(settings["qupath_dir"] or "")
    if chosen:
        found = _inspect(Path(chosen).expanduser())
        if found is None:
            raise UsageError(f"no QuPath in PAQUO_QUPATH_DIR {chosen!r}", HOW_TO_POINT_TO_QUPATH)
        return found
    return next(filter(None, map(_inspect, _candidates(settings))), None)


def paquo_settings() -> dict[str, Any]:
    """Return paquo's settings, from its defaults, ``.paquo.toml`` and ``PAQUO_*`` variables."""
    # Not public in paquo; importing `paquo.java`, which is, would start the virtual machine.
    from paquo._config import settings, to_kwargs

    settings.reload()
    return dict(to_kwargs(settings))


def _inspect(path: Path) -> QuPathInstallation | None:
    jars, virtual_machine, _ = _LAYOUTS.get(platform.system(), _LAYOUTS["Linux"])
    try:
        if not (path / virtual_machine).is_file():
            return None
        matches = [_CORE_JAR.fullmatch(jar.name) for jar in sorted((path / jars).glob("*.jar"))]
    except OSError:  # a folder that may not be looked into
        return None
    version = next((match[1] for match in matches if match), None)
    return QuPathInstallation(path.absolute(), version)


def _candidates(settings: dict[str, Any]) -> Iterator[Path]:
    conda = os.environ.get("CONDA_PREFIX") if settings["qupath_search_conda"] else None
    conda_paths = (
        [Path(conda) / _LAYOUTS.get(platform.system(), _LAYOUTS["Linux"])[2]] if conda else []
    )
    if settings["qupath_prefer_conda"]:
        yield from conda_paths
    folders = settings["qupath_search_dirs"]
    is_qupath = re.compile(settings["qupath_search_dir_regex"] or "").match
    for folder in [folders] if isinstance(folders, str) else folders:
        try:
            paths = list(Path(folder).expanduser().iterdir())
        except OSError:
            continue
        paths.sort(key=lambda path: path.name.lower(), reverse=True)  # the newest version first
        yield from (path for path in paths if is_qupath(path.name))
    if not settings["qupath_prefer_conda"]:
        yield from conda_paths
