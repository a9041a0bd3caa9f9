"""Write a small random-weight float32 checkpoint with its tokenizer. Runs as a process: the client loads no MLX.

Its answers are meaningless but exact to measure: greedy decoding can only choose pieces of plain letters (the head's
rows of all others are zero), so no answer ends early and no detokenizer holds a token back.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

VOCAB_SIZE = 4096
SPECIAL_TOKENS = ("<|end|>", "<|turn|>", "<|pad|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
COMMON: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 16384,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_hidden_layers": 6, "tie_word_embeddings": True},
    "deepseek_v3": {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 128,
        "first_k_dense_replace": 1,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "kv_lora_rank": 128,
        "q_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
        "rope_scaling": None,
    },
    "gpt_oss": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 4,
        "intermediate_size": 128,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "query_pre_attn_scalar": 64,
        "sliding_window": 128,
        "sliding_window_pattern": 3,
        "rms_norm_eps": 1e-6,
    },
}

_PLAIN = re.compile("\u0120?[A-Za-z]+")


def write_checkpoint(folder: Path, shape: str, **changes: Any) -> None:
    """Write the checkpoint named `shape` into `folder`, with `changes` of its config; needs MLX."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = write_tokenizer(folder)
    config = {**COMMON, **SHAPES[shape], "vocab_size": len(pieces), "eos_token_id": 0, **changes}
    write_weights(folder, config, silent_ids(pieces))
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def silent_ids(pieces: Sequence[str]) -> list[int]:
    """Return the ids of pieces that must not be answered: all except plain letters, with or without a leading space."""
    return [i for i, piece in enumerate(pieces) if not _PLAIN.fullmatch(piece)]


def write_tokenizer(folder: Path) -> list[str]:
    """Train a byte-level BPE on the standard library's sources and write it; return its pieces, by id."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    tokenizer.train_from_iterator((path.read_text("utf-8", errors="replace") for path in sources), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[2],
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": COMMON["max_position_embeddings"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ids: dict[str, int] = tokenizer.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def write_weights(folder: Path, config: dict[str, Any], silent: Sequence[int]) -> None:
    """Write random float32 weights, the same at each call; norms and biases stay as the model makes them."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(0)
    parameters = dict(tree_flatten(module.Model(module.ModelArgs.from_dict(config)).parameters()))
    weights = {
        name: mx.random.normal(value.shape) * 0.05 if value.ndim > 1 else value.astype(mx.float32)
        for name, value in parameters.items()
    }
    head = "lm_head.weight" if "lm_head.weight" in weights else "model.embed_tokens.weight"
    weights[head][mx.array(silent)] = 0
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})


if __name__ == "__main__":
    write_checkpoint(Path(sys.argv[1]), sys.argv[2])
