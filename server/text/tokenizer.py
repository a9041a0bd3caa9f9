"""Tokenizers: text to ids and back, behind one protocol.

Supports the Hugging Face tokenizers of MLX models, and the mock backend's bytes. The libraries are imported when a
model's tokenizer is loaded, not before: this module runs without any of them installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from mlx_backend.api.errors import ModelLoadError
from server.text.calls.forms import GENERIC
from server.text.calls.telling import describe_tools
from server.text.detokenizer import (
    CONTROL_MARK,
    ByteDetokenizer,
    Detokenizer,
    MarkingDetokenizer,
    WindowDetokenizer,
    strip_spaces,
)
from server.text.parsers import harmony
from server.text.parsers.formats import format_of
from server.text.parsers.parts import ChatFormat
from server.text.pieces import PieceScheme, scheme_of
from server.text.rendering import ChatRenderer


class Tokenizer(Protocol):
    """Text to token ids and back, for one model. Thread-safe."""

    @property
    def vocab_size(self) -> int:
        """Upper bound (exclusive) of all ids in use."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens with which the model ends its answer."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens with names that are not text."""

    @property
    def chat_format(self) -> ChatFormat:
        """The model's markup of reasoning and calls."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids without special tokens; unknown ids are skipped."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the token's own bytes, possibly part of a character; for a special token, those of its name."""

    def token_text(self, token_id: int) -> str:
        """Return the token decoded alone; for a special token, its name."""

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Return the conversation as prompt text, up to where its answer begins. Raises what the template raises."""

    def detokenizer(self, markup: tuple[str, ...] = ()) -> Detokenizer:
        """Return a new detokenizer for one sequence. Special tokens that occur in a string of `markup` become text.

        With `CONTROL_MARK` in `markup`, so do the names of all others, each between two such marks.
        """


def load_tokenizer(model_path: Path, *, needs_config: bool = True) -> Tokenizer:
    """Load the tokenizer from a model's folder. Raises ModelLoadError.

    `needs_config`: the folder must hold a complete model, with a `config.json` that lists the end tokens.
    """
    if not model_path.is_dir():
        raise ModelLoadError(f"there is no model folder {model_path}; give the folder of an MLX model")
    try:
        from mlx_lm import utils

        load: Any = utils.load_tokenizer  # untyped there
    except ImportError as error:
        raise ModelLoadError(f"the tokenizer needs mlx-lm, which cannot be imported ({error}); install it") from error
    try:
        has_config = needs_config or (model_path / "config.json").exists()
        config = utils.load_config(model_path) if has_config else {}
        # Code that comes with a checkpoint is never run.
        extra = {"trust_remote_code": False}
        extra |= _template_beside(model_path)
        return HFTokenizer(load(model_path, extra, eos_token_ids=config.get("eos_token_id")))
    except Exception as error:
        # The libraries raise anything for a broken file, including bare Exception.
        raise ModelLoadError(_load_failure(model_path, error)) from error


def _template_beside(folder: Path) -> dict[str, Any]:
    """Return the template of `chat_template.json`, as processors store it, unless the tokenizer has its own."""
    file, settings = folder / "chat_template.json", folder / "tokenizer_config.json"
    has_own = (folder / "chat_template.jinja").exists() or (
        settings.exists() and json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    )
    if has_own or not file.exists():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    template = found["chat_template"]
    if not isinstance(template, str | list | dict):
        raise ValueError(f"{file.name} has a chat_template that is none")
    return {"chat_template": template}


def _load_failure(model_path: Path, error: Exception) -> str:
    if not (model_path / "config.json").exists():
        return f"{model_path} has no config.json; give the folder of an MLX model"
    if "trust_remote_code" in str(error):
        return f"the tokenizer in {model_path} is code, which is not run; take a model with a tokenizer.json"
    cause = " ".join(f"{type(error).__name__}: {error}".split())
    return f"the tokenizer in {model_path} cannot be loaded, fetch the model's files again ({cause[:200]})"


