"""GenerationJob: the one canonical request, frozen; what every dialect's decode() returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_backend.api.interface import Priority, SamplingParams
from server.security.tenant import Tenant
from server.service.names import FieldNames
from server.text.chat_template import Ending
from server.text.grammar import GrammarSource


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A prompt as text, encoded with the tokenizer's own special tokens (a beginning-of-sequence, say) unless not."""

    text: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt as token ids, taken as they are."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the chat template, in the template's own form: mappings with `role` and `content`."""

    messages: tuple[Mapping[str, Any], ...]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    """What the model is offered, and calls of which are looked for in its answer."""
    parallel_tool_calls: bool = True
    """If not, an answer ends with its first call."""
    must_call: bool = False
    """The answer is a call of one of `tools`, or several."""
    ending: Ending = "answer"
    reminders: tuple[str, ...] = ()
    """Lines that differ from request to request; the model reads them at the end of the last message."""


@dataclass(frozen=True, slots=True)
class InfillPrompt:
    """A text with a gap that is to be filled."""

    prefix: str
    suffix: str


Prompt = TextPrompt | TokenPrompt | ChatPrompt | InfillPrompt


@dataclass(frozen=True, slots=True)
class GrammarWish:
    """What the answers must follow, and the wire's name for who asked for it."""

    source: GrammarSource
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJob:
    """What is to be generated, whatever dialect it was asked in.

    `max_tokens` None means `default_max_tokens`, and where that is None too, the rest of the context.
    Choice i of prompt p has the index p * n + i in every event.
    """

    request_id: str
    model: str
    prompts: tuple[Prompt, ...]
    names: FieldNames
    """The dialect's, for errors."""
    n: int = 1
    max_tokens: int | None = None
    default_max_tokens: int | None = None
    fits_max_tokens: bool = False
    """Whether `max_tokens` is cut to the room that the prompt leaves; else it is refused."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    grammar: GrammarWish | None = None
    thinking_budget: int | None = None
    """Tokens of a thought after which it is closed; None: it is as long as it is."""
    needs_reasoning: bool = True
    """Whether a budget is refused of a model that marks no thoughts; else it has no effect there."""
    ignore_eos: bool = False
    min_tokens: int = 0
    """Outputs before which nothing ends the sequence, no token and no stop string."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a sequence beside the model's own, also where those are ignored."""
    dry_sequence_breakers: tuple[str, ...] | None = None
    """Texts that no repetition goes across; None for the usual ones."""
    bad_words: tuple[str, ...] = ()
    """Texts that are not written."""
    num_prompt_logprobs: int | None = None
    """None: no log-probabilities of the prompts; k >= 0: those of their tokens, and the k most likely ones'."""
    tenant: Tenant = field(default_factory=Tenant)
    priority: Priority = "normal"
    """The class that the request asks for; `tenant` may allow no more than another."""
    cache_salt: str = ""
    """Prompts of different salts share nothing of what is kept of them."""
    uses_prefix_cache: bool = True
    """Whether what is known of the prompts is taken, and what is computed is kept."""
    prediction: str | None = None
    """What the answers are expected to be: tokens that come so cost less. No answer depends on it."""
    speculates: bool = True
    """Whether tokens may be guessed and verified several at a time."""
    given: frozenset[str] = frozenset()
    """What the request says itself, among what a model may have defaults of; by the names of `RequestDefaults`."""
    keeps_transcript: bool = False
    """Whether the output stream keeps what the answer may show of tokens."""
