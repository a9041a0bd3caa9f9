"""How byte-level tokenizers split a text before merging, by the name that a GGUF file has for it.

The file names the way and does not hold it. The patterns are those of the models' own tokenizers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_MARKS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_MARKS}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_MARKS}+{_LOWER}*|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One way to split."""

    steps: tuple[dict[str, Any], ...]
    normalizer: dict[str, Any] | None = None
    ignores_merges: bool = False
    """A piece that is a token as a whole is taken as it is."""
    adds_bos: bool = False
    """Where the file does not say."""


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(*, use_regex: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_NFC = {"type": "NFC"}
_GPT2 = PreTokenizer((_bytes(use_regex=True),))
_QWEN2 = PreTokenizer((_split(_WORDS % ""), _bytes()), normalizer=_NFC)
_LLAMA3 = PreTokenizer((_split(_WORDS % "{1,3}"), _bytes()), ignores_merges=True, adds_bos=True)
_TEKKEN = PreTokenizer((_split(_CASED), _bytes()), ignores_merges=True, adds_bos=True)
_SMOLLM = PreTokenizer(({"type": "Digits", "individual_digits": True}, _bytes(use_regex=True)))
_DEEPSEEK3 = PreTokenizer(
    (_split(r"\p{N}{1,3}"), _split("[一-龥\u3040-\u309f\u30a0-\u30ff]+"), _split(_DEEPSEEK), _bytes()),
    adds_bos=True,
)
KNOWN: dict[str, PreTokenizer] = {
    "gpt-2": _GPT2,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "tekken": _TEKKEN,
    "smollm": _SMOLLM,
    "deepseek-v3": _DEEPSEEK3,
}
"""By name."""
