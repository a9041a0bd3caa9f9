"""Build a tokenizer from a GGUF file's metadata: tokenizer.json, tokenizer_config.json and the end tokens.

Byte-level BPE, and SentencePiece with merges. The output is for the tokenizers library, which is not imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from server.importing.metadata import Metadata
from server.importing.pre_tokenizers import KNOWN
from server.importing.problems import CannotImport

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4
_SPACE = "\u2581"
_ENDS = frozenset(
    {
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>"),
        *("<end_of_turn>", "<|endofturn|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    }
)
"""Control tokens that end an answer even if the file does not list them as such."""
_MOST_CHARS = 256
"""Most characters of a merged token: longer ones are slow to split, and SentencePiece makes none."""
_ADVICE = "give the folder of the original model's tokenizer: --tokenizer FOLDER"


@dataclass(frozen=True, slots=True)
class _Vocabulary:
    tokens: Sequence[str]
    kinds: Sequence[int]

    def ids(self, kind: int) -> list[int]:
        return [place for place, each in enumerate(self.kinds) if each == kind]

    def name(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.tokens[token_id]


def make(metadata: Metadata, num_embeddings: int) -> dict[str, Any]:
    """Return the content of tokenizer.json. Raises CannotImport."""
    vocabulary = _vocabulary(metadata, num_embeddings)
    kind = metadata.text("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer, adds_bos = _byte_level(metadata, vocabulary)
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece(metadata, vocabulary)
    else:
        raise CannotImport(
            f"the file's tokenizer is of the kind {kind[:40]!r}, and gpt2 and llama are known; {_ADVICE}"
        )
    bos = _token(metadata, "bos_token_id", vocabulary)
    if metadata.flag("tokenizer.ggml.add_bos_token", adds_bos) and bos is not None:
        tokenizer["post_processor"] = _beginning(vocabulary.tokens[bos], bos)
    tokenizer["added_tokens"] = list(_added(vocabulary))
    return tokenizer


def tokens_of(metadata: Metadata) -> list[str]:
    """Return the texts of the tokens, by id. Raises CannotImport."""
    tokens: list[str] = metadata.items("tokenizer.ggml.tokens", str)
    return tokens


def end_ids(metadata: Metadata) -> list[int]:
    """Return the tokens that end an answer; the file's own first. Raises CannotImport."""
    tokens = tokens_of(metadata)
    kinds = metadata.items("tokenizer.ggml.token_type", int, [1] * len(tokens))
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    own = [metadata.whole(f"tokenizer.ggml.{name}", None, least=0) for name in names]
    named = [place for place, token in enumerate(tokens) if token in _ENDS and kinds[place : place + 1] == [_CONTROL]]
    return list(dict.fromkeys(place for place in (*own, *named) if place is not None and place < len(tokens)))


def chat_template(metadata: Metadata) -> str | None:
    """Return the file's own chat template."""
    template: str | None = metadata.text("tokenizer.chat_template", None)
    return template


def _vocabulary(metadata: Metadata, num_embeddings: int) -> _Vocabulary:
    tokens = tokens_of(metadata)
    kinds = metadata.items("tokenizer.ggml.token_type", int, [1] * len(tokens))
    if not tokens or len(tokens) > num_embeddings or len(kinds) != len(tokens):
        raise CannotImport(
            f"the file has {len(tokens)} tokens and {len(kinds)} kinds of tokens for {num_embeddings} embeddings"
        )
    return _Vocabulary(tokens, kinds)


def _byte_level(metadata: Metadata, vocabulary: _Vocabulary) -> tuple[dict[str, Any], bool]:
    name = metadata.text("tokenizer.ggml.pre", "gpt-2")
    if name not in KNOWN:
        message = f"the file's tokenizer splits texts as {name[:40]!r}, which is not known ({', '.join(KNOWN)} are)"
        raise CannotImport(f"{message}; {_ADVICE}")
    pre = KNOWN[name]
    merges = [merge.split(" ", 1) for merge in metadata.items("tokenizer.ggml.merges", str)]
    ids = _ids(vocabulary)
    bad = next((merge for merge in merges if len(merge) != 2 or not {*merge, "".join(merge)} <= ids.keys()), None)
    if bad is not None:
        raise CannotImport(
            f"the file's tokenizer merges {' '.join(bad)[:60]!r}, of which not all are tokens; {_ADVICE}"
        )
    model = {"type": "BPE", "vocab": ids, "merges": merges, "ignore_merges": pre.ignores_merges}
    parts = {
        "normalizer": pre.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre.steps)},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    }
    return _whole({**_NO_OPTIONS, **model}, **parts), pre.adds_bos


