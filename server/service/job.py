"""GenerationJob: the one canonical request, frozen; what every dialect's decode() returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_backend.interface import SamplingParams


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt as text, encoded with the tokenizer's own special tokens (a beginning-of-sequence, say)."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt as token ids, taken as they are."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the chat template, in the template's own form: mappings with `role` and `content`."""

    messages: tuple[Mapping[str, Any], ...]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)


Prompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJob:
    """What is to be generated, whatever dialect it was asked in.

    `max_tokens` None means `default_max_tokens`, and where that is None too, the rest of the context.
    Choice i of prompt p has the index p * n + i in every event.
    """

    request_id: str
    model: str
    prompts: tuple[Prompt, ...]
    prompt_param: str
    """The wire's name for the prompt (`prompt`, `messages`), for error bodies."""
    n: int = 1
    max_tokens: int | None = None
    default_max_tokens: int | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
