"""Shell completion: classes and images of the project in the command line.

Typer's scripts give a shell the candidates as they are. bash and PowerShell insert them without
quotes, so quotes are added here; zsh and fish quote by themselves. Names come from projects, which
may be someone else's: a name that could become anything but one word is left out.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from qpnuclei.errors import QpnucleiError

#: Parameters of commands that may hold a project.
_PROJECTS = ("dataset", "inputs", "project", "source", "sources")

#: Set by Typer's scripts: ``complete_bash`` for bash.
_SHELL = "_QPNUCLEI_COMPLETE"
#: The beginning of bash's current word that it leaves as it is; set by `join_bash_words`.
_KEPT = "_QPNUCLEI_KEPT"

#: What bash would take for a pattern of file names, even inside quotes: Typer's script has the
#: candidates expanded. Some versions of bash take a backslash for a part of one.
_PATTERN = re.compile(r"[*?\[\\]|[+@!]\(")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
#: Characters that Typer's script for zsh does not change, or that are quoted correctly by it.
_SAFE_IN_ZSH = re.compile(r"""(?!.*  )[^'"\\$`!]+""")
#: PowerShell takes these for quotes, too; and its script splits candidates there.
_UNSAFE_IN_POWERSHELL = re.compile("[\u2018-\u201f]|:::")


def complete_class(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the classes of the project that begin with a word; none if it cannot be read."""
    try:
        from qpnuclei.qupath.project_file import DEFAULT_CLASSES, read_classes

        found: list[str] = []
        for project in _projects(ctx):
            path = project.parent / "classifiers" / "classes.json"
            # A project without a list has QuPath's default classes.
            classes = read_classes(path) if path.exists() else DEFAULT_CLASSES
            found += [path_class.name for path_class in classes]
        return candidates(incomplete, found, os.environ)
    except Exception:  # noqa: BLE001 - a shell must not show an error in the middle of a word
        return []


def complete_image(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the project's images that begin with a word."""
    try:
        from qpnuclei.qupath.project_file import read_project

        found: list[str] = []
        for project in _projects(ctx):
            found += [str(entry.get("imageName")) for entry in read_project(project)["images"]]
        return candidates(incomplete, found, os.environ)
    except Exception:  # noqa: BLE001 - as above
        return []


def _projects(ctx: typer.Context) -> Iterator[Path]:
    from qpnuclei.qupath.project_file import find_project_file

    # While an option lacks its value, other arguments are not parsed yet.
    words = list(ctx.args)
    for name in _PROJECTS:
        given = ctx.params.get(name) or ()
        words += given if isinstance(given, list | tuple) else [given]
    for word in words:
        with suppress(QpnucleiError):  # a folder of slides, say
            yield find_project_file(Path(word))


def join_bash_words(environ: MutableMapping[str, str] = os.environ) -> None:
    """Join the words of the command line that bash splits at ``:`` and ``=``.

    bash completes ``Tumor: P`` after the colon, as a word of its own. Typer would take it for
    another argument. Nothing happens unless bash asks for candidates.

    bash does not tell Typer's script whether blanks stood between the words. A word that begins
    like a long option is taken for one: ``--exclude= --roi`` are two words.
    """
    if environ.get(_SHELL) != "complete_bash":
        return
    words, number = environ["COMP_WORDS"].split("\n"), int(environ["COMP_CWORD"])
    joined: list[str] = []
    kept, current = "", number
    is_open = False
    for index, word in enumerate(words):
        is_separator = bool(re.fullmatch("[:=]+", word))
        if joined and (is_separator or (is_open and not word.startswith("--"))):
            if index == number:
                kept = joined[-1] + (word if is_separator else "")
            joined[-1] += word
        else:
            joined.append(word)
        is_open = is_separator
        if index == number:
            current = len(joined) - 1
    environ.update(COMP_WORDS="\n".join(joined), COMP_CWORD=str(current), **{_KEPT: kept})


def candidates(
    incomplete: str, names: Sequence[str], environ: MutableMapping[str, str]
) -> list[str]:
    """Return the names that begin with a word, as the shell that asks must get them.

    Parameters
    ----------
    incomplete : str
        The beginning of the word, without quotes.
    names : sequence of str
    environ : mapping of str to str
        The variables that Typer's script has set.
    """
    # Scripts take each line for a candidate.
    fit = [name for name in dict.fromkeys(names) if name.isprintable()]
    shell = environ.get(_SHELL, "").removeprefix("complete_")
    write = _WRITERS.get(shell, _for_others)
    return [_Candidate(text) for text in write(incomplete, fit, environ)]


class _Candidate(str):
    """A candidate for a shell, which begins with the word by what it means: it may be quoted.

    Typer leaves out candidates that do not begin with the word as they are.
    """

    __slots__ = ()

    def startswith(self, *_: object) -> bool:
        return True


def _like(incomplete: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete) and name]


def _for_bash(
    incomplete: str, names: Sequence[str], environ: MutableMapping[str, str]
) -> list[str]:
    words, number = environ["COMP_WORDS"].split("\n"), int(environ["COMP_CWORD"])
    raw = words[number] if number < len(words) else ""
    replaced = raw.removeprefix(environ.get(_KEPT, ""))
    quote, typed = _open_quote(replaced)
    if quote is None or not incomplete.endswith(typed):
        return []
    # bash replaces only the last part of the word.
    before = len(incomplete) - len(typed)
    rests = [name[before:] for name in _like(incomplete, names) if name[before:]]
    if quote:
        return [_in_quotes(rest, quote) for rest in rests if not _PATTERN.search(rest)]
    if all(map(_PLAIN.fullmatch, rests)):
        return rests
    # All or none: then they begin alike, and bash completes as far as they agree.
    return [_quoted(rest) for rest in rests]


def _open_quote(raw: str) -> tuple[str | None, str]:
    """Return the quote that is open at the end of a word, or none, and the text that follows it.

    The quote is None if the word has others before: then it is not known what bash replaces.
    """
    found = re.fullmatch(r"""(?P<plain>(?:[^'"\\]|\\.)*)(?:(?P<quote>['"])(?P<rest>.*))?""", raw)
    if found is None:
        return None, ""
    quote, rest = found["quote"] or "", found["rest"]
    if not quote:
        plain = re.sub(r"\\(.)", r"\1", found["plain"])
        return (None if re.search(r"\\[:=]", raw) else ""), plain
    if quote == "'":
        return (None if "'" in rest else quote), rest
    text = re.sub(r'\\([\\"$`])', r"\1", rest)
    return (None if re.search(r'(?<!\\)(?:\\\\)*"', rest) else quote), text


def _in_quotes(text: str, quote: str) -> str:
    """Return a text as it stands after an open quote, which bash closes itself."""
    other = "'" if quote == '"' else '"'
    special = "'" if quote == "'" else r'["$`!]'
    return re.sub(special, lambda found: f"{quote}{other}{found[0]}{other}{quote}", text)


def _quoted(text: str) -> str:
    if _PATTERN.search(text):
        return f"$'{re.sub(r'[^A-Za-z0-9 _.,-]', _escaped, text)}'"
    return f"'{_in_quotes(text, chr(39))}'"


def _escaped(found: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in found[0].encode())


def _for_zsh(incomplete: str, names: Sequence[str], _: object) -> list[str]:
    return list(filter(_SAFE_IN_ZSH.fullmatch, _like(incomplete, names)))


def _for_fish(incomplete: str, names: Sequence[str], _: object) -> list[str]:
    return _like(incomplete, names)


def _for_powershell(incomplete: str, names: Sequence[str], _: object) -> list[str]:
    wanted = incomplete.removeprefix("'").replace("''", "'")
    fit = [name for name in _like(wanted, names) if not _UNSAFE_IN_POWERSHELL.search(name)]
    return [
        name if re.fullmatch(r"\w+", name, re.ASCII) else "'" + name.replace("'", "''") + "'"
        for name in fit
    ]


def _for_others(incomplete: str, names: Sequence[str], _: object) -> list[str]:
    return [name for name in _like(incomplete, names) if shlex.quote(name) == name]


_WRITERS: dict[str, Callable[[str, Sequence[str], Any], list[str]]] = {
    "bash": _for_bash,
    "zsh": _for_zsh,
    "fish": _for_fish,
    "powershell": _for_powershell,
    "pwsh": _for_powershell,
}
