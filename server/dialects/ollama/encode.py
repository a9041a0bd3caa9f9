"""Encoding of output events as lines of JSON, and as their fold, a single object. Durations are nanoseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from server.dialects.fold import MOST_CHARS
from server.dialects.openai_written import dump, finite, quote
from server.errors import InvalidRequest
from server.service.timings import JobTimings
from server.text.events import Finished, OutputEvent, ReasoningDelta, TextDelta, TokenText, ToolCallDelta, Usage

Kind = Literal["chat", "generate"]
_REASONS = {"tool_calls": "stop"}


def timestamp(seconds: float | None = None) -> str:
    """Return a time in Ollama's format; the current time by default."""
    found = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return found.isoformat(timespec="microseconds").replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    """Return at least one nanosecond: clients divide by durations."""
    return max(1, round(seconds * 1e9))


def encode_notice(kind: Kind, model: str, reason: str) -> str:
    """Return the answer to a request that loads or unloads a model without a prompt."""
    return f'{_head(model)}{_said(kind, "")},"done":true,"done_reason":"{reason}"}}'


def encode_silence(kind: Kind, model: str) -> bytes:
    """Return a line without text, a keep-alive for a client that would time out."""
    return f'{_head(model)}{_said(kind, "")},"done":false}}\n'.encode()


def encode_timings(timings: JobTimings, usage: Usage) -> dict[str, int]:
    return {
        "total_duration": nanoseconds(timings.total_s),
        "load_duration": nanoseconds(timings.load_s),
        "prompt_eval_count": usage.num_prompt_tokens,
        "prompt_eval_duration": nanoseconds(timings.prompt_s),
        "eval_count": usage.num_output_tokens,
        "eval_duration": nanoseconds(timings.output_s),
    }


class LineEncoder:
    """Encodes the batches of one stream, in order, one line per event; the last line has the timings."""

    def __init__(self, kind: Kind, model: str, timings: Callable[[], JobTimings]) -> None:
        self._kind, self._model, self._timings = kind, model, timings
        self._reason = "stop"

    def encode(self, events: Sequence[OutputEvent]) -> bytes:
        head, written = _head(self._model), ""
        for event in events:
            if isinstance(event, Finished):
                self._reason = _REASONS.get(event.reason, event.reason)
            elif isinstance(event, Usage):
                written += f"{head}{_said(self._kind, '')}{_ending(self._reason, self._timings(), event)}\n"
            elif isinstance(event, ToolCallDelta):
                written += f'{head}{_said(self._kind, "", calls=(_call(event),))},"done":false}}\n'
            elif isinstance(event, ReasoningDelta):
                if event.text:
                    written += f'{head}{_said(self._kind, "", event.text)},"done":false}}\n'
            elif event.text or event.tokens:
                written += f'{head}{_said(self._kind, event.text)}{_logprobs(event.tokens)},"done":false}}\n'
        return written.encode()


@dataclass(slots=True)
class Fold:
    """The JSON answer of one job."""

    kind: Kind
    model: str
    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    """As JSON."""
    tokens: list[TokenText] = field(default_factory=list)
    reason: str = "stop"
    usage: Usage | None = None
    num_chars: int = 0

    def add(self, events: Sequence[OutputEvent]) -> None:
        """Add events. Raises InvalidRequest if the answer becomes too large."""
        for event in events:
            if isinstance(event, Finished):
                self.reason = _REASONS.get(event.reason, event.reason)
            elif isinstance(event, Usage):
                self.usage = event
            elif isinstance(event, ToolCallDelta):
                self.calls.append(_call(event))
                self.num_chars += len(event.arguments)
            else:
                self._add_text(event)
        if self.num_chars > MOST_CHARS:
            message = f"The answer is larger than {MOST_CHARS >> 20} MB, the most that is sent in one piece."
            raise InvalidRequest(f"{message} Ask for it with 'stream'.", param="stream", code="answer_too_large")

    def _add_text(self, event: TextDelta | ReasoningDelta) -> None:
        (self.reasoning if isinstance(event, ReasoningDelta) else self.text).append(event.text)
        self.num_chars += len(event.text)
        if isinstance(event, TextDelta):
            self.tokens += event.tokens

    def write(self, timings: JobTimings) -> str:
        assert self.usage is not None, "the job has not ended"
        said = _said(self.kind, "".join(self.text), "".join(self.reasoning), self.calls)
        return f"{_head(self.model)}{said}{_logprobs(self.tokens)}{_ending(self.reason, timings, self.usage)}"


def _head(model: str) -> str:
    return f'{{"model":{quote(model)},"created_at":"{timestamp()}",'


def _said(kind: Kind, text: str, reasoning: str = "", calls: Sequence[str] = ()) -> str:
    thinking = f',"thinking":{quote(reasoning)}' if reasoning else ""
    if kind == "generate":
        return f'"response":{quote(text)}{thinking}'
    tool_calls = f',"tool_calls":[{",".join(calls)}]' if calls else ""
    return f'"message":{{"role":"assistant","content":{quote(text)}{thinking}{tool_calls}}}'


def _ending(reason: str, timings: JobTimings, usage: Usage) -> str:
    return f',"done":true,"done_reason":"{reason}",{dump(encode_timings(timings, usage))[1:]}'


def _call(call: ToolCallDelta) -> str:
    """Return a call. Its arguments are an object with the model's own digits, without newlines, which end lines."""
    arguments = call.arguments.replace("\r", " ").replace("\n", " ")
    function = f'{{"index":{call.call_index},"name":{quote(call.name)},"arguments":{arguments}}}'
    return f'{{"id":{quote(call.id)},"function":{function}}}'


def _logprobs(tokens: Sequence[TokenText]) -> str:
    if not tokens:
        return ""
    return f',"logprobs":{dump([{**_token(token), "top_logprobs": list(map(_token, token.top))} for token in tokens])}'


def _token(token: TokenText) -> dict[str, Any]:
    return {"token": token.text, "logprob": finite(token.logprob), "bytes": list(token.raw)}
