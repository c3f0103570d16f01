"""Models by name: packaged models and the user's files."""

from __future__ import annotations

from pathlib import Path

from qpnuclei.errors import NotFoundError

#: Folder of the packaged models, ``<name>.safetensors``.
WEIGHTS_FOLDER = Path(__file__).resolve().parents[1] / "weights"

#: The default model: the same on every machine, so that counts are comparable.
DEFAULT_MODEL = "default"


def resolve_model(name_or_path: str | Path) -> Path:
    """Return the file of a packaged model, or of a path.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is none; the message lists the available names.
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
