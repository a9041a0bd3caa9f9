"""Recipes that are written choose what was chosen."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some

from mlx_backend.conversion.recipe_writing import ranges, to_document
from mlx_backend.conversion.recipes import Candidate, parse_recipe
from mlx_backend.conversion.spec import Spec

NAMES = ("mlp.up_proj", "mlp.switch_mlp.up_proj", "mlp.shared_experts.up_proj", "self_attn.q_proj")
PATHS = ("model.embed_tokens", "lm_head", *(f"model.layers.{layer}.{name}" for layer in range(6) for name in NAMES))
spec = some.sampled_from((None, Spec(2, 128), Spec(3), Spec(4), Spec(8, 32), Spec(4, 32, "mxfp4")))


@settings(max_examples=25)
@given(some.fixed_dictionaries({path: spec for path in PATHS}))
def test_what_is_written_chooses_the_same(specs: dict[str, Spec | None]) -> None:
    document = yaml.safe_load(yaml.safe_dump(to_document(specs, "made up")))
    choose = parse_recipe("mine", document).chooser(6)
    assert {path: choose(Candidate(path, 256)) for path in PATHS} == specs


def test_what_all_have_is_one_rule() -> None:
    document = to_document(dict.fromkeys(PATHS, Spec(4)), "made up")
    assert len(document["rules"]) == len(NAMES) + 2
    assert {"match": "model.layers.*.mlp.up_proj", "bits": 4} in document["rules"]


@pytest.mark.parametrize(
    ("numbers", "written"), [([], []), ([3], [3]), ([5, 3, 4, 4], ["3-5"]), ([0, 2, 3, 9], [0, "2-3", 9])]
)
def test_layers_are_written_as_ranges(numbers: list[int], written: list[int | str]) -> None:
    assert ranges(numbers) == written
