"""What the documentation says exists: commands, options, links, messages, names."""

from __future__ import annotations

import importlib.util
import json
import posixpath
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import qpnuclei
from qpnuclei.cli.app import app
from qpnuclei.datasets.synthetic.slide import make_slide
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "mkdocs.yml").is_file(), reason="not in a checkout")

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "qupath_scripts" / "README.md",
    *sorted((ROOT / "training").rglob("*.md")),
]
#: How a command line may begin, up to the words that qpnuclei itself gets.
_START = re.compile(r"(?:\$ )?(?:\S*/)?(?:(?:python|torchrun) (?:.* )?-m )?qpnuclei (?=\S)")
_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
#: Begins like a command, but is the name of a property in a project.
NO_COMMANDS = (
    "qpnuclei analysed",
    "qpnuclei filters",
)
_QUOTED = re.compile(r"`([^`]+)`")


def code_blocks(text: str) -> Iterator[str]:
    """Yield the lines of fenced and indented code, those that end in a backslash joined."""
    fenced, joined = False, ""
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            joined += line.strip()
            if joined.endswith("\\"):
                joined = joined[:-1]
                continue
            yield joined
            joined = ""


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command line of qpnuclei in the code of a page."""
    for line in code_blocks(text):
        if start := _START.match(line):
            words = shlex.split(line[start.end() :], comments=True)
            # Brackets around an option mean that it may be left out; a list has its own.
            yield [word if "=[" in word else word.strip("[]") for word in words]


@cache
def program() -> Any:
    return typer.main.get_command(app)


def parse(words: list[str]) -> None:
    """Raise what the program would say of a command line that it does not understand."""
    command = program()
    while getattr(command, "commands", None) and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    context = command.context_class(command, info_name="qpnuclei")
    _, left, _ = command.make_parser(context).parse_args(list(words))
    assert not left, f"{left} is more than the command takes"


def options(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("-")]


def known_options(words: list[str]) -> set[str]:
    """Return the options of a command that is named in running text, perhaps without arguments."""
    command = program()
    for word in words:
        if not getattr(command, "commands", None) or word.startswith("-"):
            break
        assert word in command.commands, f"no command {word!r}"
        command = command.commands[word]
    found = {"--help"}
    for parameter in command.params:
        found.update(parameter.opts, parameter.secondary_opts)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_options_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for words in commands(text):
        try:
            parse(words)
        except Exception as error:
            raise AssertionError(f"qpnuclei {shlex.join(words)}: {error}") from error
    for quoted in _QUOTED.findall(text):
        if quoted.startswith("qpnuclei ") and quoted not in NO_COMMANDS:
            words = shlex.split(quoted)[1:]
            assert not (unknown := set(options(words)) - known_options(words)), (quoted, unknown)
    for target in _LINK.findall(text):
        if ":" not in target:
            assert (page.parent / target).exists(), f"a link leads nowhere: {target}"


def test_the_commands_of_pages_are_found_and_wrong_ones_noticed() -> None:
    page = "    qpnuclei run p.qpproj \\\n        --roi Tumor   # a comment\n\nqpnuclei is it.\n"
    assert list(commands(page)) == [["run", "p.qpproj", "--roi", "Tumor"]]
    parse(["run", "p.qpproj", "--roi", "Tumor"])
    for wrong in (["run", "p.qpproj", "--rio", "Tumor"], ["project", "creat"], ["info", "p", "q"]):
        with pytest.raises(Exception, match=r"rio|creat|more than"):
            parse(wrong)


def test_the_site_has_every_page() -> None:
    # The tag is mkdocs' way to name a function; here it is only text.
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").replace("!!python/name:", "")
    listed = re.findall(r"'([^']+\.md)'", str(yaml.safe_load(text)["nav"]))
    # A notebook is made a page.
    there = [
        path.relative_to(ROOT / "docs").with_suffix(".md").as_posix()
        for path in (ROOT / "docs").rglob("*")
        if path.suffix in (".md", ".ipynb")
    ]
    assert sorted(listed) == sorted(there)


def test_the_site_has_every_page_that_it_links_to() -> None:
    pytest.importorskip("mkdocs")
    pytest.importorskip("nbconvert")
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "packaging" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(site)
    shown = site.pages_elsewhere()
    assert {"README.md", "training/model-cards/open-40x.md", "benchmarks/results/soak.md"} <= shown
    for page in [
        *shown,
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
    ]:
        for target in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            if path.endswith(".md") and ":" not in target and not path.startswith("docs/"):
                assert path in shown, f"{page} links to {path}"


def test_the_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: qpnuclei\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(set(qpnuclei.__all__) - {"__version__"})


def test_the_notebook_was_executed_and_names_what_exists() -> None:
    notebook = json.loads((ROOT / "docs" / "from-python.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    for cell in cells:
        assert cell["outputs"]
        assert "error" not in {output["output_type"] for output in cell["outputs"]}
        for name in re.findall(r"qpnuclei\.(\w+)[(.]", "".join(cell["source"])):
            assert name in {*qpnuclei.__all__, "datasets"}


@pytest.mark.slow
def test_the_notebook_prints_what_the_packaged_model_finds(tmp_path: Path) -> None:
    notebook = (ROOT / "docs" / "from-python.ipynb").read_text(encoding="utf-8")
    ((found, painted),) = re.findall(r"(\d+) nuclei found, (\d+) painted", notebook)
    made = make_slide(tmp_path / "synthetic.tif", size=(1200, 900))
    with qpnuclei.open_slide(made.path) as slide:
        rgb = slide.read(0, 0, slide.width, slide.height)
    nuclei = qpnuclei.segment(qpnuclei.load_engine("default"), rgb, mpp=0.25)
    assert int(painted) == len(made.nuclei)
    # Another processor may find a nucleus more or fewer.
    assert int(found) == pytest.approx(len(nuclei), abs=2)
    project = qpnuclei.create_project(tmp_path / "project", [made.path])
    summary = qpnuclei.run(project, qpnuclei.RunOptions(qpnuclei.Selection(tissue=True)))
    (written,) = re.findall(r"'nuclei': (\d+)", notebook)
    assert int(written) == pytest.approx(summary.nuclei, abs=2)


def templates() -> str:
    """Return the code with its broken strings joined, and ``…`` where a value is put in."""
    files = sorted((ROOT / "qpnuclei").rglob("*.py"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in files)
    code = re.sub(r'"\s+f?"', "", code)
    return re.sub(r"\{[^{}]*\}|%[.\d]*[sdgf]", "…", code)


def test_the_messages_that_the_docs_explain_are_those_of_the_program() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    messages = [_QUOTED.findall(row)[0] for row in rows]
    assert len(messages) > 30
    strings = templates()
    for message in messages:
        for part in filter(None, (part.strip(" …()") for part in message.split("…"))):
            assert part in strings, f"the program never says {part!r} ({message})"
