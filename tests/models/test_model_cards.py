"""The figures on the model cards, in the README and in help texts are those in the model files."""

import re
from typing import get_args

import pytest

from qpnuclei.cli.options import SpeedOption
from qpnuclei.models.metadata import read_metadata
from qpnuclei.models.registry import resolve_model
from tests.paths import ROOT


@pytest.mark.parametrize(
    ("page", "model"),
    [("default.md", "default-40x"), ("default-20x.md", "default-20x"), ("open-40x.md", "open-40x")],
)
def test_the_model_card_says_what_was_measured(page: str, model: str):
    card = (ROOT / "training/model-cards" / page).read_text(encoding="utf-8")
    measured = read_metadata(resolve_model(model)).validation
    for key, title in (("AJI", "AJI"), ("ADC", "Dice (ADC)"), ("PQ", "PQ")):
        low, high = measured["interval"][key]
        row = f"| {title} | {measured['mean'][key]:.3f} | {measured['sd'][key]:.3f} "
        assert row + f"| {low:.3f} to {high:.3f} |" in card


def test_the_readme_says_what_was_measured():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    measured = read_metadata(resolve_model("default")).validation
    cells = []
    for key in ("AJI", "ADC", "PQ"):
        mean, (low, high) = measured["mean"][key], measured["interval"][key]
        cells.append(f"**{mean:.3f}** [{low:.3f}, {high:.3f}]".replace("0.", "."))
    assert "| **default** | " + " | ".join(cells) + " |" in readme


def test_the_help_and_the_readme_say_what_speed_fast_costs():
    card = (ROOT / "training/model-cards/default-20x.md").read_text(encoding="utf-8")
    (row,) = re.findall(
        r"^\| `val` at 40x .*: `--speed fast` and not \|(.*)\|$", card, re.MULTILINE
    )
    fast, slow = (re.findall(r"0\.\d{3}", cell) for cell in row.split("|"))
    measured = read_metadata(resolve_model("default")).validation["mean"]
    assert slow == [f"{measured[key]:.3f}" for key in ("AJI", "ADC", "PQ")]
    less = float(slow[0]) - float(fast[0])
    assert f"scores {less:.3f} less AJI" in get_args(SpeedOption)[1].help
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert ", ".join(fast).replace("0.", ".") in readme
