from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Outcome


def test_all_versions_that_are_there_get_the_scripts_and_lose_them(
    qpnuclei: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    outcome = qpnuclei("qupath", "install")
    assert outcome.exit_code == 2
    assert outcome.error is not None
    assert "--to" in (outcome.error.hint or "")
    for name in ("v0.4", "v0.5"):
        (tmp_path / "QuPath" / name).mkdir(parents=True)
    said = json.loads(qpnuclei("qupath", "install", "--json").stdout)
    folders = [tmp_path / "QuPath" / name / "scripts" / "qpnuclei" for name in ("v0.4", "v0.5")]
    assert [one["folder"] for one in said] == list(map(str, folders))
    assert all((folder / "run_qpnuclei.groovy").is_file() for folder in folders)
    assert "would be removed: " in qpnuclei("qupath", "uninstall", "--dry-run").stdout
    outcome = qpnuclei("qupath", "uninstall", "--to", tmp_path / "QuPath" / "v0.4")
    assert outcome.exit_code == 0
    assert [folder.exists() for folder in folders] == [False, True]
