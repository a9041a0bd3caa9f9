"""Fields of the OpenAI dialects that are refused, have no effect, or are unknown.

Holds only names and neutral values; the types of supported fields are in the schemas.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from server.errors import UnsupportedParameter

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "best_of": (),
    "min_length": (0,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "prompt_logprobs": (),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "logits_processors": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1.0,),
    "early_stopping": (False,),
    "grammar": ("",),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "tfs_z": (1.0,),
    "top_a": (0.0,),
    "dynatemp_range": (0.0,),
    "mirostat": (0,),
    "repeat_penalty": (1.0,),  # an alias of repetition_penalty, for dialects without that field
    "no_repeat_ngram_size": (0,),
    "repetition_context_size": (),
    "thinking_budget": (),
    "thinking_token_budget": (),
    "n_predict": (),
    "max_new_tokens": (),
    "num_predict": (),
    "adapter": (),
    "adapters": (),
    "lora": ([],),
}
"""Fields that would change the output but are not supported: name -> values without effect. None has no effect."""

NO_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Fields that are accepted and correctly have no effect on the output."""


def check_extra(
    extra: Mapping[str, Any], unsupported: Mapping[str, tuple[Any, ...]], no_effect: Collection[str]
) -> list[str]:
    """Return the unknown names in `extra`. Raises UnsupportedParameter for a known field that is not supported."""
    for name, neutral in unsupported.items():
        value = extra.get(name)
        if value is not None and not any(_is_same(value, one) for one in neutral):
            raise UnsupportedParameter(name)
    return [name for name in extra if name not in unsupported and name not in no_effect]


def _is_same(value: Any, neutral: Any) -> bool:
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
