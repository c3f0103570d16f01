"""The scripts in QuPath's folder of scripts: put there, replaced, removed, and never others'."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from qpnuclei.errors import ConflictError, NotFoundError
from qpnuclei.qupath.scripts import (
    LISTING,
    SETTINGS,
    install,
    script_files,
    uninstall,
    user_folders,
)


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "QuPath" / "v0.5"
    folder.mkdir(parents=True)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_scripts_are_put_where_qupath_looks_for_them(user_folder: Path) -> None:
    done = install(user_folder)
    assert done.folder == user_folder / "scripts" / "qpnuclei"
    there = files(done.folder)
    assert {name: there[name] for name in script_files()} == script_files()
    assert set(there) == {*script_files(), LISTING, SETTINGS}
    assert set(done.written) == {*script_files(), SETTINGS}
    # The list is one that "sha256sum --check" reads.
    lines = [f"{sha256(content).hexdigest()}  {name}" for name, content in script_files().items()]
    assert there[LISTING].decode().splitlines() == lines
    assert install(user_folder).written == ()


def test_a_dry_run_says_the_same_and_changes_nothing(user_folder: Path) -> None:
    said = install(user_folder, write=False)
    assert files(user_folder) == {}
    assert install(user_folder) == said
    before = files(user_folder)
    said = uninstall(user_folder, write=False)
    assert files(user_folder) == before
    assert uninstall(user_folder) == said


def test_uninstalling_leaves_what_is_not_ours(user_folder: Path) -> None:
    own = user_folder / "scripts" / "mine.groovy"
    own.parent.mkdir()
    own.write_text("println 1")
    added = install(user_folder).folder / "notes.groovy"
    added.write_text("println 2")
    uninstall(user_folder)
    assert files(user_folder) == {
        "scripts/mine.groovy": b"println 1",
        "scripts/qpnuclei/notes.groovy": b"println 2",
    }
    added.unlink()
    install(user_folder)
    uninstall(user_folder)
    assert not added.parent.exists()
    assert uninstall(user_folder).removed == ()


def test_an_earlier_version_is_replaced_and_settings_stay(user_folder: Path) -> None:
    folder = install(user_folder).folder
    name = next(iter(script_files()))
    listing = (folder / LISTING).read_text()
    for earlier in (name, "parts/gone.groovy"):
        (folder / earlier).parent.mkdir(exist_ok=True)
        (folder / earlier).write_text("// an earlier version")
    own = sha256(b"// an earlier version").hexdigest()
    lines = [line for line in listing.splitlines() if not line.endswith(f"  {name}")]
    lines += [f"{own}  {name}", f"{own}  parts/gone.groovy"]
    (folder / LISTING).write_text("\n".join(lines) + "\n")
    (folder / SETTINGS).write_text("program=/mine\n")
    done = install(user_folder)
    assert (done.written, done.removed) == ((name,), ("parts/gone.groovy",))
    assert (folder / name).read_bytes() == script_files()[name]
    assert not (folder / "parts").exists() or any((folder / "parts").iterdir())
    assert (folder / SETTINGS).read_text() == "program=/mine\n"


@pytest.mark.parametrize("is_listed", [True, False])
def test_what_someone_changed_or_put_there_is_refused(user_folder: Path, is_listed: bool) -> None:
    folder = install(user_folder).folder
    name = next(iter(script_files()))
    (folder / name).write_text("// mine")
    if not is_listed:
        (folder / LISTING).unlink()
    before = files(user_folder)
    with pytest.raises(ConflictError, match=name):
        install(user_folder)
    if is_listed:
        with pytest.raises(ConflictError, match=name):
            uninstall(user_folder)
    assert files(user_folder) == before
    install(user_folder, force=True)
    assert (folder / name).read_bytes() == script_files()[name]


def test_a_list_that_leads_elsewhere_removes_nothing_there(user_folder: Path) -> None:
    folder = install(user_folder).folder
    outside = user_folder / "scripts" / "mine.groovy"
    outside.write_text("println 1")
    own = sha256(b"println 1").hexdigest()
    with (folder / LISTING).open("a") as stream:
        stream.write(f"{own}  ../mine.groovy\n{own}  {outside}\nnonsense\n")
    uninstall(user_folder)
    assert outside.read_text() == "println 1"


def test_user_folders_are_those_of_versions_that_read_the_scripts(tmp_path: Path) -> None:
    for name in ("v0.3", "v0.4", "v0.10", "v0.6", "v1.0", "v0.5-backup", "extensions"):
        (tmp_path / "QuPath" / name).mkdir(parents=True)
    (tmp_path / "QuPath" / "v0.7").write_text("no folder")
    assert [path.name for path in user_folders(tmp_path)] == ["v0.4", "v0.6", "v0.10", "v1.0"]
    with pytest.raises(NotFoundError, match=r"v0\.7 is not a folder"):
        install(tmp_path / "QuPath" / "v0.7")
