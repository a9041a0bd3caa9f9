"""Incremental parser of a chat's answer: its reasoning, its calls and its content.

docs/calls.md ("What is a thought") has the table of what counts as reasoning; the tests follow it. A text that begins
like a call and can never become one, or calls a tool that was not offered, stays part of its surroundings, tags
included. White space around reasoning and calls is dropped, except between two pieces of content. An empty line
separates two pieces of reasoning.
"""

from __future__ import annotations

from typing import Literal

from server.text.calls.attempt import Attempt
from server.text.calls.offered import OfferedTools
from server.text.calls.openers import openers_of
from server.text.calls.reader import FoundCall
from server.text.detokenizer import CONTROL_MARK
from server.text.parsers.parts import ChatFormat, Kind, Part, Start, ToolCall, Tools, markup_of
from server.text.parsers.tags import TagSet, find_tag

_QUOTES = "`'\""
_SENTENCE_ENDS = ".!?\u2026\u3002\uff01\uff1f\n"
_BETWEEN_REASONING = "\n\n"
_MOST_ATTEMPTS_AT_END = 64
"""Possible beginnings of calls that are tried once the output has ended, each to its end."""


class ChatParser:
    """The parser of one choice. `begins`: the state at the end of the prompt. Without `tools`, calls are not parsed.

    `only_one`: nothing after the first call matters. `is_held`: calls are in the model's own form only.
    """

    def __init__(
        self,
        format: ChatFormat,
        tools: Tools = (),
        *,
        begins: Start = "before",
        only_one: bool = False,
        is_held: bool = False,
    ) -> None:
        self._format, self._only_one = format, only_one
        self._tools = OfferedTools(tools if format.calls else ())
        thinks = bool(format.think_start and format.think_end)
        self._think_start, self._think_end = (format.think_start or "", format.think_end or "") if thinks else ("", "")
        self._call_tags: tuple[str, ...] = ()
        in_content: list[str] = [self._think_start, self._think_end, *format.frames]
        in_line: tuple[str, ...] = ()
        if format.calls is not None and tools:
            openers = openers_of(format.calls, self._tools.names, is_held=is_held)
            self._call_tags, in_line = openers.tags, openers.at_line
            in_content += [*openers.tags, *openers.heads]
        self._in_content = TagSet(filter(None, in_content))
        self._in_line, self._line_tags = TagSet(in_line), frozenset(in_line)
        self._in_reasoning = TagSet(filter(None, (self._think_start, self._think_end, *self._call_tags)))
        self.markup = markup_of(format, has_tools=bool(tools))
        self.done = False

        self._ids: set[str] = set()
        self._held = ""
        self._line_from = 0  # no untagged call begins before it
        self._searched = 0  # in the held text: no tag begins before it
        self._attempt: Attempt | None = None
        self._attempt_at, self._attempt_tag = 0, ""
        self._num_attempts_left: int | None = None  # None: the output has not ended
        self._skips_to: str | None = None  # closing text of a broken call; empty: there is none
        self._kind: Literal["content", "reasoning"] = "content"
        self._begin(begins)

    def _begin(self, begins: Start) -> None:
        thinks = bool(self._think_end)
        is_open = begins == "before" and thinks and self._format.habit.is_unopened
        if begins in ("opened", "reasoning") or is_open:
            self._kind = "reasoning"
        self._has_reasoning = begins == "reasoning"  # whether the current reasoning has any text
        self._num_reasoning = int(self._has_reasoning)  # pieces of reasoning with text
        self._most_held = self._format.habit.num_held
        self._is_undecided = begins == "before" and thinks and self._kind == "content" and self._most_held > 0
        # the content so far may be reasoning
        self._is_interrupted = False  # a call has ended reasoning that was not closed
        self._has_content = False
        self._drops_space = False  # the next content loses its leading white space
        self._is_after_call = False
        self._num_mentions = 0  # opening tags within content
        self._last, self._is_spaced = "", False  # the last character in the line of content; whether space follows it

    def feed(self, text: str) -> list[Part]:
        """Return the parts settled so far. Text after the single allowed call is dropped."""
        self._held += text
        if self._attempt is not None:
            self._attempt.feed(text)
        parts: list[Part] = []
        while not self.done and self._step(parts):
            pass
        return parts

    def flush(self, *, is_cut: bool = False) -> list[Part]:
        self._num_attempts_left = _MOST_ATTEMPTS_AT_END
        parts: list[Part] = []
        while not self.done:
            if self._attempt is not None:
                self._attempt.finish(is_cut=is_cut)
            if not self._step(parts):
                break
        self._say_rest(parts, is_cut=is_cut)
        return [part for part in parts if part.size] or [Part(self._last_kind, "", 0)]

    def _step(self, parts: list[Part]) -> bool:
        """Settle one more item; return whether there may be another."""
        if self._attempt is not None:
            return self._settle_attempt(parts, self._attempt)
        if self._skips_to is not None:
            return self._skip(parts)
        found = self._find()
        if self._is_undecided and self._searched > self._most_held:
            self._decide_plain()
        if found is not None:
            self._meet(parts, *found)
        elif not self._is_undecided:
            self._say(parts, self._settled(self._held[: self._searched]))
        return found is not None

    def _settled(self, text: str) -> str:
        """Return `text` without trailing white space that may be dropped."""
        is_lead = self._think_end and not self._has_content and not text.strip()
        if self._kind == "reasoning" or self._tools.names or is_lead:
            return text.rstrip()
        return text

    # --- tags

    def _find(self) -> tuple[int, str] | None:
        """Return (start of the next significant tag, that tag). No tag begins before `_searched` afterwards."""
        at = self._searched
        while True:
            found, half = self._first_tag(at), self._half_at(at)
            if found is None or half < found[0]:  # or it may lie within a longer one
                self._searched = half
                return None
            place, tag = found
            verdict = self._judge(place, tag)
            if verdict == "means":
                self._searched = place
                return found
            if verdict == "wait":
                self._searched = place
                return None
            at = place + len(tag)

    def _first_tag(self, at: int) -> tuple[int, str] | None:
        if self._kind == "reasoning":
            return self._in_reasoning.find(self._held, at)
        found = self._in_content.find(self._held, at)
        if not self._in_line:
            return found
        in_line = self._in_line.find(self._held, max(at, self._line_from))
        while in_line is not None and not self._is_line_blank(in_line[0]):
            in_line = self._in_line.find(self._held, in_line[0] + 1)
        return min(filter(None, (found, in_line)), key=lambda each: each[0], default=None)

    def _half_at(self, at: int) -> int:
        if self._num_attempts_left is not None:
            return len(self._held)
        if self._kind == "reasoning":
            return self._in_reasoning.half_at(self._held, at)
        if not self._in_line:
            return self._in_content.half_at(self._held, at)
        in_line = self._in_line.half_at(self._held, max(at, self._line_from))
        in_line = in_line if self._is_line_blank(in_line) else len(self._held)
        return min(self._in_content.half_at(self._held, at), in_line)

    def _judge(self, place: int, tag: str) -> Literal["means", "text", "wait"]:
        if self._kind == "reasoning":
            is_text = tag == self._think_start and (self._has_reasoning or self._held[:place].strip())
            return "text" if is_text else "means"
        if tag == self._think_start:
            verdict = self._judge_start(place, place + len(tag))
            self._num_mentions += verdict == "text"
            return verdict
        return self._judge_end(place, tag) if tag == self._think_end else "means"

    def _judge_end(self, place: int, tag: str) -> Literal["means", "text", "wait"]:
        """Judge a closing tag outside reasoning."""
        end = place + len(tag)
        if end == len(self._held) and self._num_attempts_left is None:
            return "wait"
        before, after = self._held[place - 1 : place] or self._last, self._held[end : end + 1]
        if before and after and before in _QUOTES and after in _QUOTES:
            return "text"
        if self._num_mentions:
            self._num_mentions -= 1
            return "text"
        is_alone = self._is_line_blank(place) or after in ("", "\n", "\r")
        is_undecided = self._is_undecided and place <= self._most_held
        return "means" if is_undecided or self._is_interrupted or is_alone else "text"

    def _is_line_blank(self, place: int) -> bool:
        """Return whether only white space precedes `place` in its line of content."""
        _, line_end, line = self._held[:place].rpartition("\n")
        return not line.strip() and bool(line_end or not self._last)

    def _judge_start(self, place: int, end: int) -> Literal["means", "text", "wait"]:
        """Judge an opening tag: at the start of a line, or after a sentence and not before a space, it counts."""
        if self._is_line_blank(place):
            return "means"
        before = (self._last + " " * self._is_spaced) + self._held[:place]
        if not before[-1:].isspace() or before.strip()[-1:] not in _SENTENCE_ENDS:
            return "text"
        if end == len(self._held) and self._num_attempts_left is None:
            return "wait"
        return "text" if self._held[end : end + 1] == " " else "means"

    def _meet(self, parts: list[Part], place: int, tag: str) -> None:
        if tag == self._think_start:
            self._open_reasoning(parts, place)
        elif tag == self._think_end:
            self._close_reasoning(parts, place)
        elif tag in self._format.frames:
            self._decide_plain()
            self._say(parts, self._held[:place].rstrip())
            self._drop(parts, self._searched + len(tag), "call")
        else:
            self._begin_attempt(parts, place, tag)

    def _open_reasoning(self, parts: list[Part], place: int) -> None:
        if self._kind == "content":
            if self._is_undecided:
                self._format.habit.note_opened()
            self._decide_plain(is_known=True)
            text = self._held[:place]
            self._say(parts, text if self._has_content or text.strip() else "")
            self._kind, self._has_reasoning = "reasoning", False
        self._drop(parts, self._searched + len(self._think_start), "reasoning")

    def _close_reasoning(self, parts: list[Part], place: int) -> None:
        if self._kind == "content" and self._is_undecided:
            self._format.habit.note_unopened()
            self._kind = "reasoning"
        is_reasoning = self._kind == "reasoning"
        text = self._held[:place]
        self._say(parts, text.rstrip() if is_reasoning or not (self._has_content or text.strip()) else text)
        self._drop(parts, self._searched + len(self._think_end), "reasoning")
        self._is_interrupted = False
        if is_reasoning:
            is_empty = not self._has_reasoning
            self._kind, self._has_reasoning = "content", False
            self._is_undecided = is_empty and not self._has_content and not self._num_reasoning and self._most_held > 0
        self._drops_space, self._last = True, ""

    # --- calls

    def _begin_attempt(self, parts: list[Part], place: int, tag: str) -> None:
        if self._num_attempts_left == 0:
            self._searched += 1
            return
        self._num_attempts_left = self._num_attempts_left and self._num_attempts_left - 1
        if not self._is_undecided:
            self._say(parts, self._held[:place].rstrip())
        assert self._format.calls is not None
        self._attempt_at, self._attempt_tag = self._searched, tag
        self._attempt = Attempt(self._format.calls, self._tools, self._held[self._searched :])

    def _settle_attempt(self, parts: list[Part], attempt: Attempt) -> bool:
        if not attempt.is_settled:
            return False
        self._attempt = None
        if any(call.name is not None for call in attempt.calls):
            self._take_calls(parts, attempt)
        elif attempt.end:  # only calls of tools that were not offered
            self._searched = self._attempt_at + attempt.end
        elif self._attempt_tag in self._call_tags:
            self._searched = self._attempt_at + len(self._attempt_tag)
            if attempt.has_begun and self._kind == "content" and self._format.calls:
                self._skips_to = self._format.calls.end_of(self._attempt_tag) or None
        else:  # calls followed by text do not count, nor do those that begin later among them
            self._line_from = self._attempt_at + max(1, attempt.read_until)
            is_tried = self._attempt_tag not in self._line_tags or attempt.read_until
            self._searched = self._line_from if is_tried else self._attempt_at  # a tag may begin like that
        return True

    def _take_calls(self, parts: list[Part], attempt: Attempt) -> None:
        self._decide_plain(is_known=True)
        self._say(parts, self._held[: self._searched].rstrip())
        size = self._searched + attempt.end
        calls = tuple(map(self._to_call, (call for call in attempt.calls if call.name is not None)))
        others = [call.raw for call in attempt.calls if call.name is None]
        raw_size = sum(map(len, others))
        self._is_interrupted |= self._kind == "reasoning"
        self._kind = "content"
        self._has_reasoning, self._is_after_call, self._drops_space = False, True, not self._has_content
        self._last, self.done = "", self._only_one
        parts.append(Part("call", "", size - raw_size, calls[:1] if self._only_one else calls))
        self._consume(size)
        for raw in others:
            self._held = raw + self._held
            self._say(parts, raw)

    def _to_call(self, call: FoundCall) -> ToolCall:
        assert call.name is not None and self._format.calls is not None
        id = call.id or self._format.calls.new_id()
        if id in self._ids:  # clients distinguish results by id
            stem = id.rpartition(":")[0] if self._format.calls.id_is_name else ""
            id = f"{stem}:{len(self._ids)}" if stem else self._format.calls.new_id()
        self._ids.add(id)
        return ToolCall(id, call.name, call.arguments.replace(CONTROL_MARK, ""))

    def _skip(self, parts: list[Part]) -> bool:
        """Skip the rest of a broken call: nothing in it begins another."""
        assert self._skips_to is not None
        place, tag = find_tag(self._held, (self._skips_to,), self._searched)
        self._searched = place + len(tag or "")
        if tag is not None:
            self._skips_to = None
            return True
        if self._is_undecided and self._searched > self._most_held:
            self._decide_plain()
        if not self._is_undecided:
            self._say(parts, self._held[: self._searched].rstrip())
        return False

    # --- output

    @property
    def _last_kind(self) -> Kind:
        """Kind of the last character."""
        if self._is_after_call:
            return "call"
        return "reasoning" if self._drops_space else self._kind

    def _decide_plain(self, *, is_known: bool = False) -> None:
        """Treat the content so far as content; `is_known`: there is evidence for it."""
        if self._is_undecided and not is_known and self._held.strip():
            self._format.habit.note_plain()
        self._is_undecided = False

    def _say(self, parts: list[Part], text: str) -> None:
        """Emit `text`, the beginning of the held text."""
        self._consume(len(text))
        for place, piece in enumerate(text.split(CONTROL_MARK) if CONTROL_MARK in text else (text,)):
            if place % 2:  # the name of a special token, which counts as text in calls only
                parts.append(Part("call", "", len(piece) + 2))
            elif self._kind == "reasoning":
                self._say_reasoning(parts, piece)
            else:
                self._say_content(parts, piece)

    def _say_content(self, parts: list[Part], text: str) -> None:
        said = text
        if self._drops_space:
            said = text.lstrip()
            self._note_space(parts, len(text) - len(said))
        if said:
            parts.append(Part("content", said, len(said)))
            self._drops_space = self._is_after_call = False
            self._has_content |= not said.isspace()
            _, line_end, line = said.rpartition("\n")
            self._last = line.strip()[-1:] or ("" if line_end else self._last)
            self._is_spaced = said[-1].isspace()

    def _say_reasoning(self, parts: list[Part], text: str) -> None:
        said = text if self._has_reasoning else text.lstrip()
        if said and not self._has_reasoning:
            said = (_BETWEEN_REASONING if self._num_reasoning else "") + said
            self._has_reasoning, self._num_reasoning = True, self._num_reasoning + 1
        if text:
            parts.append(Part("reasoning", said, len(text)))

    def _say_rest(self, parts: list[Part], *, is_cut: bool) -> None:
        if self.done:
            return
        self._decide_plain(is_known=is_cut)
        if self._kind == "reasoning":
            self._say(parts, self._held.rstrip())
            self._drop(parts, len(self._held), "reasoning")
        elif self._held.isspace() and (self._drops_space or self._is_after_call):
            self._note_space(parts, len(self._held))
            self._consume(len(self._held))
        else:
            self._say(parts, self._held)

    def _note_space(self, parts: list[Part], size: int) -> None:
        if size:
            parts.append(Part("call" if self._is_after_call else "reasoning", "", size))

    def _drop(self, parts: list[Part], size: int, kind: Kind) -> None:
        parts.append(Part(kind, "", size))
        self._consume(size)

    def _consume(self, size: int) -> None:
        self._held = self._held[size:]
        self._searched = max(0, self._searched - size)
        self._attempt_at = max(0, self._attempt_at - size)
        self._line_from = max(0, self._line_from - size)
