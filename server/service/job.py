"""GenerationJob: the canonical, frozen request that every dialect's decode() returns."""

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
    """A prompt as text, encoded with the tokenizer's special tokens (such as beginning-of-sequence) by default."""

    text: str
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """A prompt as token ids, used as they are."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the chat template, in its own form: mappings with `role` and `content`."""

    messages: tuple[Mapping[str, Any], ...]
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()
    """Tools offered to the model; its answer is parsed for calls of them."""
    parallel_tool_calls: bool = True
    """If false, an answer ends with its first call."""
    must_call: bool = False
    """The answer must be one or several calls of `tools`."""
    ending: Ending = "answer"
    reminders: tuple[str, ...] = ()
    """Lines that change between requests; appended to the last message."""


@dataclass(frozen=True, slots=True)
class InfillPrompt:
    """A text with a gap to fill."""

    prefix: str
    suffix: str


Prompt = TextPrompt | TokenPrompt | ChatPrompt | InfillPrompt


@dataclass(frozen=True, slots=True)
class GrammarWish:
    """Grammar that the answers must follow, and the wire name of the requesting field."""

    source: GrammarSource
    param: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationJob:
    """Request for generation, independent of the dialect.

    `max_tokens` None means `default_max_tokens`; if that is None too, the rest of the context.
    Choice i of prompt p has the index p * n + i in every event.
    """

    request_id: str
    model: str
    prompts: tuple[Prompt, ...]
    names: FieldNames
    """The dialect's field names, for errors."""
    n: int = 1
    max_tokens: int | None = None
    default_max_tokens: int | None = None
    fits_max_tokens: bool = False
    """Whether `max_tokens` is reduced to the room left by the prompt; otherwise refused."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    grammar: GrammarWish | None = None
    thinking_budget: int | None = None
    """Tokens of reasoning after which it is closed; None: unlimited."""
    needs_reasoning: bool = True
    """Whether a budget is refused for a model without reasoning marks; otherwise ignored."""
    ignore_eos: bool = False
    min_tokens: int = 0
    """Output tokens before which neither a token nor a stop string ends the sequence."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a sequence beside the model's own, even if those are ignored."""
    dry_sequence_breakers: tuple[str, ...] | None = None
    """Texts that break repetitions; None: the usual ones."""
    bad_words: tuple[str, ...] = ()
    """Texts that must not be generated."""
    num_prompt_logprobs: int | None = None
    """None: no prompt log-probabilities; k >= 0: those of the tokens and of the k most likely ones."""
    tenant: Tenant = field(default_factory=Tenant)
    priority: Priority = "normal"
    """Class that the request names; `tenant` may restrict it to another."""
    cache_salt: str = ""
    """Prompts with different salts share no prefix cache."""
    uses_prefix_cache: bool = True
    """Whether the prefix cache is read and written."""
    prediction: str | None = None
    """Expected text of the answers: matching tokens cost less. Answers do not depend on it."""
    speculates: bool = True
    """Whether speculative decoding may be used."""
    given: frozenset[str] = frozenset()
    """Fields that the request sets, among those with model defaults; by the names of `RequestDefaults`."""
    keeps_transcript: bool = False
    """Whether the output stream keeps a transcript of tokens."""
