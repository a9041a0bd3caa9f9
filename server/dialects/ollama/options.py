"""Options of an answer: supported, without effect here, or refused. Handles names and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlx_backend.api.interface import SamplingParams
from server.dialects.ollama.schema import Options
from server.dialects.openai_shared import SamplingFields, check_extra, decode_sampling, given_fields
from server.errors import UnsupportedParameter

NO_EFFECT = frozenset(
    {
        *("numa", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_gqa", "low_vram", "f16_kv"),
        *("logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only", "mirostat_tau", "mirostat_eta"),
    }
)
"""Options of loading a model, which the configuration decides; and options that only apply with `mirostat`."""
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {"mirostat": (0,), "tfs_z": (1.0,)}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {"repeat_last_n": (-1,)}
"""The repetition penalty covers the whole context."""


def decode_options(
    options: Options | None, num_logprobs: int | None
) -> tuple[SamplingParams, frozenset[str], list[str]]:
    """Return the sampling, the names given among those with model defaults, and the dotted names of ignored ones.

    Raises UnsupportedParameter.
    """
    given = options or Options.model_construct()
    extra = given.model_extra or {}
    try:
        ignored = check_extra(extra, UNSUPPORTED, NO_EFFECT)
    except UnsupportedParameter as error:
        raise UnsupportedParameter(f"options.{error.param}") from None
    ignored = [name for name in ignored if extra[name] not in _NEUTRAL.get(name, ()) and extra[name] is not None]
    fields = SamplingFields.model_construct(
        temperature=given.temperature,
        top_k=given.top_k,
        top_p=given.top_p,
        min_p=given.min_p,
        typical_p=given.typical_p,
        repetition_penalty=given.repeat_penalty,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        seed=None if given.seed == -1 else given.seed,  # any
        stop=given.stop,
    )
    given_names = given_fields(fields, given.num_predict) | ({"seed"} if given.seed == -1 else set())
    return decode_sampling(fields, num_logprobs), given_names, [f"options.{name}" for name in ignored]


def decode_max_tokens(options: Options | None) -> int | None:
    """Return the maximal tokens of an answer; None for the rest of the context, which -1, -2 and 0 stand for."""
    wanted = None if options is None else options.num_predict
    return wanted if wanted is not None and wanted > 0 else None
