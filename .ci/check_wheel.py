"""Build the wheel, install it into a fresh environment, and use it from outside of the checkout.

The environment takes the dependencies of this one, and so needs neither network nor minutes:

    python .ci/check_wheel.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What commands read at run time, which an editable installation would find in the checkout.
DATA = (
    "py.typed",
    "weights/default-20x.safetensors",
    "weights/default-40x.safetensors",
    "training/configs/student.yaml",
    "training/card.md.jinja",
    "report/templates/report.html.j2",
    "evaluation/page.html.jinja",
)


def main() -> None:
    """Exit with 1 if the wheel lacks something."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
        (wheel,) = folder.glob("*.whl")
        run(sys.executable, "-m", "venv", "--without-pip", folder / "fresh")
        scripts = folder / "fresh" / ("Scripts" if os.name == "nt" else "bin")
        python = scripts / "python"
        install = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check", wheel)
        run(sys.executable, "-m", "pip", "--python", python, "install", *install)
        packages = Path(run(python, "-c", "import site; print(site.getsitepackages()[0])").strip())
        # Lines of a .pth file are paths; the .pth files in them, as that of an editable
        # installation, are not read.
        (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        missing = [name for name in DATA if not (packages / "qpnuclei" / name).is_file()]
        if missing:
            raise SystemExit(f"the wheel lacks {', '.join(missing)}")
        where = run(python, "-c", "import qpnuclei; print(qpnuclei.__file__)", cwd=folder)
        if not Path(where.strip()).is_relative_to(packages):
            raise SystemExit(f"not the wheel was imported, but {where.strip()}")
        for words in (["--version"], ["run", "--help"], ["doctor"]):
            said = run(scripts / "qpnuclei", *words, cwd=folder)
        sys.stdout.write(said)


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a command and return its output; end with what it says if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
