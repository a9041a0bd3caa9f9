"""A block's id stands for its tokens, for all before it, and for everything else that its values depend on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.interface import EngineConfig, KVCacheConfig, PrefixCacheConfig
from mlx_backend.prefix_cache.build import build_prefix_cache
from mlx_backend.prefix_cache.identity import Chain, chain_id, fingerprint, root_id, weights_digest
from mlx_backend.prefix_cache.store_mock import MockStore

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=40)
ROOT = root_id(b"model", "")


def chain(tokens: Sequence[int], size: int = 4, root: bytes = ROOT) -> Chain:
    return Chain(root, tuple(tokens), size)


@given(TOKENS, TOKENS, TOKENS, st.integers(1, 8))
def test_two_chains_share_ids_as_far_as_they_share_blocks(
    common: list[int], one: list[int], other: list[int], size: int
) -> None:
    first, second = [*common, *one], [*common, *other]
    ids = chain(first, size).ids, chain(second, size).ids
    for block, (left, right) in enumerate(zip(*ids, strict=False)):
        end = (block + 1) * size
        assert (left == right) == (first[:end] == second[:end])


@given(TOKENS, st.integers(1, 8))
def test_a_chain_has_an_id_for_each_full_block(tokens: list[int], size: int) -> None:
    target = chain(tokens, size)
    assert len(target.ids) == len(tokens) // size
    assert [target.before(block) for block in range(len(target.ids) + 1)] == [ROOT, *target.ids]


@given(TOKENS, st.integers(1, 8), st.data())
def test_the_id_at_a_position_is_of_the_block_that_ends_there(
    tokens: list[int], size: int, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(tokens)))
    target, rest = chain(tokens, size), position % size
    if rest:
        assert target.end_id(position) == chain_id(target.before(position // size), tokens[position - rest : position])
    else:
        assert target.end_id(position) == target.before(position // size)


@given(TOKENS.filter(bool), st.data())
def test_any_token_that_changes_changes_every_id_from_there_on(tokens: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(tokens) - 1))
    changed = [*tokens[:place], tokens[place] ^ 1, *tokens[place + 1 :]]
    before, after = chain(tokens, 3).ids, chain(changed, 3).ids
    assert [one == other for one, other in zip(before, after, strict=True)] == [
        (block + 1) * 3 <= place for block in range(len(before))
    ]


@given(st.text(), st.text())
def test_salts_keep_chains_apart(one: str, other: str) -> None:
    roots = root_id(b"model", one), root_id(b"model", other)
    assert (roots[0] == roots[1]) == (one == other)


def test_a_salt_may_hold_half_a_surrogate_pair() -> None:
    assert root_id(b"model", "\ud83d") != root_id(b"model", "\ud83e")


def test_another_model_has_another_root() -> None:
    assert root_id(fingerprint({"model": "a"}), "") != root_id(fingerprint({"model": "b"}), "")
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})


def folder_of(tmp_path: Path, config: EngineConfig) -> str:
    """The name of the folder that a configuration's blocks go to."""
    kept = PrefixCacheConfig(dir=str(tmp_path), chunk_tokens=config.prefix_cache.chunk_tokens)
    changed = EngineConfig(
        model_path=config.model_path, backend=config.backend, kv_cache=config.kv_cache, prefix_cache=kept
    )
    before = set(tmp_path.iterdir())
    cache, _ = build_prefix_cache(changed, MockStore(16, lambda source: ()), None, lambda: None)
    assert cache is not None
    cache.close()
    new = {path for path in tmp_path.iterdir() if path.is_dir()} - before
    return new.pop().name if new else ""


def test_everything_that_changes_the_values_has_a_folder_of_its_own(tmp_path: Path) -> None:
    models = [tmp_path / "models" / name for name in ("a", "b")]
    for number, model in enumerate(models):
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(bytes([number]) * 1000)
    kept = tmp_path / "kept"
    kept.mkdir()
    plain = str(models[0])
    configs = [
        EngineConfig(model_path=plain),
        EngineConfig(model_path=str(models[1])),
        EngineConfig(model_path=plain, kv_cache=KVCacheConfig(bits=8)),
        EngineConfig(model_path=plain, kv_cache=KVCacheConfig(bits=4)),
        EngineConfig(model_path=plain, kv_cache=KVCacheConfig(bits=8, group_size=32)),
        EngineConfig(model_path=plain, kv_cache=KVCacheConfig(bits=8, start=8)),
        EngineConfig(model_path=plain, prefix_cache=PrefixCacheConfig(chunk_tokens=32)),
    ]
    names = [folder_of(kept, config) for config in configs]
    assert all(names)
    assert len(set(names)) == len(configs)
    assert [folder_of(kept, config) for config in configs] == [""] * len(configs)  # they are found again


@pytest.mark.parametrize("place", [0, 70_000, 199_999])
def test_other_weights_of_the_same_shape_are_noticed(tmp_path: Path, place: int) -> None:
    """Where samples are taken: the beginning, the end, and places between."""
    weights, path = bytearray(200_000), tmp_path / "model.safetensors"
    path.write_bytes(weights)
    before = weights_digest(tmp_path)
    step = (200_000 - 4096) // 15
    weights[place if place in (0, 199_999) else step * 5 + 7] = 1
    path.write_bytes(weights)
    assert weights_digest(tmp_path) != before


def test_a_changed_configuration_is_another_model(tmp_path: Path) -> None:
    digests = set()
    for rope in (10_000, 500_000):
        (tmp_path / "config.json").write_text(f'{{"rope_theta": {rope}}}')
        digests.add(weights_digest(tmp_path))
    assert len(digests) == 2
