"""Exceptions of the engine, as types.

EngineError
├── ModelLoadError           the model folder or its files cannot be served
├── EngineNotReady           the model is still loading
├── EngineDead               the device thread has ended; no more requests are answered
│   └── EngineClosed         ... because the engine was closed
├── QueueFull                as many requests wait as `scheduler.max_waiting` allows
├── TooManyPrompts           one submission has more prompts than that
├── ContextLengthExceeded    prompt + max_tokens is more than the context limit
├── MemoryLimitExceeded      the request alone needs more memory than there is
├── UnknownToken             a token id is not in the model's vocabulary
├── UnknownAdapter           the model has no adapter of this name
├── AdapterRefused           an adapter cannot be loaded or unloaded
├── NoRoomForAdapter         ... for lack of memory
└── SequenceFailed           one computation failed; names the affected sequences, the others continue
    ├── OutOfMemory          ... because the device had no memory for it
    └── GrammarFailed        a sequence cannot follow its grammar any further
        └── GrammarLost      ... because the grammar's process is lost
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable


class EngineError(Exception):
    """Base of every error the engine raises on purpose."""


class ModelLoadError(EngineError):
    """The model cannot be loaded; the message gives the fault and the remedy, in one line."""


class EngineNotReady(EngineError):
    """The model is still loading."""


class EngineDead(EngineError):
    """The device thread has ended."""


class EngineClosed(EngineDead):
    """The engine was closed: the server ends, or the model was unloaded."""


class QueueFull(EngineError):
    """Too many requests are waiting already."""

    def __init__(self, num_waiting: int, retry_after_s: int = 5) -> None:
        super().__init__(f"{num_waiting} requests are already waiting; try again later")
        self.num_waiting = num_waiting
        self.retry_after_s = retry_after_s
        """Time after which some of them should have started."""


class TooManyPrompts(EngineError):
    """More prompts in one submission than `scheduler.max_waiting`: waiting would not help."""

    def __init__(self, num_prompts: int, limit: int) -> None:
        super().__init__(f"The request has {num_prompts} prompts; the limit is {limit}.")


class ContextLengthExceeded(EngineError):
    """Prompt and output exceed the context limit. `is_least`: the prompt was not counted to its end."""

    def __init__(self, num_prompt_tokens: int, max_tokens: int, limit: int, *, is_least: bool = False) -> None:
        self.num_prompt_tokens = num_prompt_tokens
        self.max_tokens = max_tokens
        self.limit = limit
        total = num_prompt_tokens + max_tokens
        least = "at least " if is_least else ""
        super().__init__(
            f"This model's maximum context length is {limit} tokens. However, you requested {least}{total} tokens "
            f"({least}{num_prompt_tokens} in the prompt, {max_tokens} for the output). "
            "Please shorten the prompt or ask for fewer tokens."
        )


class MemoryLimitExceeded(EngineError):
    """The request could not be computed even alone; `largest` tokens, prompt and output, could."""

    def __init__(self, num_tokens: int, num_rows: int, needed_bytes: int, limit_bytes: int, largest: int) -> None:
        self.largest = largest
        rows = "" if num_rows == 1 else f" for {num_rows} continuations"
        super().__init__(
            f"This request may need {needed_bytes / 1e9:.2f} GB of memory beside the model ({num_tokens} tokens of "
            f"prompt and output{rows}), but only {limit_bytes / 1e9:.2f} GB are available. "
            f"At most {largest} tokens{rows} fit; please shorten the prompt or ask for fewer tokens."
        )


class UnknownToken(EngineError):
    """A token id of a prompt, or (`is_bias`) of a logit bias, is not in the model's vocabulary."""

    def __init__(self, token_id: int, vocab_size: int, *, is_bias: bool = False) -> None:
        super().__init__(f"Token {token_id} does not exist: this model's token ids range from 0 to {vocab_size - 1}.")
        self.is_bias = is_bias


class UnknownAdapter(EngineError):
    """The model has no adapter of this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"The model has no adapter '{name}'.")


class AdapterRefused(EngineError):
    """An adapter cannot be loaded or unloaded; nothing has changed."""


class NoRoomForAdapter(EngineError):
    """An adapter does not fit into memory beside the model and its requests; nothing has changed."""


class SequenceFailed(EngineError):
    """A computation failed on its input; the device and all other work are unaffected.

    `ids`: the sequences that are lost. Empty: all sequences of the computation.
    """

    def __init__(self, message: str, ids: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.ids = tuple(ids)


class OutOfMemory(SequenceFailed):
    """The device had no memory for this computation."""


class GrammarFailed(SequenceFailed):
    """The sequence's grammar is too complex to be followed any further, or has reached a dead end."""


class GrammarLost(GrammarFailed):
    """The grammar's process is lost, through no fault of the grammar."""


def let_go_of_frames(error: BaseException) -> None:
    """Clear an error's frames: a client's stream that keeps the error would keep the computation's arrays with it."""
    traceback.clear_frames(error.__traceback__)
    if error.__cause__ is not None:
        traceback.clear_frames(error.__cause__.__traceback__)
