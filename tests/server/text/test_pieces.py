"""The bytes that token strings stand for, against what the decoders of the `tokenizers` library make of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, pre_tokenizers

from server.text.pieces import byte_fallback_bytes, byte_level_bytes, scheme_of, spaced_bytes

_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_SPACE = "\u2581"


def _description(decoder: Any) -> Any:
    return json.loads(decoder.__getstate__())


@given(st.lists(st.text(st.sampled_from(_ALPHABET) | st.characters(exclude_categories=["Cs"]), max_size=4)))
def test_byte_level_pieces_mean_what_the_library_makes_of_them(pieces):
    text = b"".join(map(byte_level_bytes, pieces)).decode("utf-8", "replace")
    assert text == decoders.ByteLevel().decode(pieces)


def test_every_byte_has_a_byte_level_character():
    assert {byte_level_bytes(character) for character in _ALPHABET} == {bytes([byte]) for byte in range(256)}


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("<0x0A>", b"\n"),
        ("<0xe4>", b"\xe4"),
        ("<0x00>", b"\0"),
        ("<0xZZ>", b"<0xZZ>"),
        ("<0x  >", b"<0x  >"),
        ("\u2581the\u2581", b" the "),
        ("好", "好".encode()),
    ],
)
def test_byte_fallback_pieces(piece, expected):
    assert byte_fallback_bytes(piece) == expected


def test_without_fallback_a_byte_token_is_its_own_text():
    assert spaced_bytes("\u2581<0x0A>") == b" <0x0A>"


_SPACES, _BYTES, _FUSE = decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()


@pytest.mark.parametrize(
    ("decoder", "to_bytes", "is_exact", "strip"),
    [
        (decoders.ByteLevel(), byte_level_bytes, True, 0),
        (decoders.Sequence([decoders.ByteLevel()]), byte_level_bytes, True, 0),
        (decoders.Sequence([_SPACES, _BYTES, _FUSE]), byte_fallback_bytes, True, 0),
        (decoders.Sequence([_SPACES, _BYTES, _FUSE, decoders.Strip(" ", 1, 0)]), byte_fallback_bytes, True, 1),
        (decoders.Sequence([_SPACES, _BYTES, _FUSE, decoders.Strip(" ", 1, 1)]), byte_fallback_bytes, False, 1),
        (decoders.Sequence([_SPACES, _FUSE]), spaced_bytes, False, 0),
        (decoders.Metaspace(), spaced_bytes, False, 0),
        (decoders.Sequence([decoders.Metaspace(), _BYTES]), byte_fallback_bytes, False, 0),
    ],
)
def test_schemes_are_read_from_the_decoder(decoder, to_bytes, is_exact, strip):
    scheme = scheme_of(_description(decoder))
    assert scheme is not None
    assert (scheme.to_bytes, scheme.is_exact, scheme.strip) == (to_bytes, is_exact, strip)


@pytest.mark.parametrize("decoder", [decoders.WordPiece(), decoders.BPEDecoder(), decoders.Replace("a", " ")])
def test_other_decoders_have_no_scheme(decoder):
    assert scheme_of(_description(decoder)) is None
