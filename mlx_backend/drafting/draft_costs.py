"""Measured costs of a draft model: seconds of a step of some rows, and of a token that it prefills."""

from __future__ import annotations

_STEP_SHARE = 0.25
_TOKEN_SHARE = 0.01
"""Share of a plain step of the target model, as long as nothing was measured."""
_UP, _DOWN = 0.1, 0.5
"""Weights of a slower and a faster measurement: the first ones are slow, as kernels are prepared."""
_FIRST_TOKENS = 64
"""Tokens prefilled at once before anything was measured."""
_LEAST_TOKENS = 16


class DraftCosts:
    """Costs by the number of rows; a number that was not measured costs as the nearest that was."""

    def __init__(self) -> None:
        self._step_s: dict[int, float] = {}
        self._token_s: float | None = None

    def observe_steps(self, num_rows: int, num_steps: int, seconds: float) -> None:
        """Record that `num_steps` tokens of each row were drafted, one after the other."""
        self._step_s[num_rows] = _moved(self._step_s.get(num_rows), seconds / num_steps)

    def observe_chunk(self, num_tokens: int, seconds: float) -> None:
        """Record that `num_tokens` of a row were prefilled."""
        self._token_s = _moved(self._token_s, seconds / num_tokens)

    def steps_s(self, num_rows: int, num_steps: int, plain_s: float) -> float:
        """Return the seconds that drafting takes. `plain_s`: seconds of a plain step."""
        if not num_steps:
            return 0.0
        nearest = min(self._step_s, key=lambda rows: abs(rows - num_rows), default=None)
        return num_steps * (_STEP_SHARE * plain_s if nearest is None else self._step_s[nearest])

    def chunk_s(self, num_tokens: int, plain_s: float) -> float:
        """Return the seconds to prefill `num_tokens` of a row."""
        return num_tokens * (_TOKEN_SHARE * plain_s if self._token_s is None else self._token_s)

    def tokens_for(self, seconds: float, most: int) -> int:
        """Return how many tokens of a row are prefilled in `seconds`, at most `most`."""
        if self._token_s is None:
            return min(_FIRST_TOKENS, most)
        return max(min(_LEAST_TOKENS, most), min(most, int(seconds / max(self._token_s, 1e-9))))


def _moved(known: float | None, measured: float) -> float:
    if known is None:
        return measured
    return known + (_UP if measured > known else _DOWN) * (measured - known)
