"""Patterns by which byte-level tokenizers split a text before merging, by their names in GGUF files.

A GGUF file contains only the name. The patterns are those of the models' own tokenizers.
"""

from __future__ import annotations

import re
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

_CASED_LETTERS = """
    0041-005A 0061-007A 00B5 00C0-00D6 00D8-00F6 00F8-01BA 01BC-01BF 01C4-0293 0295-02AF 0370-0373 0376-0377 037B-037D
    037F 0386 0388-038A 038C 038E-03A1 03A3-03F5 03F7-0481 048A-052F 0531-0556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA
    1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D
    1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113
    2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4
    2CEB-2CEE 2CF2-2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A
    FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
"""Cased letters in the tokenizer of DeepSeek LLM and V2: the first and the last of each range."""
_PUNCTUATION = "0021-002F 003A-007E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002"
"""Punctuation in the same tokenizer, ASCII letters included: they split a word with other letters."""
_CHINESE = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


def _one_of(ranges: str) -> str:
    """Return a character class of these code points."""
    ends = (each.split("-") for each in ranges.split())
    return "[" + "".join("-".join(re.escape(chr(int(end, 16))) for end in each) for each in ends) + "]"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One way to split a text."""

    steps: tuple[dict[str, Any], ...]
    normalizer: dict[str, Any] | None = None
    ignores_merges: bool = False
    """Whether a piece that is a whole token is used as it is."""
    adds_bos: bool = False
    """Default if the file does not specify it."""


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(*, use_regex: bool = False) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_NFC = {"type": "NFC"}
_GPT2 = PreTokenizer((_bytes(use_regex=True),))
_QWEN2 = PreTokenizer((_split(_WORDS % ""), _bytes()), normalizer=_NFC)
_LLAMA3 = PreTokenizer((_split(_WORDS % "{1,3}"), _bytes()), ignores_merges=True, adds_bos=True)
_SMAUG = PreTokenizer(_LLAMA3.steps)
_TEKKEN = PreTokenizer((_split(_CASED), _bytes()), ignores_merges=True, adds_bos=True)
_DIGITS = {"type": "Digits", "individual_digits": True}
_SMOLLM = PreTokenizer((_DIGITS, _bytes(use_regex=True)))
_DEEPSEEK3 = PreTokenizer(
    (_split(r"\p{N}{1,3}"), _split("[一-龥\u3040-\u309f\u30a0-\u30ff]+"), _split(_DEEPSEEK), _bytes()),
    adds_bos=True,
)
_DEEPSEEK_LLM = PreTokenizer(
    (
        _split(r"[\r\n]"),
        _split(rf"\s?{_one_of(_CASED_LETTERS)}+"),
        _split(rf"\s?{_one_of(_PUNCTUATION)}+"),
        _split(r"\s+$"),
        _split(_CHINESE),
        _DIGITS,
        _bytes(),
    ),
    adds_bos=True,
)
_DEEPSEEK_CODER = PreTokenizer(
    (_split(r"[\r\n]"), _split(r"\s?\p{L}+"), _split(r"\s?\p{P}+"), _split(_CHINESE), _DIGITS, _bytes()),
    adds_bos=True,
)
KNOWN: dict[str, PreTokenizer] = {
    "gpt-2": _GPT2,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "smaug-bpe": _SMAUG,
    "megrez": _QWEN2,
    "tekken": _TEKKEN,
    "smollm": _SMOLLM,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-v3": _DEEPSEEK3,
}
"""Pre-tokenizers by name."""
