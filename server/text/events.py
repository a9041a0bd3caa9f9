"""Output events of the text pipeline, encoded by every dialect. Imports only the finish reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlx_backend.api.interface import FinishReason

EndReason = FinishReason | Literal["tool_calls"]
"""`tool_calls`: a chat's answer ended by itself and contains calls."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """One generated token, for requests with log-probabilities.

    `text` is the token decoded alone (possibly a replacement character if the token is part of a character), `raw` its
    bytes; `top` the most likely tokens, most likely first.
    """

    token_id: int
    text: str
    raw: bytes
    logprob: float
    top: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of one choice. `text` may be empty if only `tokens` has something new."""

    index: int
    text: str
    tokens: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More reasoning of one choice. `text` may be empty if only `tokens` has something new."""

    index: int
    text: str
    tokens: tuple[TokenText, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A complete tool call, the `call_index`-th of one choice; `arguments` is a JSON object as text."""

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
    """Tokens generated for this choice, including an end-of-sequence token."""
    num_reasoning_tokens: int | None = None
    """Reasoning tokens among them, tags included; None if reasoning is not parsed."""
    end_token: TokenText | None = None
    """The end-of-sequence token, for requests with log-probabilities; its name is not part of the answer's text."""
    stop: str | None = None
    """The stop string that ended the choice."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Last event of every job: its token counts over all prompts and choices."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    num_truncated_tokens: int = 0
    """Prompt tokens dropped to fit the context; not included in `num_prompt_tokens`."""
    num_reasoning_tokens: int | None = None
    """Reasoning tokens of the output; None if reasoning is not parsed."""
    num_accepted_prediction_tokens: int | None = None
    """Output tokens that matched the client's prediction and cost less; None without a prediction."""
    num_rejected_prediction_tokens: int | None = None
    """Tokens of the prediction that were tried and rejected."""


OutputEvent = TextDelta | ReasoningDelta | ToolCallDelta | Finished | Usage
