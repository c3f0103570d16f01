"""Layout of the help of commands: options in groups, rarely needed ones last."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

#: Groups in the order in which they are shown, with their parameters; all others come last.
GROUPS: dict[str, tuple[str, ...]] = {
    "What": (
        *("image", "mpp", "dataset", "split", "components", "shard"),
        *("slides_from", "by"),
    ),
    "Where": ("roi", "roi_all", "tissue", "exclude", "validation"),
    "How": (
        *("model", "device", "threshold", "min_area_um2", "min_certainty"),
        *("on_existing", "config", "settings", "epochs", "fields", "method", "tune"),
    ),
    "Output": ("output", "no_report", "dry_run", "json"),
}
LAST = "Advanced"
#: Commands with fewer options are shown without groups.
_FEW = 9

#: Placeholder for the value of an option in the help: its unit or meaning.
_VALUES = {
    **dict.fromkeys(("image", "roi_name"), "NAME"),
    **dict.fromkeys(("image_root", "slides_from", "run_dir", "geojson", "parquet"), "FOLDER"),
    **dict.fromkeys(("mpp", "validation_mpp"), "µm/px"),
    **dict.fromkeys(("max_nucleus", "simplify", "cell_expansion"), "µm"),
    **dict.fromkeys(("workers", "epochs", "seed", "limit", "fields"), "N"),
    **dict.fromkeys(("threshold", "min_certainty"), "0..1"),
    "min_area_um2": "µm²",
    "positive_threshold": "DENSITY",
    "tile": "px",
    "batch": "TILES",
    "unit_minutes": "MIN",
    "unit_gib": "GiB",
    "output": "FILE",
    "pictures": "N",
    "mpp_table": "FILE.csv",
    "roi_id": "UUID",
    "model": "MODEL",
    "device": "DEVICE",
    "precision": "TYPE",
    "speed": "WHAT",
    "on_existing": "WHAT",
    "backend": "NAME",
    "backup": "ID",
    "config": "RECIPE",
    "by": "ROW",
    "method": "NAME",
    "split": "NAME",
    "project": "PROJECT",
    "scales": "LIST",
}

_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}
_ORDER = [*GROUPS, LAST]


class _GroupedOptions:
    """Common part of commands and groups of commands."""

    params: list[Any]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        listed = [param for param in self.params if param.param_type_name == "option"]
        for param in self.params:
            if param.type.name == "path":
                _refuse_empty(param)
            if param not in listed:  # hide the Python type, which says less than the help text
                param.display_type_rich = lambda ctx: ""
                param.metavar = param.metavar or (param.name or "").upper()
        for param in listed:
            if param.metavar is None and not getattr(param, "is_flag", False):
                param.metavar = _VALUES.get(param.name or "")
            _describe_default(param)
        self._is_grouped = len(listed) > _FEW
        if self._is_grouped:
            for param in listed:
                _put(param, _GROUP_OF.get(param.name or "", LAST))

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, sorted by group."""
        found: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in found:
            if getattr(param, "is_flag", False) and param.metavar is None:
                param.metavar = ""
            if param.name == "help" and self._is_grouped:
                _put(param, LAST)
        return sorted(found, key=_place)


class Command(_GroupedOptions, TyperCommand):
    """A command with its options in groups, and with units instead of Python types."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with NumPy loaded.

        If the C code of Shapely or ONNX Runtime had to load NumPy, a Ctrl-C meanwhile would print a
        traceback.
        """
        importlib.import_module("numpy")
        return super().invoke(ctx)


class Group(_GroupedOptions, TyperGroup):
    """A group of commands with the same layout."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - as in the class above
        """Return the names of the commands, without loading the commands."""
        return list(self.commands)


class Lazy(Mapping[str, Any]):
    """Commands that are imported on demand: a call needs only one of them.

    Parameters
    ----------
    homes : mapping of str to str
        Location of each command: ``module:name`` of a function, or of a `typer.Typer` of commands.
    """

    def __init__(self, homes: Mapping[str, str]) -> None:
        self._homes = homes
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            module, _, attribute = self._homes[name].partition(":")
            found = getattr(importlib.import_module(module), attribute)
            if not isinstance(found, typer.Typer):
                single = typer.Typer(add_completion=False)
                single.command(name, cls=Command)(found)
                found = single
            self._loaded[name] = typer.main.get_command(found)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


def _refuse_empty(param: Any) -> None:
    """Make an empty path an error. A script with an unset variable gives one by mistake."""
    convert = param.type.convert

    def checked(value: Any, own: Any, ctx: Any) -> Any:
        if value == "":
            param.type.fail("the path is empty; this folder is '.'", own, ctx)
        return convert(value, own, ctx)

    param.type.convert = checked


def _put(param: Any, group: str) -> None:
    param.rich_help_panel = group


def _describe_default(param: Any) -> None:
    """Put the default into the help text, unless that needs a line of its own."""
    default = param.show_default
    if default is True and param.default is not None and not getattr(param, "is_flag", False):
        default = getattr(param.default, "value", param.default)
        default = f"{default:g}" if isinstance(default, float) else str(default)
    if isinstance(default, str) and default:
        param.help = f"{param.help} (default: {default})"
        param.show_default = False


def _place(param: Any) -> int:
    group = getattr(param, "rich_help_panel", None)
    return _ORDER.index(group) if group in _ORDER else -1
