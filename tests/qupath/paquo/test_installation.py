from __future__ import annotations

import logging
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.errors import FormatError, UsageError
from qpnuclei.qupath.paquo.installation import (
    QuPathInstallation,
    find_qupath,
    paquo_settings,
    settings_file,
)
from qpnuclei.qupath.project import choose_backend, open_project
from tests.qupath.samples import copy_project

# As the installers of QuPath lay it out.
FILES = {
    "Linux": ["lib/app/qupath-core-{}.jar", "lib/runtime/lib/server/libjvm.so"],
    "Darwin": [
        "Contents/app/qupath-core-{}.jar",
        "Contents/runtime/Contents/Home/lib/libjli.dylib",
    ],
    "Windows": ["app/qupath-core-{}.jar", "runtime/bin/server/jvm.dll"],
}


def make_installation(folder: Path, version: str = "0.5.1", system: str | None = None) -> Path:
    for name in FILES[system or platform.system()]:
        file = folder / name.format(version)
        file.parent.mkdir(parents=True)
        file.touch()
    return folder


@pytest.fixture(autouse=True)
def no_qupath(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platformdirs.user_config_path", lambda *_, **__: tmp_path / "config")
    monkeypatch.setenv("PAQUO_QUPATH_DIR", "")
    monkeypatch.setenv("PAQUO_QUPATH_SEARCH_DIRS", "[]")
    monkeypatch.delenv("CONDA_PREFIX", raising=False)


def test_no_qupath_means_native() -> None:
    assert find_qupath() is None
    assert choose_backend("auto") == "native"
    assert choose_backend("native") == "native"


def test_paquo_without_qupath_says_how_to_point_to_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no QuPath found") as raised:
        open_project(copy_project("0.5.1", tmp_path), "paquo")
    assert "PAQUO_QUPATH_DIR" in raised.value.hint
    assert "--backend native" in raised.value.hint


@pytest.mark.parametrize("system", list(FILES))
def test_found_where_the_variable_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr("platform.system", lambda: system)
    folder = make_installation(tmp_path / "anything", "0.6.0-rc2", system)
    monkeypatch.setenv("PAQUO_QUPATH_DIR", str(folder))
    found = find_qupath()
    assert found == QuPathInstallation(folder, "0.6.0-rc2")
    assert found.release == (0, 6)
    assert choose_backend("auto") == "paquo"


def test_the_variable_points_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAQUO_QUPATH_DIR", str(tmp_path))
    for backend in ("auto", "paquo"):  # never silently the native backend
        with pytest.raises(UsageError, match="PAQUO_QUPATH_DIR"):
            choose_backend(backend)
    assert choose_backend("native") == "native"


def test_the_newest_in_the_usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_installation(tmp_path / "QuPath-v0.4.4", "0.4.4")
    newest = make_installation(tmp_path / "QuPath-v0.5.1", "0.5.1")
    (tmp_path / "qupath-projects").mkdir()  # not an installation, though its name says so
    make_installation(tmp_path / "other", "0.7.0")
    monkeypatch.setenv("PAQUO_QUPATH_SEARCH_DIRS", f'["{tmp_path.as_posix()}/none", "{tmp_path}"]')
    assert find_qupath() == QuPathInstallation(newest, "0.5.1")


def test_an_old_qupath_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAQUO_QUPATH_DIR", str(make_installation(tmp_path / "q", "0.3.2")))
    assert choose_backend("auto") == "native"
    with pytest.raises(UsageError, match=r"0\.3\.2 .* too old"):
        choose_backend("paquo")


@pytest.mark.parametrize("projects", [1, 2])
def test_a_run_says_once_that_qupath_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, projects: int
) -> None:
    caplog.set_level(logging.INFO, logger="qpnuclei")
    folder = make_installation(tmp_path / "q", "0.3.2")
    monkeypatch.setenv("PAQUO_QUPATH_DIR", str(folder))
    paths = [str(copy_project("0.5.1", tmp_path / f"{number}")) for number in range(projects)]
    CliRunner().invoke(app, ["run", *paths, "--roi", "Tumor", "--dry-run"])
    assert caplog.text.count("is too old for the paquo backend") == 1


def test_an_installation_of_unknown_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_installation(tmp_path / "q")
    next(folder.rglob("qupath-core-*.jar")).unlink()
    monkeypatch.setenv("PAQUO_QUPATH_DIR", str(folder))
    assert find_qupath() == QuPathInstallation(folder, None)


def test_an_unknown_backend() -> None:
    with pytest.raises(UsageError, match="'java'"):
        choose_backend("java")  # type: ignore[arg-type]


def test_importing_starts_no_java() -> None:
    code = (
        "import sys; import qpnuclei.qupath.project, qpnuclei.qupath.paquo.backend; "
        "from qpnuclei.qupath.project import find_qupath; find_qupath(); "
        "sys.exit('jpype' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_users_own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_installation(tmp_path / "q")
    settings_file().parent.mkdir()
    settings_file().write_text(f"qupath_dir = '{folder}'\njava_opts = ['-Xmx2g']\n")
    monkeypatch.delenv("PAQUO_QUPATH_DIR")
    assert find_qupath() == QuPathInstallation(folder, "0.5.1")
    assert paquo_settings()["java_opts"] == ["-Xmx2g"]
    monkeypatch.setenv("PAQUO_JAVA_OPTS", "-Xmx3g -Dx=1")  # variables count more
    assert paquo_settings()["java_opts"] == "-Xmx3g -Dx=1"


@pytest.mark.parametrize(
    "text", ["qupath_dir = ", "qupath_dir = 3", "qupath = '/opt/QuPath'", "java_opts = {}"]
)
def test_settings_that_are_wrong(text: str) -> None:
    settings_file().parent.mkdir()
    settings_file().write_text(text)
    with pytest.raises(FormatError, match=re.escape(str(settings_file()))):
        find_qupath()


def test_the_working_folder_and_home_are_no_usual_places(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PAQUO_QUPATH_SEARCH_DIRS")
    monkeypatch.setenv("HOME", str(tmp_path))
    for system, home in {"Linux": 0, "Darwin": 1, "Windows": 1}.items():
        monkeypatch.setattr("platform.system", lambda system=system: system)
        places = paquo_settings()["qupath_search_dirs"]
        assert "~" not in places
        assert sum(place.startswith("~/") for place in places) == home
        assert len(places) == 2
