from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qpnuclei.cli.app import app, main
from qpnuclei.errors import QpnucleiError
from tests.paths import SAMPLES

VERSIONS = sorted(path.name for path in SAMPLES.iterdir() if path.is_dir())


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Undo the log level of a test's last command."""
    yield
    logging.getLogger("qpnuclei").setLevel(logging.NOTSET)


@pytest.fixture
def sample(tmp_path: Path) -> Callable[[str], Path]:
    """Copy the sample project of a QuPath version, with its images, and return its folder."""

    def copy(version: str = "0.5.1") -> Path:
        return Path(shutil.copytree(SAMPLES / version, tmp_path / version)) / "project"

    return copy


@dataclass
class Outcome:
    exit_code: int
    stdout: str
    stderr: str
    error: QpnucleiError | None


@pytest.fixture
def qpnuclei() -> Callable[..., Outcome]:
    """Call the command line in this process; errors on purpose are returned, others raised."""

    def call(*arguments: object) -> Outcome:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        error = result.exception
        if isinstance(error, QpnucleiError):
            return Outcome(error.exit_code, result.stdout, result.stderr, error)
        if error is not None and not isinstance(error, SystemExit):
            raise error
        return Outcome(result.exit_code, result.stdout, result.stderr, None)

    return call


@pytest.fixture
def shell() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command line as a user does, in a process of its own."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "qpnuclei", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )

    return call


@pytest.fixture
def without_reader() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command line with a pipe as standard output whose reader has gone."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as pipe:
            return subprocess.run(
                [sys.executable, "-m", "qpnuclei", *map(str, arguments)],
                stdout=pipe,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )

    return call


@pytest.fixture
def program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command line as `shell` does, but in this process, which has its libraries."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = ["qpnuclei", *map(str, arguments)]
        root = logging.getLogger()
        capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", words)
            # The command line adds its own handler where there is none: pytest's are in its way.
            patched.setattr(root, "handlers", [])
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
            else:
                code = 0
        said = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, said.out, said.err)

    return call


def tree(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
