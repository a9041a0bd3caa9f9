"""Bytes of a vocabulary's token strings, by the type of its decoder.

Supports the two spellings of bytes in common use (byte-level BPE, and sentencepiece with byte fallback), detected from
the decoder's own description. Independent of ids, text and libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_SPACE = "\u2581"  # sentencepiece's visible space


@dataclass(frozen=True, slots=True)
class PieceScheme:
    """Conversion of a token string to bytes.

    `is_exact`: the text of a sequence is the UTF-8 of its tokens' bytes, joined, less `strip` leading spaces. Otherwise
    the bytes describe a token alone, and only the decoder itself yields the text of a sequence.
    """

    to_bytes: Callable[[str], bytes]
    is_exact: bool
    strip: int = 0


def scheme_of(decoder: Mapping[str, Any]) -> PieceScheme | None:
    """Return the scheme of a decoder as described in tokenizer.json; None for an unsupported spelling of bytes."""
    steps = list(decoder["decoders"]) if decoder.get("type") == "Sequence" else [decoder]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return PieceScheme(byte_level_bytes, is_exact=True)
    if not any(_writes_spaces(step) for step in steps):
        return None
    to_bytes = byte_fallback_bytes if "ByteFallback" in kinds else spaced_bytes
    is_exact = kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"])
    strip = 0
    if is_exact and len(steps) == 4:
        strip = steps[3]["start"]
        is_exact = steps[3]["content"] == " " and steps[3]["stop"] == 0
    return PieceScheme(to_bytes, is_exact, strip)


def _writes_spaces(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Metaspace":
        return bool(step["replacement"] == _SPACE)
    return step.get("type") == "Replace" and step["pattern"] == {"String": _SPACE} and step["content"] == " "


def _byte_alphabet() -> dict[str, int]:
    """Return byte-level BPE's alphabet: printable bytes as Latin-1 characters, the others as U+0100 up, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_ALPHABET = _byte_alphabet()


def byte_level_bytes(piece: str) -> bytes:
    """Return the bytes of a byte-level token; a token with a character outside the alphabet stands for its own text."""
    try:
        return bytes([_BYTE_ALPHABET[character] for character in piece])
    except KeyError:
        return piece.encode()


def spaced_bytes(piece: str) -> bytes:
    """Return the bytes of a sentencepiece token."""
    return piece.replace(_SPACE, " ").encode()


_FALLBACK_BYTES = {form.format(byte): bytes([byte]) for byte in range(256) for form in ("<0x{:02X}>", "<0x{:02x}>")}


def byte_fallback_bytes(piece: str) -> bytes:
    """Return the bytes of a sentencepiece token, where `<0xNN>` is the single byte NN."""
    return _FALLBACK_BYTES.get(piece) or spaced_bytes(piece)
