"""What a release checks, and that files which say the same agree."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest
import yaml

from qpnuclei._version import __version__
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / ".ci").is_dir(), reason="not in a checkout")

VERSION_FILE = '"""Doc."""\n\n__version__ = "1.2.0"\n'
CHANGELOG = "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-01-31\n\n- More.\n\n## [1.1.0]\n"


@pytest.fixture
def check() -> ModuleType:
    path = ROOT / ".ci" / "check_release.py"
    spec = importlib.util.spec_from_file_location("check_release", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_tag_with_an_entry_is_released(check: ModuleType) -> None:
    assert check.problem("v1.2.0", VERSION_FILE, CHANGELOG) is None


@pytest.mark.parametrize(
    ("tag", "changelog", "said"),
    [
        ("v1.3.0", CHANGELOG, "the tag is v1.3.0, but the package's version is 1.2.0"),
        ("1.2.0", CHANGELOG, "the tag is 1.2.0"),
        ("v1.2.0", CHANGELOG.replace("[1.2.0]", "[1.2.1]"), "no entry '## [1.2.0]"),
        ("v1.2.0", CHANGELOG.replace("- 2026-01-31", ""), "no entry"),
        ("v1.2.0", CHANGELOG.replace("- More.\n", ""), "no entry"),
    ],
)
def test_a_tag_without_an_entry_is_refused(
    check: ModuleType, tag: str, changelog: str, said: str
) -> None:
    assert said in check.problem(tag, VERSION_FILE, changelog)


def test_the_program_itself_refuses() -> None:
    command = [sys.executable, str(ROOT / ".ci" / "check_release.py"), "v0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the tag is v0.0.0" in done.stderr


def test_the_citation_has_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "GPL-3.0-or-later"


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_workflows_name_targets_and_files_that_are_there(name: str) -> None:
    text = (ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    steps = [s for job in yaml.safe_load(text)["jobs"].values() for s in job["steps"]]
    for command in filter(None, (step.get("run") for step in steps)):
        words = command.split()
        if words[0] == "make":
            assert f"\n{words[1]}:" in makefile
        if words[:1] == ["python"] and words[1].startswith(".ci/"):
            assert (ROOT / words[1]).is_file()
