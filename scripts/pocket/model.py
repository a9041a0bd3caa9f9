"""DeepSeek V3's architecture in PyTorch, small: latent attention, and a mixture of experts with a shared one.

Parameter names are those of the published checkpoints, so that mlx-lm's own converter accepts the export.
Follows arXiv 2412.19437 sections 2.1 and 2.1.2 (sigmoid routing, balanced by a bias and without a loss).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_QUERY_BLOCK = 256
_ROOM_STEP = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class PocketConfig:
    """Content of config.json; the names are the published config's."""

    vocab_size: int = 1024
    hidden_size: int = 192
    intermediate_size: int = 512
    moe_intermediate_size: int = 128
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    n_shared_experts: int = 1
    n_routed_experts: int = 8
    num_experts_per_tok: int = 2
    routed_scaling_factor: float = 1.0
    kv_lora_rank: int = 128
    qk_rope_head_dim: int = 32
    qk_nope_head_dim: int = 32
    v_head_dim: int = 48
    first_k_dense_replace: int = 1
    max_position_embeddings: int = 4096
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    def to_json(self) -> dict[str, Any]:
        """Return the whole config.json."""
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            **asdict(self),
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "moe_layer_freq": 1,
            "rope_scaling": None,
            "attention_bias": False,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding to neighbouring pairs; x: [..., tokens, dim], cos and sin: [tokens, dim / 2]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute causal attention [rows, heads, tokens, dim], by blocks of queries, which skips half of the scores.

    On a CPU this is faster than PyTorch's fused attention, as long as a block's scores fit the cache.
    """
    q = q * q.shape[-1] ** -0.5
    later = torch.full((_QUERY_BLOCK, _QUERY_BLOCK), -torch.inf, dtype=q.dtype).triu(1)
    outs = []
    for start in range(0, q.shape[2], _QUERY_BLOCK):
        block = q[:, :, start : start + _QUERY_BLOCK]
        size = block.shape[2]
        scores = block @ k[:, :, : start + size].mT
        scores[..., start:] += later[:size, :size]
        outs.append(torch.softmax(scores, dim=-1) @ v[:, :, : start + size])
    return torch.cat(outs, dim=2)


class Attention(nn.Module):
    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        c = self.config = config
        heads, hidden = c.num_attention_heads, c.hidden_size
        self.q_proj = nn.Linear(hidden, heads * (c.qk_nope_head_dim + c.qk_rope_head_dim), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, c.kv_lora_rank + c.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, 1e-6)
        self.kv_b_proj = nn.Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * c.v_head_dim, hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c = self.config
        rows, tokens, _ = x.shape
        heads, nope = c.num_attention_heads, c.qk_nope_head_dim
        q = self.q_proj(x).view(rows, tokens, heads, -1).transpose(1, 2)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split([c.kv_lora_rank, c.qk_rope_head_dim], dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(rows, tokens, heads, -1).transpose(1, 2)
        k_rope = rotate(k_rope[:, None], cos, sin).expand(-1, heads, -1, -1)
        q = torch.cat((q[..., :nope], rotate(q[..., nope:], cos, sin)), dim=-1)
        k = torch.cat((kv[..., :nope], k_rope), dim=-1)
        out = attend(q, k, kv[..., nope:])
        return self.o_proj(out.transpose(1, 2).reshape(rows, tokens, -1))


class MLP(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        self.num_chosen, self.scale = config.num_experts_per_tok, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.randn(config.n_routed_experts, config.hidden_size) * 0.02)
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (expert of each choice: int [tokens, chosen], its weight: float32 [tokens, chosen])."""
        scores = torch.sigmoid((x @ self.weight.T).float())
        chosen = (scores.detach() + self.e_score_correction_bias).topk(self.num_chosen, dim=-1).indices
        weights = scores.gather(-1, chosen)
        return chosen, weights / weights.sum(-1, keepdim=True) * self.scale


