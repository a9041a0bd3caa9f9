"""Work of a grammar process: compile one grammar, try it out, then compute each sequence's allowed next tokens.

Runs in grammar processes; the only module that imports llguidance. Its input is untrusted: the process has limits, and
may die at any point.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Sequence
from typing import Any, NoReturn

from server.grammars import wire
from server.grammars.limits import OUT_OF_MEMORY, Limits, Meter, prepare_child, processor_s
from server.grammars.wire import Ask, Kind, Mask, Vocabulary

_HEAD = '%llguidance {"no_forcing": true}\n'
"""Forced text may be written in any tokens: the model chooses which, and no tokenizer is needed."""
_MAX_ITEMS_IN_ROW = 2_500
"""Parser items in a row: a step takes about 4 µs for each (on the benchmark machine), and every row waits for it. An
object has four of them for each optional property.
"""
_STEP_MAX_ITEMS = 100_000
_STEP_FUEL = 200_000
_MAX_STATES = 100_000
"""Lexer states; 1 to 2 KB each."""
_LEAST_TRIAL_TOKENS, _MOST_TRIAL_TOKENS = 8, 48
_TRIAL_S = 0.01
"""Processor time after which a trial ends."""


class Refused(Exception):
    """The grammar cannot be honoured; the message gives the reason."""


def build_tokenizer(vocabulary: Vocabulary) -> Any:
    """Return llguidance's form of a vocabulary, with its trie."""
    from llguidance import LLTokenizer, TokenizerWrapper

    tokens = _Tokens(vocabulary)
    tokenizer = LLTokenizer(
        TokenizerWrapper(tokens), n_vocab=len(vocabulary.tokens), eos_token=list(vocabulary.eos_ids)
    )
    tokens.tokenizer = tokenizer
    return tokenizer


class _Tokens:
    """A vocabulary in the form that llguidance reads."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens, self.special_token_ids = vocabulary.tokens, list(vocabulary.special_ids)
        self.eos_token_id = vocabulary.eos_ids[0]
        self.tokenizer: Any = None

    def __call__(self, text: bytes) -> list[int]:
        """Return tokens of a text, not always the model tokenizer's; used only by a grammar that forces text."""
        if self.tokenizer is None:
            return []
        ids: list[int] = self.tokenizer.greedy_tokenize(text.decode("utf-8", "replace"))
        return ids


def run(sock: socket.socket, limits: Limits, tokenizer: Any) -> NoReturn:
    """Run the process of one grammar, from its source to the end of its socket. Never returns."""
    code = 1
    try:
        prepare_child()
        _run(sock, Meter(limits), tokenizer)
        code = 0
    except MemoryError:
        code = OUT_OF_MEMORY
    except (wire.Closed, OSError):
        code = 0  # the server no longer needs it
    finally:
        os._exit(code)


def _run(sock: socket.socket, meter: Meter, tokenizer: Any) -> None:
    _, body = wire.receive(sock)
    began = processor_s()
    try:
        with meter.compiling():
            whole, *parts = wire.unpack_source(body)
            matcher = compile_matcher(tokenizer, whole)
            for part in parts:
                check_part(tokenizer, part)
            try_out(matcher.deep_copy(), meter)
    except Refused as error:
        sock.sendall(wire.frame(Kind.REFUSED, str(error).encode()))
        return
    sock.sendall(wire.frame(Kind.COMPILED, wire.pack_compiled(meter.used_bytes, processor_s() - began)))
    Matching(matcher, meter).serve(sock)


def compile_matcher(tokenizer: Any, source: str) -> Any:
    """Return an LLMatcher at the start of the grammar. Raises Refused."""
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        max_items_in_row=_MAX_ITEMS_IN_ROW,
        step_max_items=_STEP_MAX_ITEMS,
        step_lexer_fuel=_STEP_FUEL,
        max_lexer_states=_MAX_STATES,
        verbose_errors=False,
    )
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(_HEAD + source), log_level=0, limits=limits)
    if matcher.is_error():
        raise Refused(matcher.get_error())
    return matcher


def check_part(tokenizer: Any, source: str) -> None:
    """Raise Refused if a part of a grammar allows nothing."""
    matcher = compile_matcher(tokenizer, source)
    matcher.compute_bitmask()
    if matcher.is_error():
        raise Refused("its limits of a text contradict one another, so that nothing may follow where it should begin")


