"""The served models as Ollama lists, describes and shows them. Loads nothing: unknown values are omitted."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

from server.dialects.ollama.encode import timestamp
from server.request_defaults import SAMPLING
from server.service.registry import ServedModel
from server.text.infill import InfillUnsupported, encode_infill

ARCHITECTURE = "mlx"
"""Prefix of a model's own values: this interface does not distinguish architectures."""
_FOREVER = "2226-01-01T00:00:00Z"
"""For a model that stays: `ollama ps` shows a time decades away as "Forever", and no time as "Stopping"."""
_LEAST_OF = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def encode_tags(model: ServedModel) -> list[dict[str, Any]]:
    """Return a model and its adapters for `/api/tags`; their size is the model's, 0 until it has been loaded once."""
    own = _encode_tag(model)
    details = own["details"] | {"parent_model": model.id}
    names = model.adapter_ids
    return [own, *(own | {"name": name, "model": name, "digest": _digest(name), "details": details} for name in names)]


def _encode_tag(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.id,
        "model": model.id,
        "modified_at": timestamp(model.created),
        "size": 0 if model.info is None else model.info.weights_bytes,
        "digest": _digest(model.id),
        "details": _details(model),
    }


def encode_running(model: ServedModel) -> dict[str, Any]:
    """Return one model of `/api/ps`."""
    info = model.info
    size = model.share.share_bytes if model.share is not None else 0 if info is None else info.weights_bytes
    return {
        "name": model.id,
        "model": model.id,
        "size": size,
        "digest": _digest(model.id),
        "details": _details(model),
        "expires_at": _expires_at(model),
        "size_vram": size,
        "context_length": 0 if info is None else info.context_limit,
    }


def encode_shown(model: ServedModel) -> dict[str, Any]:
    """Return the answer of `/api/show`."""
    system = {} if model.defaults.system is None else {"system": model.defaults.system}
    return {
        **system,
        "modelfile": f"# Configured on the server, as '{model.id}'.\nFROM {model.id}\n",
        "parameters": _parameters(model),
        "template": "".join(f"{{{{ .{field} }}}}" for field in _fields(model)),
        "details": _details(model),
        "model_info": _model_info(model),
        "capabilities": _capabilities(model),
        "modified_at": timestamp(model.created),
    }


def _parameters(model: ServedModel) -> str:
    """Return the defaults of the model's requests as a Modelfile's parameters."""
    names = {"max_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}
    written = model.defaults.as_written()
    lines = [f"{names.get(name, name):<30} {written[name]}" for name in (*SAMPLING, "max_tokens") if name in written]
    return "\n".join([*lines, *(f"{'stop':<30} {json.dumps(stop)}" for stop in model.defaults.stop)])


def is_running(model: ServedModel) -> bool:
    return model.state == "loaded"


def _capabilities(model: ServedModel) -> list[str]:
    info, format, tokenizer = model.info, model.chat_format, model.tokenizer
    found = ["completion"]
    if format is not None and format.has_tools:
        found.append("tools")
    if format is not None and format.has_reasoning:
        found.append("thinking")
    if tokenizer is not None:
        try:
            encode_infill(tokenizer, "", "", 1)
            found.append("insert")
        except InfillUnsupported:
            pass
    if info is not None and info.embedding is not None:
        found.append("embedding")
    return found


def _fields(model: ServedModel) -> list[str]:
    """Return the names of Ollama's template fields that the model's template, in another language, supports.

    Clients search for them.
    """
    by_capability = {"tools": "Tools", "thinking": "Thinking", "insert": "Suffix"}
    return ["System", "Messages", *(by_capability[each] for each in _capabilities(model) if each in by_capability)]


def _model_info(model: ServedModel) -> dict[str, Any]:
    found: dict[str, Any] = {"general.architecture": ARCHITECTURE, "general.basename": model.id}
    info = model.info
    if info is None:
        return found
    found |= {
        "general.parameter_count": info.num_parameters,
        f"{ARCHITECTURE}.context_length": info.context_limit,
        f"{ARCHITECTURE}.vocab_size": info.vocab_size,
    }
    if info.embedding is not None:
        found[f"{ARCHITECTURE}.embedding_length"] = info.embedding.dim
    return found


def _details(model: ServedModel) -> dict[str, Any]:
    info = model.info
    size = "" if info is None or not info.num_parameters else _short(info.num_parameters)
    bits = "" if info is None or not info.num_parameters else f"{8 * info.weights_bytes / info.num_parameters:.1f} bits"
    return {
        "parent_model": "",
        "format": "mlx",
        "family": ARCHITECTURE,
        "families": [ARCHITECTURE],
        "parameter_size": size,
        "quantization_level": bits,
    }


def _short(number: int) -> str:
    for least, unit in _LEAST_OF:
        if number >= least:
            return f"{number / least:.1f}{unit}"
    return str(number)


def _digest(name: str) -> str:
    """Return a hash of the model's name, for clients that compare digests; reads no files."""
    return hashlib.sha256(name.encode()).hexdigest()


def _expires_at(model: ServedModel) -> str:
    if model.keep_alive_s is None or model.is_pinned:
        return _FOREVER
    idle_s = 0.0 if model.num_users else time.monotonic() - model.used_at
    return timestamp(time.time() + max(0.0, model.keep_alive_s - idle_s))