def _slots(chosen: Tensor, counts: Tensor) -> tuple[Tensor, int]:
    """Return (a slot for every choice: int [tokens, chosen], the number of slots of each expert).

    Expert e has the slots from e * room on. Room is rounded up, so that few sizes occur: the matrix library compiles a
    kernel for each new one, which at this size takes four times as long as the product itself.
    """
    room = -(-int(counts.max()) // _ROOM_STEP) * _ROOM_STEP
    order = chosen.flatten().argsort(stable=True)
    firsts = counts.cumsum(0) - counts
    ranks = torch.arange(len(order)) - firsts.repeat_interleave(counts)
    slots = torch.empty_like(order)
    slots[order] = chosen.flatten()[order] * room + ranks
    return slots.view_as(chosen), room


class _Take(torch.autograd.Function):
    """Rows by their index, zeros for an index past the end; the gradient is gathered the same way.

    PyTorch's own indexing would add the gradients up row by row, in one thread.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, back: Tensor) -> Tensor:
        """rows: [rows, size]; index: any shape; back: [rows, n], the places in `index` where each row was taken."""
        ctx.save_for_backward(back)
        return F.pad(rows, (0, 0, 0, 1))[index]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        padded = F.pad(gradient.flatten(0, -2), (0, 0, 0, 1))
        return sum((padded[places] for places in back.unbind(-1)), torch.zeros(())), None, None


class MoE(nn.Module):
    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        inner = config.moe_intermediate_size
        self.gate = Gate(config)
        self.experts = nn.ModuleList(MLP(config.hidden_size, inner) for _ in range(config.n_routed_experts))
        self.shared_experts = MLP(config.hidden_size, inner * config.n_shared_experts)
        self.load = torch.zeros(config.n_routed_experts)
        """Tokens of each expert since `balance`."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        chosen, weights = self.gate(flat)
        counts = torch.bincount(chosen.flatten(), minlength=len(self.experts))
        if self.training:
            self.load += counts
        slots, room = _slots(chosen, counts)
        choices = torch.full((len(self.experts) * room,), slots.numel())  # choice of each slot; past the end: none
        choices[slots.flatten()] = torch.arange(slots.numel())
        inputs = _Take.apply(flat, choices // chosen.shape[-1], slots).view(len(self.experts), room, -1)
        outputs = _Take.apply(self._experts(inputs).flatten(0, 1), slots, choices[:, None])
        weighted = outputs * weights[..., None].to(outputs.dtype)
        mixed = sum(weighted.unbind(-2), torch.zeros(()))
        return (mixed + self.shared_experts(flat)).view_as(x)

    def _experts(self, inputs: Tensor) -> Tensor:
        """Apply every expert to its own tokens; [experts, room, hidden] to the same."""
        gate, up, down = (
            torch.stack([getattr(expert, name).weight for expert in self.experts]).mT
            for name in ("gate_proj", "up_proj", "down_proj")
        )
        return (F.silu(inputs @ gate) * (inputs @ up)) @ down

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Make overloaded experts less likely to be chosen, and the others more."""
        self.gate.e_score_correction_bias += rate * torch.sign(self.load.mean() - self.load)
        self.load.zero_()


class Layer(nn.Module):
    def __init__(self, config: PocketConfig, index: int) -> None:
        super().__init__()
        is_dense = index < config.first_k_dense_replace
        self.self_attn = Attention(config)
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if is_dense else MoE(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Pocket(nn.Module):
    """Model from token ids [rows, tokens] to the logits of the marked positions [marked, vocab]."""

    def __init__(self, config: PocketConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers)),
                "norm": RMSNorm(config.hidden_size, config.rms_norm_eps),
            }
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._init()
        half = torch.arange(0, config.qk_rope_head_dim, 2) / config.qk_rope_head_dim
        angles = torch.arange(config.max_position_embeddings)[:, None] * config.rope_theta**-half
        self.cos, self.sin = angles.cos(), angles.sin()

    def forward(self, ids: Tensor, marks: Tensor) -> Tensor:
        dtype = self.lm_head.weight.dtype
        cos, sin = self.cos[: ids.shape[1]].to(dtype), self.sin[: ids.shape[1]].to(dtype)
        x = self.model["embed_tokens"](ids)
        for layer in self.model["layers"]:
            x = layer(x, cos, sin)
        x = x[marks]
        room = -x.shape[0] % _ROOM_STEP
        return self.lm_head(self.model["norm"](F.pad(x, (0, 0, 0, room))))[: x.shape[0]]

    def to_bfloat16(self) -> Pocket:
        """Convert all except the routing bias, whose steps are too small for bfloat16."""
        biases = {name: buffer.clone() for name, buffer in self.named_buffers()}
        self.bfloat16()
        for name, bias in biases.items():
            owner, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(owner), attribute, bias)
        return self

    def balance(self, rate: float) -> None:
        for layer in self.model["layers"]:
            if isinstance(layer.mlp, MoE):
                layer.mlp.balance(rate)

    def _init(self) -> None:
        residual = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2 or name.endswith("gate.weight"):
                continue
            scale = 1.0 if "embed_tokens" in name else parameter.shape[-1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                scale *= residual
            nn.init.normal_(parameter, std=0.5 * scale)
