"""Read samples to measure a model on: plain text, or conversations as JSON lines, as the model's tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_backend.conversion.entry import ConversionError, Sample, cut

if TYPE_CHECKING:
    from server.text.tokenizer import Tokenizer

_MOST_CHARACTERS = 1 << 22
_MOST_TOKENS = 1024
"""Longer conversations are skipped."""


def read_samples(folder: Path, file: str) -> tuple[Sample, ...]:
    """Return a file's samples, by the tokenizer of the model in a folder. Raises ConversionError, ModelLoadError.

    A text is cut into sequences. A `.jsonl` file has one conversation per line, `{"messages": [...]}` with optional
    `tools` and `chat_template_kwargs`. The last message is the assistant's; only its tokens are predicted.
    """
    from server.text.tokenizer import load_tokenizer

    try:
        with Path(file).expanduser().open(encoding="utf-8") as stream:
            text = stream.read(_MOST_CHARACTERS)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConversionError(f"{file} cannot be read as a text ({reason})") from None
    tokenizer = load_tokenizer(folder)
    if not file.endswith(".jsonl"):
        found = cut(tokenizer.encode(text, add_special_tokens=True))
    else:
        lines = text.split("\n")[: -1 if len(text) == _MOST_CHARACTERS else None]
        found = tuple(_conversations(tokenizer, file, lines))
    if not found:
        raise ConversionError(f"{file} has no two tokens; give a longer text")
    return found


def _conversations(tokenizer: Tokenizer, file: str, lines: list[str]) -> Iterator[Sample]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            options = document.get("chat_template_kwargs") or {}
            sample = _sample(tokenizer, document["messages"], document.get("tools") or (), options)
        except Exception as error:  # noqa: BLE001 - a chat template may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ConversionError(
                f'{file}, line {number}: no conversation that the model takes ({reason}); write {{"messages": [...]}}'
            ) from None
        if len(sample.ids) <= _MOST_TOKENS:
            yield sample


def _sample(tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: Any, options: Mapping[str, Any]) -> Sample:
    if messages[-1]["role"] != "assistant":
        raise ValueError("the last message is not the assistant's")
    prompt = tokenizer.render_chat(messages[:-1], options, tools)
    whole = tokenizer.render_chat(messages, {**options, "add_generation_prompt": False}, tools)
    if not whole.startswith(prompt):  # the template changes earlier messages
        ids = tokenizer.encode(whole, add_special_tokens=False)
        return Sample(tuple(ids))
    asked = tokenizer.encode(prompt, add_special_tokens=False)
    answer = tokenizer.encode(whole[len(prompt) :], add_special_tokens=False)
    # a model never generates what the template writes after an answer's end
    ends = [place for place, token_id in enumerate(answer, 1) if token_id in tokenizer.eos_ids]
    answer = answer[: ends[-1]] if ends else answer
    return Sample((*asked, *answer), len(asked))
