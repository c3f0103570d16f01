"""The help of commands, and what a shell completes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import qpnuclei
from qpnuclei.cli.app import app
from qpnuclei.cli.command import GROUPS, LAST
from qpnuclei.cli.completing import complete_class, complete_image
from qpnuclei.training.config import recipe_names

Sample = Callable[[str], Path]


def commands(command: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    command = command or get_command(app)
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


def shown(*words: str) -> str:
    result = CliRunner().invoke(
        app, [*words, "--help"], env={"COLUMNS": "80"}, prog_name="qpnuclei"
    )
    assert result.exit_code == 0
    return result.stdout


def options(words: tuple[str, ...]) -> list[Any]:
    command = get_command(app)
    for word in words:
        command = command.commands[word]
    return [] if getattr(command, "commands", None) else command.params


def help_of(command: str, option: str) -> str:
    (found,) = (p for p in options((command,)) if option in p.opts)
    return str(found.help)


@pytest.mark.parametrize("words", [w for w in commands() if options(w)], ids=" ".join)
def test_every_command_has_json(words: tuple[str, ...]) -> None:
    assert "--json" in {name for option in options(words) for name in option.opts}


@pytest.mark.parametrize("words", [w for w in commands() if options(w)], ids=" ".join)
def test_no_folder_is_called_a_file(words: tuple[str, ...]) -> None:
    for option in options(words):
        if option.param_type_name == "option" and (option.help or "").startswith("Folder"):
            assert "FILE" not in option.metavar, option.opts


def test_the_help_of_train_names_every_recipe() -> None:
    text = help_of("train", "--config")
    assert [
        name for name in recipe_names() if not re.search(rf"(?<![\w-]){name}(?![\w-])", text)
    ] == []


def test_evaluate_takes_the_models_of_a_run() -> None:
    assert help_of("evaluate", "--model").startswith(help_of("run", "--model"))


def test_where_a_pixel_size_comes_from_without_mpp() -> None:
    found = {
        " ".join(words): option.help
        for words in commands()
        for option in options(words)
        if "--mpp" in option.opts
    }
    # Slides that no project describes have nothing but their files.
    assert {words for words, said in found.items() if "last run" not in said} == {
        *("demo", "project add", "project create")
    }


@pytest.mark.parametrize("words", [*commands()], ids=" ".join)
def test_help_names_no_type_of_a_flag(words: tuple[str, ...]) -> None:
    text = shown(*words)
    assert "<bool>" not in text
    assert "Show this message" in text


def test_the_options_that_most_need_are_on_the_first_screen() -> None:
    lines = shown("run").splitlines()
    panels = [line.strip("╭─╮ ") for line in lines if line.startswith("╭")]
    assert panels == ["Arguments", *GROUPS, LAST]
    screen = "\n".join(lines[: next(i for i, line in enumerate(lines) if f" {LAST} " in line)])
    assert screen.count("\n") < 50
    for option in ("--roi", "--tissue", "--model", "--device", "--mpp", "--output", "--dry-run"):
        assert option in screen
    assert screen.count("qpnuclei run ") == 3  # the usage, and two examples


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("preview p --fields 20", "20 fields is not in the range: 1 to 12 fields"),
        ("infer d --batch 0", "0 tiles is not in the range: 1 or more"),
        ("infer d --workers 0", "0 cores is not in the range: 1 or more"),
        ("filter p --min-certainty 1.5", "1.5 is not in the range: 0 to 1"),
        ("train s -o d --seed -1", "-1 is not in the range: 0 or more"),
        ("adapt s -o d --seed -1", "-1 is not in the range: 0 or more"),
    ],
)
def test_a_value_out_of_range_is_told_with_its_unit(words: str, said: str) -> None:
    result = CliRunner().invoke(app, words.split(), env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert said in result.stderr


def numbers(words: tuple[str, ...]) -> list[Any]:
    """Return the options of a command that are numbers."""
    return [p for p in options(words) if p.type.name in ("float", "integer")]


@pytest.mark.parametrize("words", [w for w in commands() if w and numbers(w)], ids=" ".join)
def test_no_number_is_nan_infinite_or_negative(words: tuple[str, ...]) -> None:
    for option in numbers(words):
        if "--positive-threshold" in option.opts:
            continue  # refused with others of its kind: test_positivity.py
        for value in ("nan", "inf", "-inf", "-1"):
            given = (value,) if option.multiple else value
            with pytest.raises(typer.BadParameter) as caught:
                option.process_value(None, given)
            said = caught.value.message
            assert value in said
            assert "is not in the range: " in said or "is not a valid int" in said


class Context:
    """What a shell has typed so far: words that are parsed, and others."""

    def __init__(self, *args: object, **params: object) -> None:
        self.args = [str(arg) for arg in args]
        self.params = params


def test_a_shell_completes_classes_and_images_of_the_project(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_QPNUCLEI_COMPLETE", "complete_fish")
    project = sample("0.5.1")
    classes = [path_class.name for path_class in qpnuclei.open_project(project).classes]
    images = [image.name for image in qpnuclei.open_project(project).images]
    for context in (
        Context(project),
        Context(inputs=(project,)),
        Context(project=project),
        Context("slides", source=project),
    ):
        assert complete_class(context, "") == classes
        assert complete_class(context, "Tu") == [name for name in classes if name.startswith("Tu")]
        assert complete_image(context, "") == images


def test_completion_never_raises(tmp_path: Path) -> None:
    (tmp_path / "project.qpproj").write_text("{")
    (tmp_path / "classifiers").mkdir()
    (tmp_path / "classifiers" / "classes.json").write_text("[")
    for context in (
        Context(),
        Context(tmp_path),
        Context(tmp_path / "absent", project=None),
        Context("\0"),
        None,
    ):
        assert complete_class(context, "") == []
        assert complete_image(context, "x") == []


def test_a_project_without_a_list_has_the_classes_of_qupath(tmp_path: Path) -> None:
    (tmp_path / "project.qpproj").write_text('{"version": "0.5.1", "images": []}')
    assert complete_class(Context(tmp_path), "Tum") == ["Tumor"]


def test_completion_through_a_shell(sample: Sample) -> None:
    words = "\n".join(["qpnuclei", "run", str(sample("0.5.1")), "--roi", ""])
    environment = {
        **os.environ,
        "_QPNUCLEI_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": "4",
    }
    code = "from qpnuclei.cli.app import app; app(prog_name='qpnuclei')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "'Tumor'" in done.stdout.splitlines()
    assert done.stderr == ""
