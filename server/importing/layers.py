"""Weights common to several architectures: embeddings, norms, gated blocks, experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from server.importing.blueprint import Form, Weight
from server.importing.gguf_file import Tensor
from server.importing.metadata import Metadata
from server.importing.problems import CannotImport

_MAX_LAYERS = 1024
Tensors = Mapping[str, Tensor]


def num_layers(metadata: Metadata) -> int:
    """Return the number of layers, without those that predict further tokens. Raises CannotImport."""
    number = metadata.whole(".block_count") - metadata.whole(".nextn_predict_layers", 0, least=0)
    if not 0 < number <= _MAX_LAYERS:
        raise CannotImport(f"the file claims {number} layers; 1 to {_MAX_LAYERS} are read")
    return int(number)


def ends(metadata: Metadata, tensors: Tensors) -> tuple[dict[str, Any], list[Weight]]:
    """Return the weights before and after the layers: embeddings, the last norm, the head."""
    embeddings = tensors.get("token_embd.weight")
    if embeddings is None or len(embeddings.shape) != 2:
        raise CannotImport("the file lacks token_embd.weight, the embeddings of tokens; is it a part of a model?")
    vocab, hidden = embeddings.shape[0], metadata.whole(".embedding_length")
    is_tied = "output.weight" not in tensors
    config = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": num_layers(metadata),
        "num_attention_heads": metadata.whole(".attention.head_count"),
        "rms_norm_eps": metadata.number(".attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.number(".rope.freq_base", 10000.0),
        "max_position_embeddings": metadata.whole(".context_length"),
        "tie_word_embeddings": is_tied,
    }
    weights = [
        Weight("token_embd.weight", "model.embed_tokens", (vocab, hidden)),
        Weight("output_norm.weight", "model.norm.weight", (hidden,), "plain"),
    ]
    if not is_tied:
        weights.append(Weight("output.weight", "lm_head", (vocab, hidden)))
    return config, weights


def layer(place: int) -> Callable[..., Weight]:
    """Return a function that builds the weights of one layer."""

    def weight(source: str, target: str, *shape: int, form: Form = "linear", **more: Any) -> Weight:
        return Weight(f"blk.{place}.{source}", f"model.layers.{place}.{target}", shape, form, **more)

    return weight


def norm(place: int, source: str, target: str, size: int) -> Weight:
    return layer(place)(f"{source}.weight", f"{target}.weight", size, form="plain")


def feed_forward(place: int, hidden: int, inner: int, *, suffix: str = "", under: str = "mlp") -> Iterator[Weight]:
    """Yield the three projections of a gated block; with `suffix` _shexp, of shared experts."""
    weight = layer(place)
    yield weight(f"ffn_gate{suffix}.weight", f"{under}.gate_proj", inner, hidden)
    yield weight(f"ffn_up{suffix}.weight", f"{under}.up_proj", inner, hidden)
    yield weight(f"ffn_down{suffix}.weight", f"{under}.down_proj", hidden, inner)


def experts(place: int, hidden: int, inner: int, number: int) -> Iterator[Weight]:
    """Yield the router, which is not quantized, and the experts of a layer."""
    weight = layer(place)
    yield weight("ffn_gate_inp.weight", "mlp.gate.weight", number, hidden, form="plain")
    yield weight("ffn_gate_exps.weight", "mlp.switch_mlp.gate_proj", number, inner, hidden)
    yield weight("ffn_up_exps.weight", "mlp.switch_mlp.up_proj", number, inner, hidden)
    yield weight("ffn_down_exps.weight", "mlp.switch_mlp.down_proj", number, hidden, inner)