def _well_formed(text: str) -> str:
    """Return `text` with U+FFFD for lone surrogates, which JSON can carry and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class HFTokenizer:
    """A Hugging Face tokenizer as wrapped by mlx-lm, with mlx-lm's end tokens and templates."""

    def __init__(self, wrapper: Any) -> None:
        self._wrapper = wrapper
        self._scheme = _scheme_of(wrapper)
        self.special_ids = _special_ids(wrapper)
        # filled on demand; a race writes the same value twice
        self._bytes: dict[int, bytes] = {}
        self._left_out: dict[tuple[str, ...], frozenset[int]] = {(): self.special_ids}
        self.chat_format = format_of(wrapper)
        self._renderer = ChatRenderer(wrapper, self.chat_format)
        self._bos_id, self._bos_name = wrapper.bos_token_id, str(wrapper.bos_token)
        self.vocab_size = 1 + max(wrapper.get_vocab().values())
        self.eos_ids = frozenset(int(token_id) for token_id in wrapper.eos_token_ids)
        if self.chat_format.is_harmony:  # a checkpoint may name only one of them
            self.eos_ids |= {wrapper.get_vocab()[name] for name in (harmony.CALL, harmony.RETURN)}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = list(self._wrapper.encode(_well_formed(text), add_special_tokens=add_special_tokens))
        begins_twice = add_special_tokens and self._bos_id is not None and ids[:2] == [self._bos_id] * 2
        return ids[1:] if begins_twice and text.startswith(self._bos_name) else ids

    def decode(self, ids: Sequence[int]) -> str:
        if self._scheme is None or not self._scheme.is_exact:
            return self._library_text(ids)
        text = b"".join(map(self._output_bytes, ids)).decode("utf-8", "replace")
        return strip_spaces(text, self._scheme.strip)

    def token_bytes(self, token_id: int) -> bytes:
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._piece_bytes(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        return self._renderer.render(messages, template_kwargs, tools)

    def detokenizer(self, markup: tuple[str, ...] = ()) -> Detokenizer:
        left_out = self._left_out_for(markup)
        plain: Detokenizer
        if self._scheme is None or not self._scheme.is_exact:
            plain = WindowDetokenizer(partial(self._library_text, left_out=left_out), left_out)
        else:
            plain = ByteDetokenizer(partial(self._output_bytes, left_out=left_out), self._scheme.strip)
        return MarkingDetokenizer(plain, left_out, self.token_text) if CONTROL_MARK in markup else plain

    def _left_out_for(self, markup: tuple[str, ...]) -> frozenset[int]:
        """Return the special tokens that are not text, given the strings of `markup`."""
        known = self._left_out.get(markup)
        if known is None:
            names = {token_id: self.token_text(token_id) for token_id in self.special_ids}
            kept = (token_id for token_id, name in names.items() if not any(name in string for string in markup))
            known = self._left_out[markup] = frozenset(kept)
        return known

    def _output_bytes(self, token_id: int, left_out: Set[int] | None = None) -> bytes:
        return b"" if token_id in (self.special_ids if left_out is None else left_out) else self.token_bytes(token_id)

    def _library_text(self, ids: Sequence[int], left_out: Set[int] | None = None) -> str:
        left_out = self.special_ids if left_out is None else left_out
        shown = [token_id for token_id in ids if token_id not in left_out and token_id < self.vocab_size]
        # Tidying spaces before punctuation would change text that has already been emitted.
        return str(self._wrapper.decode(shown, clean_up_tokenization_spaces=False))

    def _piece_bytes(self, token_id: int) -> bytes:
        piece = self._wrapper.convert_ids_to_tokens(token_id) if 0 <= token_id < self.vocab_size else None
        if piece is None:
            return b""
        if token_id in self.special_ids:
            return str(piece).encode()
        if self._scheme is None:
            return self._library_text([token_id]).encode()
        return self._scheme.to_bytes(str(piece))


def _scheme_of(wrapper: Any) -> PieceScheme | None:
    """Return the scheme of a tokenizer that decodes as its Rust backend does; None for a custom `decode`."""
    from transformers import PreTrainedTokenizerBase

    decoder = getattr(getattr(wrapper, "backend_tokenizer", None), "decoder", None)
    if decoder is None or wrapper.decode.__func__ is not PreTrainedTokenizerBase.decode:
        return None
    return scheme_of(json.loads(decoder.__getstate__()))


def _special_ids(wrapper: Any) -> frozenset[int]:
    """Return the ids omitted from text: those marked special, a set that may lack some roles (bos, eos, ...)."""
    if getattr(wrapper, "backend_tokenizer", None) is None:
        return frozenset(wrapper.all_special_ids)
    return frozenset(token_id for token_id, token in wrapper.added_tokens_decoder.items() if token.special)


class ByteTokenizer:
    """Tokenizer of the mock backend: an id below 256 is a byte of UTF-8 text, the four after it are special tokens."""

    EOS_ID = 256
    BOS_ID = 257
    _NAMES = ("<eos>", "<bos>", "<pad>", "<unk>")

    vocab_size = 260
    eos_ids = frozenset({EOS_ID})
    special_ids = frozenset(range(EOS_ID, 260))
    chat_format = ChatFormat(calls=GENERIC, tells_tools="prompt")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids = list(_well_formed(text).encode())
        return [self.BOS_ID, *ids] if add_special_tokens else ids

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self._output_bytes, ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < 256:
            return bytes([token_id])
        return self._NAMES[token_id - 256].encode() if token_id < self.vocab_size else b""

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        template_kwargs: Mapping[str, Any],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        if not messages:
            raise ValueError("a conversation needs at least one message")
        told = f"{describe_tools(GENERIC, tools)}\n" if tools else ""
        opening = "assistant:" if template_kwargs.get("add_generation_prompt", True) else ""
        said = "".join(f"{message['role']}: {message.get('content') or ''}\n" for message in messages)
        return told + said + opening

    def detokenizer(self, markup: tuple[str, ...] = ()) -> Detokenizer:
        return ByteDetokenizer(self._output_bytes)

    def _output_bytes(self, token_id: int) -> bytes:
        return self.token_bytes(token_id) if token_id < 256 else b""
