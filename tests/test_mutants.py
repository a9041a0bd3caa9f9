"""The list of planted faults is true of the sources, so that `make mutants` can plant them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutants.planted import MUTANTS, Mutant

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.file}: {mutant.suffers}")
def test_it_can_be_planted(mutant: Mutant) -> None:
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.text) == 1
    assert mutant.replacement != mutant.text
    ast.parse(source.replace(mutant.text, mutant.replacement))
    assert all((ROOT / name.partition("::")[0]).exists() for name in mutant.tests)
