"""Tokenizers out of a file's metadata: byte-level ones and SentencePiece's, and the folder that is given instead."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from server.importing import pre_tokenizers, tokenizer
from server.importing.metadata import Metadata
from server.importing.problems import CannotImport
from server.importing.tokenizer_folder import read_folder
from tests.gguf_models import tokenizer_metadata
from tests.tiny_tokenizer import SENTENCES, write_tiny_tokenizer

TEXTS = (*SENTENCES, "x<|im_end|>y<think> z", "  two  spaces\n\n", "12345 don't DON'T", "")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_tokenizer(tmp_path_factory.mktemp("original"))


def metadata(original: Path, **changes: Any) -> dict[str, Any]:
    values = {"general.architecture": "llama", "llama.context_length": 2048, **tokenizer_metadata(original)}
    return {**values, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}


def made(values: Mapping[str, Any], num_embeddings: int = 1000) -> dict[str, Any]:
    return tokenizer.make(Metadata(values), num_embeddings)


def library(found: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(found))


@settings(max_examples=25, deadline=None)
@given(st.one_of(st.sampled_from(TEXTS), st.text(max_size=30)))
def test_a_byte_level_tokenizer_is_the_original_again(original: Path, text: str) -> None:
    wanted = Tokenizer.from_file(str(original / "tokenizer.json"))
    found = library(made(metadata(original)))
    encoded = found.encode(text)
    assert encoded.ids == wanted.encode(text).ids
    assert found.decode(encoded.ids, skip_special_tokens=False) == wanted.decode(encoded.ids, skip_special_tokens=False)


def test_the_settings_name_the_roles_and_the_template(original: Path) -> None:
    values = metadata(original, bos_token_id=0, padding_token_id=0, add_bos_token=True)
    found = tokenizer.settings(Metadata(values), 1000)
    assert found["bos_token"] == found["pad_token"] == "<|endoftext|>"
    assert found["eos_token"] == "<|im_end|>"
    assert found["chat_template"].startswith("{% for m in messages %}")
    assert library(made(values)).encode("a").ids[0] == 0
    assert tokenizer.end_ids(Metadata(values)) == [2, 0]


@pytest.mark.parametrize("name", pre_tokenizers.KNOWN)
def test_every_way_to_split_is_one_that_the_library_reads(original: Path, name: str) -> None:
    found = library(made(metadata(original, pre=name)))
    for text in TEXTS:
        again = found.decode(found.encode(text).ids, skip_special_tokens=False)
        assert normalize("NFC", again) == normalize("NFC", text)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("qwen2", ["I", "'ve", "Ġ", "1", "2", "3", "4", "Ġdogs", "!?ĊĊ", "Ġ", "Ġok"]),
        ("llama-bpe", ["I", "'ve", "Ġ", "123", "4", "Ġdogs", "!?ĊĊ", "Ġ", "Ġok"]),
        ("deepseek-v3", ["I", "'ve", "Ġ", "123", "4", "Ġdogs", "!?ĊĊ", "Ġ", "Ġok"]),
        ("tekken", ["I", "'ve", "Ġ", "1", "2", "3", "4", "Ġdogs", "!?ĊĊ", "Ġ", "Ġok"]),
        ("smollm", ["I", "'ve", "Ġ", "1", "2", "3", "4", "Ġdogs", "!?", "ĊĊĠ", "Ġok"]),
        ("deepseek-llm", ["I", "'", "ve", "Ġ", "1", "2", "3", "4", "Ġdogs", "!?", "Ċ", "Ċ", "Ġ", "Ġok"]),
        ("deepseek-coder", ["I", "'", "ve", "Ġ", "1", "2", "3", "4", "Ġdogs", "!?", "Ċ", "Ċ", "Ġ", "Ġok"]),
        ("gpt-2", ["I", "'ve", "Ġ1234", "Ġdogs", "!?", "ĊĊĠ", "Ġok"]),
    ],
)
def test_numbers_and_contractions_are_split_as_the_models_have_it(original: Path, name: str, pieces: list[str]) -> None:
    steps = library(made(metadata(original, pre=name))).pre_tokenizer
    assert steps is not None
    assert [piece for piece, _ in steps.pre_tokenize_str("I've 1234 dogs!?\n\n  ok")] == pieces


def sentencepiece() -> dict[str, Any]:
    """Tokens with scores: the better is merged first."""
    words = {"▁": -9.0, "h": -8.0, "i": -8.1, "t": -8.2, "e": -8.3, "hi": -2.0, "th": -1.0, "he": -1.5, "the": -3.0}
    words |= {"▁the": -4.0, "▁hi": -4.5}
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return {
        "general.architecture": "llama",
        "llama.context_length": 2048,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.scores": [0.0] * 259 + list(words.values()),
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(words),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def test_pieces_with_scores_are_merged_best_first() -> None:
    found = library(made(sentencepiece()))
    assert found.encode("the hi").tokens == ["<s>", "▁the", "▁hi"]
    assert found.encode("he", add_special_tokens=False).tokens == ["▁", "he"]
    assert found.encode("é</s>").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>", "</s>"]
    assert found.decode(found.encode("the hi é").ids) == "the hi é"


def test_a_file_may_leave_out_the_space_before_the_first_word() -> None:
    found = library(made({**sentencepiece(), "tokenizer.ggml.add_space_prefix": False}))
    assert found.encode("he", add_special_tokens=False).tokens == ["he"]
    assert found.decode(found.encode(" he").ids) == " he"


def test_a_token_of_many_letters_takes_no_time() -> None:
    values = sentencepiece()
    for key, value in (("tokens", "t" * 100_000), ("scores", 0.0), ("token_type", 1)):
        values[f"tokenizer.ggml.{key}"] = [*values[f"tokenizer.ggml.{key}"], value]
    assert len(made(values)["model"]["merges"]) == 7


def test_merges_are_those_of_the_library_with_the_same_scores() -> None:
    values = sentencepiece()
    tokens = values["tokenizer.ggml.tokens"]
    ids = {token: place for place, token in enumerate(tokens)}
    merges = [("t", "h"), ("h", "e"), ("h", "i"), ("t", "he"), ("th", "e"), ("▁", "the"), ("▁", "hi")]
    wanted = Tokenizer(models.BPE(ids, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    wanted.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    wanted.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    found = library(made(values))
    for text in ("the the hi", "tthheei", "hithe", "üthe", "ihe hte"):
        assert found.encode(text, add_special_tokens=False).ids == wanted.encode(text).ids


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "rwkv"}, "is of the kind 'rwkv', and gpt2 and llama are known; give the folder"),
        ({"pre": "whatever"}, "splits texts as 'whatever', which is not known (gpt-2, qwen2"),
        ({"tokens": []}, "has 0 tokens"),
        ({"tokens": ["a"]}, "has 1 tokens and"),
        ({"token_type": [1]}, "1 kinds of tokens"),
        ({"tokens": "abc"}, "tokenizer.ggml.tokens is 'abc', not a list of str"),
        ({"merges": ["a b c"]}, "merges 'a b c', of which not all are tokens"),
        ({"merges": ["ab"]}, "merges 'ab', of which not all are tokens"),
        ({"bos_token_id": 99999}, "tokenizer.ggml.bos_token_id is 99999; it has"),
    ],
)
def test_a_broken_tokenizer_is_refused_in_a_line(original: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CannotImport) as caught:
        made(metadata(original, **changes))
    assert says in str(caught.value)
    with pytest.raises(CannotImport, match="has 441 tokens and 441 kinds of tokens for 99 embeddings"):
        made(metadata(original), 99)


def test_a_folder_is_taken_where_its_tokens_are_the_files(tmp_path: Path, original: Path) -> None:
    tokens = tokenizer.tokens_of(Metadata(metadata(original)))
    (original / "chat_template.jinja").write_text("{{ messages }}")
    files = read_folder(original, tokens)
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert files["tokenizer.json"] == (original / "tokenizer.json").read_bytes()
    other = [*tokens[:7], "other", *tokens[8:]]
    with pytest.raises(CannotImport, match=r"token 7 is .* there and 'other' in the file \(1 differ"):
        read_folder(original, other)
    with pytest.raises(CannotImport, match=r"has no tokenizer\.json"):
        read_folder(tmp_path, tokens)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(CannotImport, match="cannot be read as a tokenizer"):
        read_folder(tmp_path, tokens)
