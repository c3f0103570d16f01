"""Find a QuPath installation on this machine, without starting it.

The location of QuPath decides which code runs. So it comes only from the user and the system:
``PAQUO_QUPATH_DIR``, ``paquo.toml`` in the user's configuration folder, the folders that each
operating system installs programs to, a conda environment. It never comes from the working folder
or a project, which may be from someone else: paquo itself would read a ``.paquo.toml`` there (and
run a ``dynaconf_hooks.py`` beside it), and in every folder above.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import platformdirs

from qpnuclei.errors import FormatError, UsageError

#: Hint for errors about a missing QuPath.
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
# Operating system -> where its users and installers put programs. Not the home folder itself, where
# people unpack what they receive.
_USUAL_PLACES = {
    "Linux": ["/opt", "/usr/local"],
    "Darwin": ["/Applications", "~/Applications"],
    "Windows": ["c:/Program Files", "~/AppData/Local"],
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
        If the one named by ``PAQUO_QUPATH_DIR`` or the user's file does not exist.
    """
    settings = paquo_settings()
    chosen = str(settings["qupath_dir"] or "")
    if chosen:
        found = _inspect(Path(chosen).expanduser())
        if found is None:
            named_by = "PAQUO_QUPATH_DIR" if "PAQUO_QUPATH_DIR" in os.environ else settings_file()
            raise UsageError(f"no QuPath in {chosen!r} ({named_by})", HOW_TO_POINT_TO_QUPATH)
        return found
    return next(filter(None, map(_inspect, _candidates(settings))), None)


def settings_file() -> Path:
    """Return the file of the user's own settings, which need not exist."""
    return platformdirs.user_config_path("qpnuclei", appauthor=False) / "paquo.toml"


def paquo_settings() -> dict[str, Any]:
    """Return paquo's settings: its defaults, under the user's file, under ``PAQUO_*`` variables.

    Raises
    ------
    qpnuclei.errors.FormatError
        If the user's file is not TOML, or a setting has the wrong type.
    """
    settings: dict[str, Any] = {
        "qupath_dir": "",
        "qupath_search_dirs": _USUAL_PLACES.get(platform.system(), []),
        "qupath_search_dir_regex": "(?i)qupath.*",
        "qupath_search_conda": True,
        "qupath_prefer_conda": True,
        "java_opts": [],
        "jvm_path_override": "",
        "safe_truncate": True,
        "mock_backend": False,
        "warn_microsoft_store_python": True,
    }
    chosen = {f"{key} in {settings_file()}": (key, value) for key, value in _user_settings()}
    for key in settings:
        name = f"PAQUO_{key.upper()}"
        if name in os.environ:
            chosen[name] = key, _from_environment(os.environ[name], settings[key])
    for source, (key, value) in chosen.items():
        if key not in settings:
            raise FormatError(f"{source}: no such setting", f"there are {', '.join(settings)}")
        kind = type(settings[key])
        fits = isinstance(value, kind) or type(value) is {list: str, bool: int}.get(kind)
        if not fits:
            raise FormatError(
                f"{source} is {value!r}, which is not a {kind.__name__}", "correct it"
            )
        settings[key] = value
    return settings


def _user_settings() -> list[tuple[str, Any]]:
    path = settings_file()
    try:
        text = path.read_text("utf-8")
        import tomllib  # few have such a file

        return list(tomllib.loads(text).items())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise FormatError(f"settings of paquo in {path}: {error}", "correct the file") from error


def _from_environment(text: str, default: object) -> Any:
    if isinstance(default, str):
        return text
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # options of Java, as in a shell


def shield_paquo() -> None:
    """Give paquo our settings before its import, so that it does not search for its own."""
    module = ModuleType("paquo._config")
    module.settings = SimpleNamespace(**paquo_settings())  # type: ignore[attr-defined]
    module.to_kwargs = vars  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module


def _inspect(path: Path) -> QuPathInstallation | None:
    jars, virtual_machine, _ = _LAYOUTS.get(platform.system(), _LAYOUTS["Linux"])
    try:
        if not (path / virtual_machine).is_file():
            return None
        matches = [_CORE_JAR.fullmatch(jar.name) for jar in sorted((path / jars).glob("*.jar"))]
    except OSError:  # no permission
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
