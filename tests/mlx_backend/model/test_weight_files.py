"""Which weight files are a model's: by its index, or by what is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.model.checkpoint import belonging
from mlx_backend.model.context_length import context_length
from mlx_backend.model.weight_files import ONE_FILE, IncompleteWeights, choose

TWO = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
FIVE = [f"model-{place:05}-of-00005.safetensors" for place in range(1, 6)]


def index_of(*names: str) -> str:
    return json.dumps({"metadata": {}, "weight_map": {f"w{place}": name for place, name in enumerate(names)}})


@pytest.mark.parametrize(
    ("present", "index", "expected", "said"),
    [
        ([ONE_FILE], None, [ONE_FILE], []),
        ([ONE_FILE], index_of(ONE_FILE), [ONE_FILE], []),
        (TWO, None, TWO, []),
        (TWO, index_of(*TWO), TWO, []),
        # what is left of another conversion, or lies beside
        ([ONE_FILE, TWO[1]], index_of(ONE_FILE), [ONE_FILE], ["skipped"]),
        ([ONE_FILE, TWO[1]], None, [ONE_FILE], ["skipped"]),
        ([*TWO, FIVE[2]], None, TWO, ["skipped"]),
        ([*TWO, "model-extra.safetensors"], index_of(*TWO), TWO, ["skipped"]),
        ([ONE_FILE, *TWO], None, [ONE_FILE], ["skipped"]),
        ([ONE_FILE, *TWO], index_of(*TWO), TWO, ["skipped"]),
        ([ONE_FILE, "adapters.safetensors", "consolidated.safetensors"], None, [ONE_FILE], []),
        # an index of another conversion
        ([ONE_FILE], index_of(*FIVE), [ONE_FILE], ["not found here"]),
        (TWO, index_of(*FIVE), TWO, ["not found here"]),
        ([*TWO, FIVE[0]], index_of(*FIVE), TWO, ["not found here", "skipped"]),
        # parts beside the model
        ([ONE_FILE, "mtp.safetensors"], index_of(ONE_FILE, "mtp.safetensors"), [ONE_FILE, "mtp.safetensors"], []),
        ([ONE_FILE], index_of(ONE_FILE, "mtp.safetensors"), [ONE_FILE], ["not found here"]),
        # no index that can be read
        (TWO, "{", TWO, ["cannot be read"]),
        ([ONE_FILE], index_of("/etc/x.safetensors"), [ONE_FILE], ["cannot be read"]),
        ([ONE_FILE], index_of("pytorch_model.bin"), [ONE_FILE], ["cannot be read"]),
        # other names
        (["model.fp16.safetensors"], None, ["model.fp16.safetensors"], []),
        (["weights.safetensors"], index_of("weights.safetensors"), ["weights.safetensors"], []),
        (["model-001-of-002.safetensors", *TWO], None, TWO, ["skipped"]),
        (["model-0001-of-00002.safetensors", *TWO], None, TWO, ["skipped"]),
    ],
)
def test_what_is_taken(present: list[str], index: str | None, expected: list[str], said: list[str]) -> None:
    found = choose(present, index)
    assert sorted(found.names) == sorted(expected)
    assert len(found.notes) == len(said)
    assert all(word in note for word, note in zip(said, found.notes, strict=True))


@pytest.mark.parametrize(
    ("present", "index", "message"),
    [
        ([], None, "has no model*.safetensors"),
        (["adapters.safetensors"], None, "has no model*.safetensors"),
        (TWO[:1], None, "lacks model-00002-of-00002.safetensors (1 of 2 files)"),
        (FIVE[1:3], None, "lacks model-00001-of-00005.safetensors (3 of 5 files)"),
        (FIVE[:3], index_of(*FIVE), "lacks model-00004-of-00005.safetensors (2 of 5 files)"),
        ([ONE_FILE], index_of(ONE_FILE, "model-2.safetensors"), "lacks model-2.safetensors (1 of 2 files)"),
        ([], index_of(*FIVE), "lacks model-00001-of-00005.safetensors (5 of 5 files)"),
        (TWO[:1], "{", "lacks model-00002-of-00002.safetensors (1 of 2 files); model.safetensors.index.json cannot"),
        ([*TWO, *FIVE], None, "has two sets of weights"),
        (["model-0001-of-00002.safetensors", TWO[0]], None, "lacks model-00002-of-00002.safetensors (1 of 2 files)"),
    ],
)
def test_what_is_not_whole(present: list[str], index: str | None, message: str) -> None:
    with pytest.raises(IncompleteWeights) as caught:
        choose(present, index)
    assert str(caught.value).startswith(message)


NAMES = st.sampled_from([ONE_FILE, *TWO, *FIVE[:3], "mtp.safetensors", "model-x.safetensors", "config.json"])


@given(st.lists(NAMES, unique=True), st.none() | st.lists(NAMES, max_size=4).map(lambda names: index_of(*names)))
def test_only_what_is_there_is_taken_and_a_whole_index_is_obeyed(present: list[str], index: str | None) -> None:
    named = set() if index is None else set(json.loads(index)["weight_map"].values())
    try:
        found = choose(present, index)
    except IncompleteWeights:
        assert ONE_FILE not in present or ONE_FILE in named
        return
    assert found.names and {*found.names} <= {*present}
    if named and named <= {*present} and "config.json" not in named:
        assert {*found.names} == named


def test_what_is_fetched_of_a_repository() -> None:
    names = [*TWO, "model-00001-of-00009.safetensors", "mtp.safetensors", "config.json", "README.md", "modeling.py"]
    names += ["additional_chat_templates/tool_use.jinja", "tokenizer.json", "consolidated.safetensors"]
    small = ["config.json", "additional_chat_templates/tool_use.jinja", "tokenizer.json"]
    assert belonging(names, None) == [*TWO, *small]
    assert belonging(names, index_of(*TWO, "mtp.safetensors")) == [*TWO, "mtp.safetensors", *small]
    with pytest.raises(ModelLoadError, match="convert it"):
        belonging(["config.json", "pytorch_model.bin"], None)


# --- the context

YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 32768, "rope_scaling": {**YARN, "type": "yarn"}}, 131_072),
        ({"max_position_embeddings": 40960, "rope_scaling": {**YARN, "rope_type": "yarn"}}, 131_072),
        ({"max_position_embeddings": 262_144, "rope_parameters": {"rope_type": "yarn", "factor": 4}}, 1_048_576),
        ({"max_position_embeddings": 163_840, "rope_scaling": {**YARN, "type": "yarn", "factor": 2}}, 163_840),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16_384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "dynamic", "factor": 2}}, 8192),
        ({"max_position_embeddings": 131_072, "rope_scaling": {"rope_type": "llama3", "factor": 32.0}}, 131_072),
        ({"max_position_embeddings": 131_072, "rope_scaling": {"type": "longrope", "factor": 32.0}}, 131_072),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "mrope", "mrope_section": [16]}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": None, "rope_parameters": []}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": "4"}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": True}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": float("inf")}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": ["yarn"], "factor": 2}}, 4096),
        (
            {"text_config": {"model_type": "gemma3_text", "max_position_embeddings": 131_072,
                             "rope_scaling": {"rope_type": "linear", "factor": 8.0}}},
            131_072,
        ),
        (
            {"max_position_embeddings": 65_536, "rope_parameters": {
                "full_attention": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192},
                "sliding_attention": {"rope_type": "default"}}},
            65_536,
        ),
        ({"text_config": {"max_position_embeddings": 8192, "rope_scaling": {**YARN, "type": "yarn"}}}, 131_072),
        ({"max_position_embeddings": 8192.0}, 8192),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 99}}, 99),
        ({"max_position_embeddings": True}, 131_072),
        ({"max_position_embeddings": 10**400, "n_ctx": 7}, 7),
        ({"max_position_embeddings": 1e300}, 131_072),
        ({"text_config": "x"}, 131_072),
    ],
)  # fmt: skip
def test_the_context_with_what_a_scaling_adds(config: dict[str, object], length: int) -> None:
    assert context_length(config) == length


def test_the_index_of_a_folder_is_read(tmp_path: Path) -> None:
    from mlx_backend.model.weight_files import INDEX, find_weights

    for name in (*TWO, ONE_FILE):
        (tmp_path / name).touch()
    (tmp_path / "model.safetensors.d").mkdir()
    assert find_weights(tmp_path).names == (ONE_FILE,)
    (tmp_path / INDEX).write_text(index_of(*TWO))
    assert find_weights(tmp_path).names == tuple(TWO)