def try_out(matcher: Any, meter: Meter) -> None:
    """Follow the grammar for some randomly drawn allowed tokens. Raises Refused if that fails.

    A grammar that is too complex to follow usually shows it within its first tokens: an object with very many optional
    properties, a choice among very many. Copies share what the trial computes.
    """
    source, began = random.Random(0), processor_s()
    for number in range(_MOST_TRIAL_TOKENS):
        step_began = processor_s()
        bits: bytes = matcher.compute_bitmask()
        token_id = draw(bits, source)
        if matcher.is_error():
            raise Refused(_failure(matcher, number))
        if matcher.is_stopped() or token_id is None:
            return
        if not matcher.consume_token(token_id):
            raise Refused(_failure(matcher, number))
        took_s = processor_s() - step_began
        if took_s > meter.limits.step_s:
            raise Refused(f"it is too complex to be followed (a step takes {1e3 * took_s:.0f} ms)")
        if number >= _LEAST_TRIAL_TOKENS and processor_s() - began > _TRIAL_S:
            return


def draw(bits: bytes, source: random.Random) -> int | None:
    """Return a random token allowed by the bits; None if they allow none."""
    start = source.randrange(len(bits))
    rest = bits[start:].lstrip(b"\0")
    place = len(bits) - len(rest)
    if not rest:
        rest = bits.lstrip(b"\0")
        place = len(bits) - len(rest)
    if not rest:
        return None
    allowed = [bit for bit in range(8) if rest[0] >> bit & 1]
    return 8 * place + source.choice(allowed)


def _failure(matcher: Any, num_tokens: int) -> str:
    """Return the reason why a grammar cannot be followed any further."""
    said = " ".join(matcher.get_error().replace("<non-verbose/>", "").split())
    if said.startswith("NoExtension"):
        return "it allows no answer at all" if num_tokens == 0 else "it can come to a point where nothing may follow"
    return f"it is too complex to be followed ({said.removeprefix('Parser Error: ')})"


class Matching:
    """The sequences that follow one grammar, by the ids that the server assigns."""

    def __init__(self, matcher: Any, meter: Meter) -> None:
        self._matcher = matcher
        self._meter = meter
        self._states: dict[int, Any] = {}

    def serve(self, sock: socket.socket) -> None:
        """Answer until the socket closes. Raises wire.Closed."""
        while True:
            kind, body = wire.receive(sock)
            if kind is Kind.ASK:
                asks = wire.unpack_asks(body)
                with self._meter.steps(sum(1 + len(ask.draft_ids) for ask in asks)):
                    masks = [self._answer(ask) for ask in asks]
                sock.sendall(wire.frame(Kind.ANSWER, wire.pack_answer(self._meter.used_bytes, masks)))
            elif kind is Kind.DROP:
                self._states.pop(wire.unpack_drop(body), None)

    def _answer(self, ask: Ask) -> Mask:
        matcher = self._states.get(ask.state_id)
        if matcher is None:
            matcher = self._states[ask.state_id] = self._matcher.deep_copy()
        for token_id in ask.token_ids:
            if not matcher.is_stopped():  # after its end anything may follow
                matcher.consume_token(token_id)
        bits: bytes = matcher.compute_bitmask()
        if matcher.is_error():
            return Mask(ask.state_id, failure=_failure(matcher, 1))
        return Mask(ask.state_id, bits, _behind(matcher, bits, ask.draft_ids))


def _behind(matcher: Any, bits: bytes, draft_ids: Sequence[int]) -> tuple[bytes, ...]:
    """Return the masks after each draft token, up to the first that is not allowed. Leaves the matcher unchanged."""
    found: list[bytes] = []
    ahead = matcher.deep_copy() if draft_ids else matcher
    for token_id in draft_ids:
        if not _allows(bits, token_id) or ahead.is_stopped() or not ahead.consume_token(token_id):
            break
        bits = ahead.compute_bitmask()
        if ahead.is_error():
            break  # reported when the sequence gets there
        found.append(bits)
    return tuple(found)


def _allows(bits: bytes, token_id: int) -> bool:
    place, bit = divmod(token_id, 8)
    return place < len(bits) and bool(bits[place] >> bit & 1)
