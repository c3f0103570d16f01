"""What a shell makes of the names that it completes, which may come from someone else's project."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.cli.completing import candidates, join_bash_words

CLASSES = ["Immune cells", "Tumor: Positive", "Ignore*", "x*", "Stroma", "Necrosis", "two  spaces"]
IMAGES = [
    "a; touch HACKED #.tif",
    "$(touch HACKED).tif",
    "o'neil; $x.tif",
    'q "x" `touch HACKED` !1.tif',
    "back\\slash $HOME.tif",
    "st[1]?*.tif",
    "b+(c|d) e.tif",
    "ünï ☃.tif",
    "plain.tif",
    "-dash it.tif",
    "~ home.tif",
    "two\nlines; touch HACKED",
    "two\rlines",
    "tab\t<b>",
    "‘; touch HACKED #",
]

Typed = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    """Return what is typed in a bash, with a tab and a line feed at the end, as arguments."""
    pty = pytest.importorskip("pty")
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    folder = tmp_path_factory.mktemp("bash")
    project = folder / "p"
    (project / "classifiers").mkdir(parents=True)
    server = {"builderType": "uri", "uri": "file:/a.tif"}
    images = [
        {"entryID": str(i), "imageName": name, "serverBuilder": server}
        for i, name in enumerate(IMAGES)
    ]
    (project / "project.qpproj").write_text(json.dumps({"version": "0.5.1", "images": images}))
    classes = {"pathClasses": [{"name": name} for name in CLASSES]}
    (project / "classifiers" / "classes.json").write_text(json.dumps(classes))
    # What bash would expand patterns to.
    for trap in ("x; touch HACKED", "'x; touch HACKED'", "st1x; touch HACKED.tif", "bcd e.tif"):
        (folder / trap).touch()
    (folder / "bin").mkdir()
    program = folder / "bin" / "qpnuclei"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, os, sys\n"
        "if '_QPNUCLEI_COMPLETE' in os.environ:\n"
        "    from qpnuclei.cli.app import main\n"
        "    main()\n"
        "with open('arguments', 'a') as stream:\n"
        "    print(json.dumps(sys.argv[1:]), file=stream)\n"
    )
    program.chmod(0o755)
    path = os.pathsep.join(
        [str(program.parent), os.environ["PATH"], str(Path(sys.executable).parent)]
    )
    environment = {
        **os.environ,
        "PATH": path,
        "TERM": "dumb",
        "HISTFILE": "/dev/null",
        "LC_ALL": "C.UTF-8",
    }
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execve(bash, ["bash", "--norc", "--noprofile", "-i"], environment)
    arguments = folder / "arguments"

    def enter(text: str) -> None:
        os.write(terminal, text.encode())

    def read(before: int) -> list[str]:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            os.set_blocking(terminal, False)
            try:
                os.read(terminal, 1 << 16)  # bash waits if nobody reads what it prints
            except BlockingIOError:
                time.sleep(0.02)
            lines = arguments.read_text().splitlines() if arguments.exists() else []
            if len(lines) > before:
                found: list[str] = json.loads(lines[before])
                return found
        enter("\x03")  # a quote may be open
        raise TimeoutError

    number = 0

    def type_it(text: str) -> list[str]:
        nonlocal number
        enter(f"qpnuclei run p {text}\t\n")
        found = read(number)
        number += 1
        assert not (folder / "HACKED").exists()
        assert found[:2] == ["run", "p"]
        return found[2:]

    enter("bind 'set enable-bracketed-paste off'; shopt -s extglob\n")
    enter('eval "$(_QPNUCLEI_COMPLETE=source_bash qpnuclei)"\n')
    yield type_it
    enter("exit\n")
    os.close(terminal)
    os.waitpid(process, 0)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("--roi Imm", "Immune cells"),
        ("--roi 'Imm", "Immune cells"),
        ('--roi "Imm', "Immune cells"),
        ("--roi Immune\\ c", "Immune cells"),
        ("--roi 'Immune c", "Immune cells"),
        ("--roi Str", "Stroma"),
        ("--roi Tum", "Tumor: Positive"),
        ("--roi Tumor:", "Tumor: Positive"),
        ('--roi "Tumor:', "Tumor: Positive"),
        ("--roi 'Tumor: P", "Tumor: Positive"),
        ("--roi=Imm", "Immune cells"),
        ("--roi=Tumor:", "Tumor: Positive"),
        ("--exclude= --roi Imm", "Immune cells"),
        ("--roi Tumor: --exclude Imm", "Immune cells"),
        ("--exclude Ig", "Ignore*"),
        ("--exclude x", "x*"),
        *(
            (f"--image {start}{IMAGES[at][:length]}", IMAGES[at])
            for at, length in ((0, 1), (2, 1), (3, 1), (6, 2), (7, 2), (8, 1))
            for start in ("", "'", '"')
            if at != 6 or not start
        ),
        ("--image '$", "$(touch HACKED).tif"),
        ("--image \\$", "$(touch HACKED).tif"),
        ("--image back", "back\\slash $HOME.tif"),
        ("--image st", "st[1]?*.tif"),
        ("--image \\~", "~ home.tif"),
    ],
)
def test_bash_completes_a_name_as_one_word_whatever_is_in_it(
    typed: Typed, line: str, name: str
) -> None:
    *_, found = typed(line)
    assert found.removeprefix("--roi=") == name


def test_bash_completes_nothing_that_is_not_known_to_be_safe(typed: Typed) -> None:
    # Control characters, and a word of several quotes.
    assert typed("--image two") == ["--image", "two"]
    assert typed("--image tab") == ["--image", "tab"]
    assert typed("--roi 'Imm'une") == ["--roi", "Immune"]


def offered(shell: str, typed: str = "") -> list[str]:
    environ = {"_QPNUCLEI_COMPLETE": f"complete_{shell}", "COMP_WORDS": f"q\n{typed}"}
    environ["COMP_CWORD"] = "1"
    found = candidates(typed, [*CLASSES, *IMAGES], environ)
    return ["".join(word) for word in found]


def test_what_bash_is_given_is_quoted_for_it() -> None:
    printable = [name for name in [*CLASSES, *IMAGES] if name.isprintable()]
    for word, name in zip(offered("bash"), printable, strict=True):
        if word.startswith("$'"):
            assert set("*?[(") & set(name) or "\\" in name
            assert not set("*?[(") & set(word)
        else:
            assert shlex.split(word) == [name]


def test_shells_that_quote_by_themselves_get_names_as_they_are() -> None:
    printable = [name for name in [*CLASSES, *IMAGES] if name.isprintable()]
    assert offered("fish") == printable
    # Typer's script for zsh changes some characters.
    of_zsh = offered("zsh")
    assert {"Immune cells", "Tumor: Positive", "a; touch HACKED #.tif"} <= set(of_zsh)
    assert not [name for name in of_zsh if set(name) & set("'\"\\$`!") or "  " in name]
    assert set(of_zsh) < set(printable)


def test_powershell_gets_quoted_names() -> None:
    assert offered("powershell", "Imm") == offered("pwsh", "'Imm") == ["'Immune cells'"]
    assert offered("pwsh", "Str") == ["Stroma"]
    assert offered("pwsh", "o") == ["'o''neil; $x.tif'"]
    assert offered("pwsh", "‘") == []


def test_other_shells_get_only_names_that_need_no_quotes() -> None:
    assert offered("unknown") == ["Stroma", "Necrosis", "plain.tif"]


@pytest.mark.parametrize(
    ("words", "number", "joined", "current", "kept"),
    [
        (["q", "run", "p"], 2, ["q", "run", "p"], 2, ""),
        (["q", "run", ""], 2, ["q", "run", ""], 2, ""),
        (["q", "--roi", "Tumor", ":"], 3, ["q", "--roi", "Tumor:"], 2, "Tumor:"),
        (["q", "--roi", "Tumor", ":", "P"], 4, ["q", "--roi", "Tumor:P"], 2, "Tumor:"),
        (["q", "--roi", "=", "a", ":", "b", "x"], 5, ["q", "--roi=a:b", "x"], 1, "--roi=a:"),
        (["q", "a", "::", "b", "--roi", "I"], 5, ["q", "a::b", "--roi", "I"], 3, ""),
        (["q", "-o", "=", "--class", "I"], 4, ["q", "-o=", "--class", "I"], 3, ""),
        (["q", "--roi", "a", ":", "--roi", "="], 5, ["q", "--roi", "a:", "--roi="], 3, "--roi="),
        (["q", "--roi", "=", "-"], 3, ["q", "--roi=-"], 1, "--roi="),
    ],
)
def test_words_that_bash_splits_are_joined(
    words: list[str], number: int, joined: list[str], current: int, kept: str
) -> None:
    environ = {"_QPNUCLEI_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words)}
    environ["COMP_CWORD"] = str(number)
    join_bash_words(environ)
    assert environ["COMP_WORDS"].split("\n") == joined
    assert (environ["COMP_CWORD"], environ["_QPNUCLEI_KEPT"]) == (str(current), kept)
    other = {"_QPNUCLEI_COMPLETE": "complete_zsh"}
    join_bash_words(other)
    assert other == {"_QPNUCLEI_COMPLETE": "complete_zsh"}


def options_of(command: Any, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the options of a command and of those below it, each with the words before it."""
    for name, other in getattr(command, "commands", {}).items():
        yield from options_of(other, *path, name)
    for option in command.params:
        if option.param_type_name == "option":
            yield path, option


