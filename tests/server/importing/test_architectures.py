"""Each architecture: a tiny model, written as a GGUF file and imported, computes what the original does."""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_backend.model.checkpoint import open_checkpoint
from server.importing.from_gguf import GGUFImport, Wishes
from server.importing.problems import CannotImport
from tests.gguf_models import MODELS, write_gguf, write_original
from tests.gguf_writer import Raw, encode

pytestmark = pytest.mark.mlx
TOKENS = [5, 300, 17, 4, 99, 250, 31]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("originals")
    return cache(lambda architecture: write_original(folder / architecture, architecture))


def logits(folder: Path) -> Any:
    import mlx.core as mx
    from mlx_lm.utils import load_model

    model, _ = load_model(folder)
    return np.array(model(mx.array([TOKENS])).astype(mx.float32))[0]


def imported(path: Path, **wishes: Any) -> Path:
    found = GGUFImport(path, Wishes(**wishes))
    folder = path.with_suffix("")
    found.folder(folder).write()
    open_checkpoint(folder)
    return folder


def relative(found: Any, wanted: Any) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("architecture", MODELS)
def test_numbers_stay_what_they_are(tmp_path: Path, originals: Any, architecture: str) -> None:
    original = originals(architecture)
    folder = imported(write_gguf(tmp_path / "a.gguf", original, architecture), dtype="float32")
    np.testing.assert_allclose(logits(folder), logits(original), atol=2e-4)
    wanted = json.loads((original / "config.json").read_text())
    found = json.loads((folder / "config.json").read_text())
    for key in found.keys() & wanted.keys():
        if key not in ("rope_scaling", "head_dim", "eos_token_id"):
            assert found[key] == wanted[key], key


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "deepseek2"])
def test_codes_are_copied(tmp_path: Path, originals: Any, architecture: str) -> None:
    original = originals(architecture)
    path = write_gguf(tmp_path / "a.gguf", original, architecture, "Q8_0")
    found = logits(imported(path, dtype="float32"))
    assert relative(found, logits(original)) < 0.08
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(found, logits(original), atol=2e-4)


def test_types_are_mixed_as_files_mix_them(tmp_path: Path, originals: Any) -> None:
    kinds = {"attn_v": "Q8_0", "attn_output": "F16", "token_embd": "Q8_0"}
    path = write_gguf(
        tmp_path / "a.gguf",
        originals("llama"),
        "llama",
        lambda name: next((kind for part, kind in kinds.items() if part in name), "Q4_0"),
    )
    folder = imported(path)
    section = json.loads((folder / "config.json").read_text())["quantization"]
    assert (section["bits"], section["group_size"]) == (4, 32)
    assert section["model.layers.0.self_attn.v_proj"] == {"group_size": 32, "bits": 8, "mode": "affine"}
    assert "model.layers.0.self_attn.o_proj" not in section
    assert relative(logits(folder), logits(originals("llama"))) < 0.4


def joined(metadata: dict[str, Any], tensors: dict[str, Raw]) -> None:
    """As files were before keys and values had matrices of their own."""
    for place in range(3):
        parts = []
        for name in (f"blk.{place}.attn_k_b.weight", f"blk.{place}.attn_v_b.weight"):
            raw = tensors.pop(name)
            values = np.frombuffer(raw.data, np.float32).reshape(raw.shape)
            parts.append(values.swapaxes(1, 2) if "k_b" in name else values)
        both = np.concatenate(parts, axis=1)
        tensors[f"blk.{place}.attn_kv_b.weight"] = encode(both.reshape(-1, both.shape[-1]), "F32")
    for name in ("key_length_mla", "value_length_mla"):
        metadata[f"deepseek2.attention.{name.removesuffix('_mla')}"] = metadata.pop(f"deepseek2.attention.{name}")
    del metadata["deepseek2.expert_gating_func"]


def test_keys_and_values_in_one_matrix_are_split(tmp_path: Path, originals: Any) -> None:
    path = write_gguf(tmp_path / "a.gguf", originals("deepseek2"), "deepseek2", change=joined)
    np.testing.assert_allclose(logits(imported(path, dtype="float32")), logits(originals("deepseek2")), atol=2e-4)


