"""Where the answers of a batch are kept: one file of all, or failures in a file of their own."""

from __future__ import annotations

from dataclasses import dataclass

from server.batches.answers import Answered, AnswerFile, Written
from server.batches.lines import Line


@dataclass(frozen=True, slots=True)
class Recovered:
    """What an earlier run has answered."""

    num_done: int = 0
    num_failed: int = 0


class AnswerSink:
    """Answers in `output`; in `errors`, where there is one, those of lines that failed."""

    def __init__(self, output: AnswerFile, errors: AnswerFile | None = None) -> None:
        self._output, self._errors = output, errors
        self._answered = Answered()

    @property
    def num_bytes(self) -> int:
        """The size of what is written."""
        return sum(file.num_bytes for file in self._files)

    def recover(self) -> Recovered:
        """Take over what is answered already. Raises AnswersError and OSError."""
        num_failed = 0
        for file in self._files:
            for found in file.recover():
                self._answered.add(found.number, found.mark)
                num_failed += not found.is_success
        return Recovered(self._answered.num_lines, num_failed)

    def has(self, line: Line) -> bool:
        """Whether a line is answered. Raises AnswersError where the answer is that of another line."""
        return self._answered.has(line.number, line.mark)

    def put(self, line: Line, written: Written) -> None:
        """Keep an answer. Raises AnswersError, OSError and what the files' `check_room` raises; then it is not kept."""
        file = self._output if written.is_success or self._errors is None else self._errors
        file.append(written.text)
        self._answered.add(line.number, line.mark)

    def sync(self) -> None:
        """Have all answers on the disk itself. Raises OSError."""
        for file in self._files:
            file.sync()

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    @property
    def _files(self) -> list[AnswerFile]:
        return [self._output] if self._errors is None else [self._output, self._errors]
