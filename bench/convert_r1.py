"""DeepSeek-R1's recipes by plan: bytes by kind of tensor, context and speed on each machine that may hold them.

No weights are needed: a config.json says what a model will take.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "first_k_dense_replace": 3,
    "max_position_embeddings": 163840,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
    "torch_dtype": "bfloat16",
}
_RECIPES = ("r1-240gb", "r1-300gb", "r1-400gb", "dynamic", "embeddings-16-attention-4-mlp-8")
_MACHINES = ("m3-ultra-256", "m3-ultra-512", "m5-ultra-256", "m5-ultra-512")
_SEEDS_SIZE = "131GB"
"""Size of a well-known GGUF of R1 with 1.58 bits a weight."""


def run(work: Path) -> None:
    """Print the table, and why the smallest published size cannot be had."""
    config = work / "DeepSeek-R1" / "config.json"
    config.parent.mkdir(exist_ok=True)
    config.write_text(json.dumps(_CONFIG))
    print("| recipe | bytes | bits each | bytes by kind | on | context | tok/s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for recipe in _RECIPES:
        for machine in _MACHINES:
            print(_row(recipe, machine, _plan(config, "--recipe", recipe, "--machine", machine)), flush=True)
    refused = _convert(config, "--fit", _SEEDS_SIZE)
    print(f"\n--fit {_SEEDS_SIZE}: {refused.stderr.strip()}")


def _plan(config: Path, *options: str) -> dict[str, Any]:
    done = _convert(config, *options, "--json")
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _convert(config: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server", "convert", str(config), "--dry-run", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _row(recipe: str, machine: str, document: dict[str, Any]) -> str:
    sizes = {kind: size["num_bytes"] for kind, size in document["sizes"].items()}
    kinds = ", ".join(f"{kind} {num_bytes / 1e9:.1f}" for kind, num_bytes in sizes.items() if num_bytes >= 5e7)
    plan = document["plan"]
    context, speed = "does not fit", "-"
    if plan["fits"]:
        user = plan["users"][0]
        context = f"{user['memory']['context']:,}"
        speed = f"{user['decode_tokens_per_s']['low']:.1f}-{user['decode_tokens_per_s']['high']:.1f}"
    size = f"{document['weight_file_bytes'] / 1e9:.1f} GB"
    return f"| `{recipe}` | {size} | {document['bits_per_weight']:.2f} | {kinds} | {machine} | {context} | {speed} |"
