"""JSON answers written piece by piece: as events arrive, and the rest in slices.

An answer may hold tens of megabytes of log-probabilities; writing it in one go would block the event loop for seconds.
Independent of the fields of a choice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from server.dialects.openai_written import Head, dump, encode_usage, quote
from server.errors import InvalidRequest
from server.text.events import Finished, ReasoningDelta, TextDelta, ToolCallDelta, Usage

ChoiceEvent = TextDelta | ReasoningDelta | ToolCallDelta | Finished
MOST_CHARS = 64 << 20
"""Size limit of an answer that is not streamed."""
_SLICE_S = 0.005


class ChoiceFold(Protocol):
    """One choice of an answer, built as its events arrive."""

    def add(self, event: ChoiceEvent) -> int:
        """Write the event; return about how many characters it takes."""

    def pieces(self, number: int) -> Iterator[str]:
        """Yield the choice as JSON, with its number in the answer."""


class Fold:
    """Answer of one job."""

    def __init__(
        self,
        head: Head,
        name: str,
        build_choice: Callable[[int], ChoiceFold],
        select: Callable[[Sequence[int]], Iterable[tuple[int, int]]] | None = None,
    ) -> None:
        """`select` yields (number in the answer, index) of the choices to show; None shows all, numbered by index."""
        self._head, self._name = head, name
        self._build_choice = build_choice
        self._select = select or (lambda indices: ((index, index) for index in indices))
        self._choices: dict[int, ChoiceFold] = {}
        self._usage = "{}"
        self._num_chars = 0

    def add(self, events: Iterable[ChoiceEvent | Usage]) -> None:
        """Take more events. Raises InvalidRequest if the answer becomes too large."""
        for event in events:
            if isinstance(event, Usage):
                self._usage = dump(encode_usage(event))
                continue
            choice = self._choices.get(event.index)
            if choice is None:
                choice = self._choices[event.index] = self._build_choice(event.index)
            self._num_chars += choice.add(event)
        if self._num_chars > MOST_CHARS:
            raise InvalidRequest(
                f"The answer is larger than {MOST_CHARS >> 20} MB, the most that is sent in one piece. Ask for it "
                "with 'stream', or for fewer tokens, choices or log-probabilities.",
                param="stream",
                code="answer_too_large",
            )

    def pieces(self) -> Iterator[str]:
        """Yield the whole answer as JSON."""
        head = self._head
        yield (
            f'{{"id":{quote(head.id)},"object":"{self._name}","created":{head.created},'
            f'"model":{quote(head.model)}{head.tier},"choices":['
        )
        for place, (number, index) in enumerate(self._select(sorted(self._choices))):
            if place:
                yield ","
            yield from self._choices[index].pieces(number)
        yield f'],"usage":{self._usage}}}'


async def joined(pieces: Iterable[str]) -> bytes:
    """Return all pieces in UTF-8, built in slices that yield to the event loop in between."""
    found, until = [], time.perf_counter() + _SLICE_S
    for piece in pieces:
        found.append(piece)
        if time.perf_counter() > until:
            await asyncio.sleep(0)
            until = time.perf_counter() + _SLICE_S
    return "".join(found).encode()


def listed(items: Iterable[str]) -> Iterator[str]:
    """Yield a JSON list of items that are JSON."""
    separator = "["
    for item in items:
        yield separator
        yield item
        separator = ","
    yield "[]" if separator == "[" else "]"
