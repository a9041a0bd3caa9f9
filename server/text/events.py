"""What leaves the text pipeline: the nouns that every dialect encodes. Imports only the finish reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlx_backend.api.interface import FinishReason

EndReason = FinishReason | Literal["tool_calls"]
"""`tool_calls`: a chat's answer ended by itself, and has calls in it."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """One generated token, for those who asked for log-probabilities.

    `text` is the token decoded alone (it may be a replacement character where the token is part of one),
    `raw` its bytes; `top` the most likely tokens, most likely first.
    """

    token_id: int
    text: str
    raw: bytes
    logprob: float
    top: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of one choice. `text` may be empty where only `tokens` has something new."""

    index: int
    text: str
    tokens: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what one choice thinks before it answers. `text` may be empty where only `tokens` has something new."""

    index: int
    text: str
    tokens: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A whole call of a tool, the `call_index`-th of one choice; `arguments` is the JSON of an object."""

    index: int
    call_index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of one choice."""

    index: int
    reason: EndReason
    num_output_tokens: int
    """Tokens generated for this choice, an end-of-sequence token included."""
    num_reasoning_tokens: int | None = None
    """Those of them that are reasoning, tags included; None where none is looked for."""
    end_token: TokenText | None = None
    """The token with which it ended, for those who asked for log-probabilities; its name is no text of the answer."""
    stop: str | None = None
    """The stop string with which it ended."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The last event of every job: what it cost, over all prompts and choices."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_truncated_tokens: int = 0
    """Of the prompts, what was left out so that they fit; not in `num_prompt_tokens`."""
    num_reasoning_tokens: int | None = None
    """Of the output; None where none is looked for."""
    num_accepted_prediction_tokens: int | None = None
    """Of the output, what came as the client predicted and cost less for it; None where it predicted nothing."""
    num_rejected_prediction_tokens: int | None = None
    """Tokens of the prediction that were tried in vain."""


OutputEvent = TextDelta | ReasoningDelta | ToolCallDelta | Finished | Usage
