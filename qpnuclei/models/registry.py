"""Models by name: those that come with the package, and files of the user."""

from __future__ import annotations

from pathlib import Path

from qpnuclei.errors import NotFoundError

#: Where the models that come with the package lie, as ``<name>.safetensors``.
WEIGHTS_FOLDER = Path(__file__).resolve().parents[1] / "weights"

#: The model that is taken where none is named: the same on every machine, as counts must be.
DEFAULT_MODEL = "default"


def resolve_model(name_or_path: str | Path) -> Path:
    """Return the file of a model that comes with the package, or of a path.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is none; the message lists the names there are.
    """
    path = Path(name_or_path)
    if path.suffix == ".safetensors" or len(path.parts) > 1:
        if not path.is_file():
            raise NotFoundError(f"no model file at {path}", "give a name or a .safetensors file")
        return path
    packaged = WEIGHTS_FOLDER / f"{name_or_path}.safetensors"
    if not packaged.is_file():
        names = sorted(p.stem for p in WEIGHTS_FOLDER.glob("*.safetensors"))
        raise NotFoundError(
            f"no model named {str(name_or_path)!r} comes with qpnuclei",
            f"there are: {', '.join(names) or 'none'}; or give the path of a .safetensors file",
        )
    return packaged
