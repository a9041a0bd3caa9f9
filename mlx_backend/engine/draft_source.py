"""DraftSource: the runner's draft model for the loop; it is measured, and given up after repeated failures."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from mlx_backend.api.errors import SequenceFailed, let_go_of_frames
from mlx_backend.core.sequence import TokenSequence
from mlx_backend.core.step import Draft, DraftRequest
from mlx_backend.drafting.speculation import Speculation
from mlx_backend.runners.base import Runner

logger = logging.getLogger("pippin.engine")

_MAX_FAILURES = 3
_STALL_SHARE = 0.5
"""Share of the promised stall that prefilling tokens of a row may take."""


class DraftSource:
    """Access to the draft model, if there is one. `max_stall_s`: the longest pause of running streams."""

    def __init__(self, runner: Runner, speculation: Speculation, max_stall_s: float) -> None:
        self._runner, self._speculation, self._max_stall_s = runner, speculation, max_stall_s
        self._num_failures = 0

    def ask(self, wanted: tuple[DraftRequest, ...]) -> tuple[tuple[Draft, ...], float]:
        """Return the draft model's drafts and the seconds they took. Requests continue without drafts, too."""
        began = time.monotonic()
        try:
            given = self._runner.draft(wanted)
        except SequenceFailed as error:
            given = ()
            self._num_failures += 1
            logger.error("the draft model failed: %s", error, exc_info=error.__cause__)
            let_go_of_frames(error)
            if self._num_failures >= _MAX_FAILURES:
                logger.error("the draft model is given up: it has failed %d times", self._num_failures)
                self._speculation.give_up_draft_model()
        return given, time.monotonic() - began

    def is_wanted(self, sequences: Sequence[TokenSequence]) -> bool:
        """Return whether prefilling a part of one of these rows should pay."""
        return self._missing(sequences) is not None

    def prefill(self, sequences: Sequence[TokenSequence], beside_s: float) -> None:
        """Have a part of one of these rows prefilled.

        `beside_s`: seconds of the decode step in progress, which the prefill waits for.
        """
        wanted = self._missing(sequences)
        if wanted is not None:
            given, waited_s = self.ask((wanted,))
            self._speculation.prefilled(wanted, given, max(waited_s - beside_s, 0.2 * waited_s))

    def _missing(self, sequences: Sequence[TokenSequence]) -> DraftRequest | None:
        return self._speculation.missing(sequences, _STALL_SHARE * self._max_stall_s)
