"""One attempt to parse calls from where they may begin, incrementally and once the text has ended."""

from __future__ import annotations

from server.text.calls.form import CallForm
from server.text.calls.growing import GrowingText, NotACall, Parse
from server.text.calls.offered import OfferedTools
from server.text.calls.pairs import Leniency
from server.text.calls.reader import FoundCall, SectionReader


class Attempt:
    """Parses a section of calls from the beginning of a text. `is_settled`: the outcome is final."""

    def __init__(self, form: CallForm, tools: OfferedTools, text: str) -> None:
        self._form, self._tools = form, tools
        self._text = GrowingText(text)
        self.is_settled = False
        self.has_begun = False
        """A call was begun, whatever became of it."""
        self.calls: list[FoundCall] = []
        self.end = 0
        """End of the section in the text; 0 if there is none."""
        self.read_until = 0
        """End of the calls that were parsed completely, even if they form no section."""
        self._run(Leniency.NONE)

    def feed(self, text: str) -> None:
        """Continue with more text."""
        self._text.text += text
        self._resume()

    def finish(self, *, is_cut: bool) -> None:
        """Settle at the end of the text. Unless the text `is_cut`, closing marks missing at its end are tolerated."""
        self._text.is_ended, self._text.is_cut = True, is_cut
        self._resume()
        for leniency in () if is_cut else (Leniency.UNBALANCED, Leniency.LACKING):
            if not self.end:
                self._run(leniency)

    def _run(self, leniency: Leniency) -> None:
        self._reader = SectionReader(self._form, self._tools, self._text, leniency)
        self._parse: Parse[tuple[list[FoundCall], int]] = self._reader.section(0)
        self.is_settled = False
        self._resume()

    def _resume(self) -> None:
        if self.is_settled:
            return
        try:
            next(self._parse)
        except StopIteration as done:
            self.is_settled = True
            self.calls, self.end = done.value
        except NotACall:
            self.is_settled = True
        self.has_begun = self._reader.has_begun
        self.read_until = max(self.read_until, self._reader.read_until)