def _sentencepiece(metadata: Metadata, vocabulary: _Vocabulary) -> tuple[dict[str, Any], bool]:
    scores = metadata.items("tokenizer.ggml.scores", float)
    if len(scores) != len(vocabulary.tokens):
        message = f"the file has {len(scores)} scores for {len(vocabulary.tokens)} tokens"
        raise CannotImport(f"{message}; {_ADVICE}")
    unknown = _token(metadata, "unknown_token_id", vocabulary)
    unknown = next(iter(vocabulary.ids(_UNKNOWN)), None) if unknown is None else unknown
    model = {
        "type": "BPE",
        "vocab": _ids(vocabulary),
        "merges": _merges(vocabulary, scores),
        "unk_token": vocabulary.name(unknown),
        "fuse_unk": True,
        "byte_fallback": True,
    }
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    steps = [replaced]
    if metadata.flag("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, {"type": "Prepend", "prepend": _SPACE})
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if len(steps) == 2:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    parts = {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "decoder": {"type": "Sequence", "decoders": decoders},
    }
    return _whole({**_NO_OPTIONS, **model}, **parts), True


def _merges(vocabulary: _Vocabulary, scores: Sequence[float]) -> list[list[str]]:
    """Return the pairs of tokens that merge into a token, best score first."""
    scored = {token: scores[place] for place, token in enumerate(vocabulary.tokens) if vocabulary.kinds[place] == 1}
    ids = _ids(vocabulary)
    found = [
        (-score, ids[token], cut, token)
        for token, score in scored.items()
        if len(token) <= _MOST_CHARS
        for cut in range(1, len(token))
        if token[:cut] in scored and token[cut:] in scored
    ]
    return [[token[:cut], token[cut:]] for _, _, cut, token in sorted(found)]


_NO_OPTIONS: dict[str, Any] = {
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def _whole(model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": None,
    }
    return {"version": "1.0", **empty, "post_processor": None, "decoder": None, **parts, "model": model}


def _ids(vocabulary: _Vocabulary) -> dict[str, int]:
    """Return ids by token; the first of equal tokens."""
    ids: dict[str, int] = {}
    for place, token in enumerate(vocabulary.tokens):
        ids.setdefault(token, place)
    return ids


def _added(vocabulary: _Vocabulary) -> Iterator[dict[str, Any]]:
    """Yield the tokens that are matched in a text before it is split."""
    for place, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token:
            options = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
            yield {"id": place, "content": token, **options, "special": kind != _USER_DEFINED}


def _beginning(name: str, token_id: int) -> dict[str, Any]:
    first = {"SpecialToken": {"id": name, "type_id": 0}}
    texts = [{"Sequence": {"id": each, "type_id": place}} for place, each in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [first, texts[0]],
        "pair": [first, texts[0], {"SpecialToken": {"id": name, "type_id": 1}}, texts[1]],
        "special_tokens": {name: {"id": name, "ids": [token_id], "tokens": [name]}},
    }


def settings(metadata: Metadata, num_embeddings: int) -> dict[str, Any]:
    """Return the content of tokenizer_config.json. Raises CannotImport."""
    vocabulary = _vocabulary(metadata, num_embeddings)
    found: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.whole(".context_length"),
    }
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        name = vocabulary.name(_token(metadata, f"{key}_token_id", vocabulary))
        if name is not None:
            found[f"{role}_token"] = name
    template = chat_template(metadata)
    if template is not None:
        found["chat_template"] = template
    return found


def _token(metadata: Metadata, key: str, vocabulary: _Vocabulary) -> int | None:
    """Return the id of a token with a role. Raises CannotImport if the vocabulary lacks it."""
    found: int | None = metadata.whole(f"tokenizer.ggml.{key}", None, least=0)
    if found is not None and found >= len(vocabulary.tokens):
        raise CannotImport(f"the file's tokenizer.ggml.{key} is {found}; it has {len(vocabulary.tokens)} tokens")
    return found
