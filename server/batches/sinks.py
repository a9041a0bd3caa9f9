"""Storage of a batch's answers: one file for all, or a separate file for failures."""

from __future__ import annotations

from dataclasses import dataclass

from server.batches.answers import Answered, AnswerFile, Written
from server.batches.lines import Line


@dataclass(frozen=True, slots=True)
class Recovered:
    """Counts of an earlier run's answers."""

    num_done: int = 0
    num_failed: int = 0


class AnswerSink:
    """Answers in `output`; those of failed lines in `errors`, if given."""

    def __init__(self, output: AnswerFile, errors: AnswerFile | None = None) -> None:
        self._output, self._errors = output, errors
        self._answered = Answered()

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(file.num_bytes for file in self._files)

    def recover(self) -> Recovered:
        """Read the existing answers. Raises AnswersError and OSError."""
        num_failed = 0
        for file in self._files:
            for found in file.recover():
                self._answered.add(found.number, found.mark)
                num_failed += not found.is_success
        return Recovered(self._answered.num_lines, num_failed)

    def has(self, line: Line) -> bool:
        """Return whether a line is answered. Raises AnswersError if the answer is that of another line."""
        return self._answered.has(line.number, line.mark)

    def put(self, line: Line, written: Written) -> None:
        """Keep an answer. On AnswersError, OSError and what the files' `check_room` raises, nothing is kept."""
        file = self._output if written.is_success or self._errors is None else self._errors
        file.append(written.text)
        self._answered.add(line.number, line.mark)

    def sync(self) -> None:
        """Sync all answers to disk. Raises OSError."""
        for file in self._files:
            file.sync()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    @property
    def _files(self) -> list[AnswerFile]:
        return [self._output] if self._errors is None else [self._output, self._errors]