PROGRAM = typer.main.get_command(app)
#: Options that name a class or an image of a project.
NAMING = {
    " ".join([*path, option.opts[0]]): (path, option.opts[0], option.metavar)
    for path, option in options_of(PROGRAM)
    if option.metavar == "CLASS" or option.opts[0] in ("--roi", "--class", "--exclude", "--image")
}


@pytest.mark.parametrize("option", NAMING)
def test_every_option_that_names_a_class_or_an_image_completes_it(
    option: str, tmp_path: Path
) -> None:
    server = {"builderType": "uri", "uri": "file:/a.tif"}
    images = [{"entryID": "1", "imageName": "Tum1.tif", "serverBuilder": server}]
    (tmp_path / "project.qpproj").write_text(json.dumps({"version": "0.5.1", "images": images}))
    path, name, means = NAMING[option]
    asked = {
        "_QPNUCLEI_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": shlex.join(["qpnuclei", *path, str(tmp_path), name, "Tum"]),
    }
    done = CliRunner().invoke(app, env=asked, prog_name="qpnuclei")
    # A project without a list of classes has QuPath's.
    assert done.stdout.split() == ["Tumor" if means == "CLASS" else "Tum1.tif"]


def test_the_options_that_name_a_class_are_known() -> None:
    assert {"evaluate --roi", "evaluate --truth-class", "adapt --corrections"} < set(NAMING)


def test_the_script_of_the_module_is_that_of_the_command() -> None:
    """Shells complete `qpnuclei`; they cannot complete `python -m qpnuclei`."""
    command = [sys.executable, "-m", "qpnuclei", "--show-completion"]
    asked = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run([*command, "bash"], env=asked, capture_output=True, text=True, check=True)
    assert "_QPNUCLEI_COMPLETE=complete_bash" in done.stdout
    assert done.stdout.splitlines()[-1] == "complete -o default -F _qpnuclei_completion qpnuclei"