def test_deepseek_v2_without_scaling_rotates_as_any_model(tmp_path: Path) -> None:
    from mlx_lm.utils import load_model

    changes: dict[str, Any] = {"model_type": "deepseek_v2", "topk_method": "greedy", "n_group": 1, "topk_group": 1}
    original = write_original(tmp_path / "original", "deepseek2", q_lora_rank=None, **changes)

    def change(metadata: dict[str, Any], tensors: dict[str, Raw], kind: str | None = None) -> None:
        metadata |= {"deepseek2.expert_gating_func": 1}
        for key in ("attention.q_lora_rank", *(key for key in metadata if ".rope.scaling." in key)):
            metadata.pop(f"deepseek2.{key.removeprefix('deepseek2.')}")
        if kind is not None:
            metadata |= {"deepseek2.rope.scaling.type": kind, "deepseek2.rope.scaling.factor": 2.0}

    model, _ = load_model(imported(write_gguf(tmp_path / "a.gguf", original, "deepseek2", change=change)))
    attention, config = model.layers[0].self_attn, json.loads((original / "config.json").read_text())
    size = config["qk_rope_head_dim"]
    wanted = config["rope_theta"] ** (np.arange(0, size, 2) / size)
    np.testing.assert_allclose(np.array(attention.rope._freqs), wanted, rtol=1e-5)
    assert (attention.rope.mscale, attention.scale) == (1, attention.q_head_dim**-0.5)
    path = write_gguf(tmp_path / "b.gguf", original, "deepseek2", change=partial(change, kind="linear"))
    with pytest.raises(CannotImport, match="scaled linearly"):
        GGUFImport(path)


@pytest.mark.parametrize("is_joined", [True, False])
def test_the_older_kind_of_deepseek(tmp_path: Path, is_joined: bool) -> None:
    changes: dict[str, Any] = {
        "model_type": "deepseek_v2",
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
    }
    original = write_original(tmp_path / "original", "deepseek2", q_lora_rank=None, **changes)

    def change(metadata: dict[str, Any], tensors: dict[str, Raw]) -> None:
        del metadata["deepseek2.attention.q_lora_rank"]
        metadata["deepseek2.expert_gating_func"] = 1
        if not is_joined:
            for place in range(3):
                raw = tensors.pop(f"blk.{place}.attn_kv_b.weight")
                both = np.frombuffer(raw.data, np.float32).reshape(4, 32, 32)
                tensors[f"blk.{place}.attn_k_b.weight"] = encode(both[:, :16].swapaxes(1, 2), "F32")
                tensors[f"blk.{place}.attn_v_b.weight"] = encode(both[:, 16:], "F32")

    folder = imported(write_gguf(tmp_path / "a.gguf", original, "deepseek2", change=change), dtype="float32")
    np.testing.assert_allclose(logits(folder), logits(original), atol=2e-4)


def test_what_is_not_known_is_refused_by_name(tmp_path: Path, originals: Any) -> None:
    def refusal(change: Any) -> str:
        with pytest.raises(CannotImport) as caught:
            GGUFImport(write_gguf(tmp_path / "a.gguf", originals("llama"), "llama", change=change))
        return str(caught.value)

    def metadata(**changes: Any) -> Any:
        return lambda found, _: found.update({key.replace("__", "."): value for key, value in changes.items()})

    first = "blk.0.attn_q.weight"
    assert "architecture is 'mamba', which is not known; known are llama" in refusal(
        metadata(general__architecture="mamba")
    )
    assert "llama with experts (Mixtral's)" in refusal(metadata(llama__expert_count=8))
    assert "is scaled by 'longrope'" in refusal(metadata(llama__rope__scaling__type="longrope"))
    assert "llama.logit_scale is 0.5" in refusal(metadata(llama__logit_scale=0.5))
    assert "llama.block_count is 'two', not a whole number from 1" in refusal(metadata(llama__block_count="two"))
    assert "claims 999999 layers" in refusal(metadata(llama__block_count=999999))
    assert "8 of them rotated: not supported" in refusal(metadata(llama__rope__dimension_count=8))
    assert "lacks the tensor 'blk.2.attn_norm.weight'" in refusal(metadata(llama__block_count=3))
    assert "has the shape [64, 64], by its metadata [128, 64]" in refusal(metadata(llama__attention__head_count=8))
    assert f"lacks the tensor '{first}' (1 of" in refusal(lambda _, found: found.pop(first))
    assert "tensor 'blk.9.x', which is not known (1 are not)" in refusal(
        lambda _, found: found.update({"blk.9.x": encode(np.ones(4), "F32")})
    )
    assert "rope_freqs.weight is of no scaling that is known" in refusal(
        lambda _, found: found.update({"rope_freqs.weight": encode(np.arange(1, 9), "F32")})
    )
    assert "rope_freqs.weight has not 8 factors" in refusal(
        lambda _, found: found.update({"rope_freqs.weight": encode(np.ones(9), "F32")})
    )
    assert "lacks token_embd.weight" in refusal(lambda _, found: found.pop("token_embd.weight"))
