"""Recipes: which rule decides, what no rule lowers, which files are refused; those that are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as some

from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.kinds import kind_of, layer_of
from mlx_backend.conversion.recipes import Candidate, assigned, find_recipe, parse_recipe, plain, read_recipe, shipped
from mlx_backend.conversion.spec import Spec, config_section, read_spec

PATHS = {
    "model.embed_tokens": "embeddings",
    "backbone.embeddings": "embeddings",
    "lm_head": "output head",
    "model.layers.3.self_attn.q_proj": "attention",
    "model.layers.3.linear_attn.in_proj": "attention",
    "backbone.layers.3.mixer.in_proj": "attention",
    "model.layers.3.mlp.switch_mlp.up_proj": "routed experts",
    "model.layers.3.mlp.experts.gate_up_proj": "routed experts",
    "model.layers.3.mlp.shared_experts.up_proj": "shared experts",
    "model.layers.3.mlp.shared_expert.gate_proj": "shared experts",
    "model.layers.3.mlp.gate_proj": "MLP",
    "model.layers.3.feed_forward.w1": "MLP",
    "model.layers.3.mlp.gate": "router",
    "model.layers.3.mlp.router": "router",
    "model.layers.3.mlp.shared_expert_gate": "router",
    "model.layers.3.self_attn.kv_a_layernorm": "norms and others",
    "model.norm": "norms and others",
}


@pytest.mark.parametrize("path", PATHS)
def test_kinds_are_told_by_paths(path: str) -> None:
    assert kind_of(path) == PATHS[path]
    assert layer_of(path) == (3 if ".3." in path else None)


def choose(document: Any, path: str, num_layers: int = 16, **candidate: Any) -> Spec | None:
    candidate = {"width": 256, **candidate}
    return parse_recipe("mine", document).chooser(num_layers)(Candidate(path, **candidate))


RULES = {
    "rules": [
        {"match": "*.layers.0.*", "exact": True},
        {"kind": "attention", "layers": [1, "3-4", -1], "bits": 6, "group_size": 128},
        {"match": ["*up_proj", "*down_proj"], "mode": "mxfp4"},
        {"kind": ["MLP", "router"], "bits": 3},
    ]
}


@pytest.mark.parametrize(
    ("path", "spec"),
    [
        ("model.layers.0.mlp.up_proj", None),
        ("model.layers.1.self_attn.q_proj", Spec(6, 128)),
        ("model.layers.2.self_attn.q_proj", None),
        ("model.layers.3.self_attn.q_proj", Spec(6, 128)),
        ("model.layers.4.self_attn.q_proj", Spec(6, 128)),
        ("model.layers.15.self_attn.q_proj", Spec(6, 128)),
        ("model.layers.5.mlp.up_proj", Spec(4, 32, "mxfp4")),
        ("model.layers.5.mlp.gate_proj", Spec(3)),
        ("model.layers.5.mlp.gate", Spec(8)),
        ("lm_head", None),
    ],
)
def test_the_first_rule_that_matches_decides(path: str, spec: Spec | None) -> None:
    assert choose(RULES, path) == spec


anywhere = some.sampled_from([*PATHS])
specs = some.one_of(
    some.none(), some.builds(Spec, some.sampled_from((2, 3, 4, 5, 6, 8)), some.sampled_from((32, 64, 128)))
)


@given(anywhere, specs, some.one_of(some.booleans(), specs), some.sampled_from((32, 96, 128, 200, 256)))
def test_no_recipe_goes_below_the_floors(path: str, spec: Spec | None, own: Any, width: int) -> None:
    chosen = assigned({path: spec})(Candidate(path, width, True if own is None else own))
    if own is False or spec is None:
        assert chosen is None
    if chosen is not None:
        assert spec is not None and chosen.bits >= spec.bits and chosen.divides(width)
        assert not isinstance(own, Spec) or chosen.bits >= own.bits
        assert kind_of(path) != "router" or chosen.bits == 8


def test_plain_settings_leave_what_their_groups_do_not_divide() -> None:
    assert plain(Spec(4))(Candidate("model.layers.0.mlp.up_proj", 96)) is None
    assert plain(Spec(4))(Candidate("model.layers.0.mlp.gate", 128)) == Spec(4)
    assert plain(Spec(4))(Candidate("model.layers.0.mlp.gate", 128, Spec(8))) == Spec(8)
    assert plain(None)(Candidate("model.layers.0.mlp.gate", 128, Spec(8))) is None


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (None, "a recipe is a mapping"),
        ({"rules": []}, "at least one rule"),
        ({"rules": [{"bits": 4}], "colour": 1}, "unknown key 'colour'"),
        ({"rules": [{"glob": "*", "bits": 4}]}, "rule 1 has an unknown key 'glob'"),
        ({"rules": [{"bits": 4}, "all"]}, "rule 2 is a mapping"),
        ({"rules": [{"bits": 7}]}, "rule 1: 7 bits"),
        ({"rules": [{"bits": "4"}]}, "whole numbers"),
        ({"rules": [{"bits": True}]}, "whole numbers"),
        ({"rules": [{"bits": 4, "group_size": 16}]}, "group size 16"),
        ({"rules": [{"bits": 8, "mode": "mxfp4"}]}, "mode mxfp4 has 4 bits in groups of 32"),
        ({"rules": [{"mode": "int4"}]}, "no mode 'int4'"),
        ({"rules": [{"match": "*"}]}, "no bits are given"),
        ({"rules": [{"exact": True, "bits": 4}]}, "leave out bits"),
        ({"rules": [{"exact": "yes"}]}, "true or false"),
        ({"rules": [{"match": [1], "bits": 4}]}, "`match` is a text"),
        ({"rules": [{"kind": "expert", "bits": 4}]}, "no kind 'expert'"),
        ({"rules": [{"layers": "last", "bits": 4}]}, "not 'last'"),
        ({"rules": [{"layers": ["3-x"], "bits": 4}]}, "not '3-x'"),
        ({"rules": [{"layers": [1.5], "bits": 4}]}, "not 1.5"),
    ],
)
def test_a_broken_recipe_is_refused_with_the_place(document: Any, told: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(ConversionError) as error:
        read_recipe(file)
    assert told in str(error.value) and str(error.value).startswith(str(file))


@pytest.mark.parametrize("text", ["{rules: [", "- !!python/object:os.system x", "a: &a [*a]", "\x00", "x" * (1 << 21)])
def test_a_file_that_is_no_recipe_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConversionError) as error:
        find_recipe(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(error.value)


def test_a_name_that_is_not_there_is_told_its_nearest() -> None:
    with pytest.raises(ConversionError, match="do you mean mixed_3_6"):
        find_recipe("mixed_3_7")


@pytest.mark.parametrize("name", shipped())
def test_what_is_shipped_can_be_read_and_says_what_it_is(name: str) -> None:
    recipe = find_recipe(name)
    assert recipe.description
    assert recipe.chooser(24)(Candidate("model.layers.4.mlp.up_proj", 256)) is not None


def test_the_section_names_what_is_not_as_usual() -> None:
    modules = [("a", Spec(4), 128, 9), ("b", Spec(8), 128, 5), ("c", None, 128, 7), ("d", None, 96, 7)]
    section = config_section(modules, None)
    assert section == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        "b": {"group_size": 64, "bits": 8, "mode": "affine"},
        "c": False,
    }
    assert config_section([("a", None, 128, 9)], None) is None
    assert read_spec(16) is None
