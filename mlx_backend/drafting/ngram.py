"""NGramDrafter: the newest tokens have occurred before, and what followed them then may follow again.

Searches prompt and output, and a text that the client predicts. Edits of a file, quotations, the keys of records and
the names of tools are found this way, and no second model is needed (prompt lookup decoding, Saxena 2023).

Tokens are kept as characters of a string, so that the interpreter's own search runs over them: a search through 100,000
tokens takes about 0.1 ms, and usually none is needed, as a correct guess is followed further.
"""

from __future__ import annotations

from collections.abc import Sequence

from mlx_backend.drafting.drafter import NUM_CLASSES, Guess

_LEAST_MATCH = 3
"""Tokens that must have occurred before: after two, the continuation is too seldom the same."""
_MOST_MATCH = 32
_LONGER = 8
"""Length below which a match is searched once more for a longer one."""
_WINDOW = 1 << 16
"""Number of newest tokens that are searched."""
_APART = chr(0x10FFFF)
"""Separator of the prediction and the prompt: no token has this number."""
_PATIENCE = (16, 64)
"""Failed searches after which every second step is searched, and every fourth."""


class NGramDrafter:
    """Implements `drafter.Drafter`."""

    def __init__(self, prompt_ids: Sequence[int], prediction_ids: Sequence[int] = ()) -> None:
        self._prediction_end = len(prediction_ids)
        self._text = _text(prediction_ids) + _APART + _text(prompt_ids)
        self._follow: int | None = 0 if prediction_ids else None
        """Place of the token that may come next; None: unknown."""
        self._match = _LONGER if prediction_ids else 0
        """Number of tokens before that place that match the newest."""
        self._num_misses = 0

    def extend(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            character = chr(token_id)
            if self._follow is not None and self._text[self._follow] == character:
                self._follow, self._match = self._follow + 1, min(self._match + 1, _MOST_MATCH)
                if self._follow == self._prediction_end:
                    self._follow = None  # the prediction ends here
            else:
                self._follow = None
            self._text += character
        if self._follow is None:
            self._search()

    def guess(self, most: int) -> Guess:
        if self._follow is None or most < 1:
            return Guess()
        is_predicted = self._follow < self._prediction_end
        end = self._prediction_end if is_predicted else len(self._text)
        found = self._text[self._follow : min(self._follow + most, end)]
        if not is_predicted and found and len(found) < most:  # repetition is likely to continue
            found = (found * most)[:most]
        return Guess(tuple(map(ord, found)), _class(self._match), is_predicted)

    def _search(self) -> None:
        """Find the newest place where the newest tokens have occurred before; the prediction is searched first."""
        if self._num_misses > _PATIENCE[0] and self._num_misses % (2 if self._num_misses <= _PATIENCE[1] else 4):
            self._num_misses += 1
            return
        place = self._find(0, self._prediction_end - 1)
        if place is None:
            place = self._find(max(self._prediction_end + 1, len(self._text) - _WINDOW), len(self._text) - 1)
        self._num_misses = 0 if place is not None else self._num_misses + 1
        self._follow = place

    def _find(self, start: int, end: int) -> int | None:
        """Return the place after a match in [start, end) of the text, which the text reaches; None: there is none."""
        place, match = self._match_of(_LEAST_MATCH, start, end)
        while place is not None and match < _LONGER:
            longer, longer_match = self._match_of(match + 1, start, end)
            if longer is None:
                break
            place, match = longer, longer_match
        self._match = match
        return place

    def _match_of(self, size: int, start: int, end: int) -> tuple[int | None, int]:
        """Return the place after the newest match of at least `size` tokens, and the number of matching tokens."""
        text = self._text
        at = text.rfind(text[-size:], start, end)
        if at < 0:
            return None, 0
        match, place = size, at + size
        while match < _MOST_MATCH and at > start and text[at - 1] == text[-match - 1]:
            match, at = match + 1, at - 1
        return place, match


def _class(match: int) -> int:
    """Return the class of guesses after `match` matching tokens: up to 3, 7, 15, more."""
    return min(NUM_CLASSES - 1, max(0, match.bit_length() - 2))


def _text(token_ids: Sequence[int]) -> str:
    return "".join(map(chr, token_ids))
