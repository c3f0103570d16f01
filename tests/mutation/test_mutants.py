from __future__ import annotations

import ast

import pytest

from tests.mutation.mutants import MUTANTS, Mutant
from tests.mutation.run import mutated
from tests.paths import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.guards)
def test_a_mutant_is_a_valid_change_of_one_place(mutant: Mutant) -> None:
    changed = mutated((ROOT / "qpnuclei" / mutant.file).read_text(), mutant)
    ast.parse(changed)
    assert all((ROOT / t).exists() for t in mutant.tests if t.startswith("tests/"))


def test_what_is_gone_from_the_code_is_named() -> None:
    gone = Mutant("nothing", "errors.py", "not there", "", ())
    with pytest.raises(ValueError, match=r"errors\.py has 0 times 'not there'"):
        mutated("some text", gone)
