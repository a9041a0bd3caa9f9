"""A query and a document as the prompt of a model that scores the one for the other, in the words of Qwen3-Reranker."""

from __future__ import annotations

from dataclasses import dataclass

from server.text.bounded_encoding import count_tokens, encode_up_to
from server.text.tokenizer import Tokenizer

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
"""What the model was trained to be asked where nobody asks for anything else."""
_BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_SLACK = 64


class QueryTooLong(Exception):
    """Nothing is left for the document. `num_tokens`: of the prompt without it."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__(f"{num_tokens} tokens without the document")
        self.num_tokens = num_tokens


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt's tokens, and how many of the query's and the document's were left out."""

    ids: tuple[int, ...]
    num_truncated_tokens: int = 0


class PairEncoder:
    """Encodes pairs for one instruction, some tokens of each part at most; None: all."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        instruction: str,
        *,
        most_of_query: int | None = None,
        most_of_document: int | None = None,
        most: int | None = None,
    ) -> None:
        """`most`: tokens of the whole prompt; what is too much is cut off the document."""
        self._tokenizer, self._instruction = tokenizer, instruction
        self._most_of_query, self._most_of_document, self._most = most_of_query, most_of_document, most
        self._before, self._after = self._encode(_BEFORE), self._encode(_AFTER)

    def encode(self, query: str, document: str, context: int) -> Pair:
        """Return a pair's prompt. Raises TooLong for what is beyond doubt longer than `context`, and QueryTooLong."""
        num_cut = 0
        if self._most_of_query is not None:
            query, num_cut = cut(self._tokenizer, query, self._most_of_query)
        most = self._most_of_document
        if self._most is not None:
            room = self._most - len(self._join(query, "", context))
            if room < 0:
                raise QueryTooLong(self._most - room)
            most = room if most is None else min(most, room)
        if most is not None:
            document, num_cut_of_document = cut(self._tokenizer, document, most)
            num_cut += num_cut_of_document
        ids = self._join(query, document, context)
        while self._most is not None and most and len(ids) > self._most:  # where parts meet, there may be more tokens
            most = max(most - (len(ids) - self._most), 0)
            document, num_more = cut(self._tokenizer, document, most)
            num_cut += num_more
            ids = self._join(query, document, context)
        return Pair(tuple(ids), num_cut)

    def _join(self, query: str, document: str, context: int) -> list[int]:
        text = f"<Instruct>: {self._instruction}\n<Query>: {query}\n<Document>: {document}"
        asked = encode_up_to(self._tokenizer, text, context, add_special_tokens=False)
        return [*self._before, *asked, *self._after]

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def cut(tokenizer: Tokenizer, text: str, most: int) -> tuple[str, int]:
    """Return the beginning of a text of `most` tokens, and how many more it has."""
    num_chars = 4 * most + 1000
    while num_chars < len(text) and len(_encode(tokenizer, text[:num_chars])) <= most + _SLACK:
        num_chars *= 2
    ids = _encode(tokenizer, text[:num_chars])
    if len(ids) <= most:
        return text, 0
    kept = tokenizer.decode(ids[:most]).rstrip("\N{REPLACEMENT CHARACTER}")
    num_tokens = len(ids) if num_chars >= len(text) else count_tokens(tokenizer, text)
    return kept, num_tokens - most


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)
