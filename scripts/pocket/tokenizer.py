"""The pocket model's tokenizer: a byte-level BPE of 1,024 tokens, and the chat template in two forms.

`CHAT_TEMPLATE` is for servers; `render` writes the same text in plain Python, in pieces marked as trained on or not.
Uses Item and the corpus's entry point, no torch or MLX.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from scripts.pocket import words
from scripts.pocket.items import Item

VOCAB_SIZE = 1024
CONTEXT = 4096
LONGEST_TOKEN = 16
"""Limit in characters (bytes, outside ASCII)."""
PAD, EOS = "<|endoftext|>", "<|im_end|>"
SPECIAL = (PAD, "<|im_start|>", EOS)
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
"""Separate tokens that belong to the text: decoding keeps them."""
_MARK = re.compile("|".join(map(re.escape, (*SPECIAL, *MARKS))))
DEFAULT_ITEMS = 30_000

_WITH_SPACE = "|".join(words.FRAME)
_WITHOUT_SPACE = "|".join((*words.CITIES, *words.COLOURS, *words.ANIMALS, *words.FOODS, *words.JOBS, *words.DAYS))
"""Values: the same token after a space and after a quote, so that copying one is copying a token."""

_PIECES = "|".join(
    [
        rf" (?:{_WITH_SPACE})(?![A-Za-z])",
        rf"(?<![A-Za-z])(?:{_WITH_SPACE}|{_WITHOUT_SPACE})(?![A-Za-z])",
        r"[A-Za-z]",  # every other word is its letters: spelled, counted, sorted and copied one by one
        r"\p{N}",
        r"\p{Han}",
        r"\p{L}+",
        r"\"[:,] [\"{\[]*",  # JSON between two strings
        r"[{\[\"]+",
        r"[}\]\"]+",
        r"\s",
        r"[^\s\p{L}\p{N}]",
    ]
)

CHAT_TEMPLATE = r"""
{%- macro turn(role, text) -%}
    {{- '<|im_start|>' + role + '\n' + text + '<|im_end|>\n' }}
{%- endmacro -%}
{%- macro calls(tool_calls) -%}
    {%- for given in tool_calls %}
        {%- set tool_call = given.function or given %}
        {%- if not loop.first %}{{- '\n' }}{%- endif %}
        {{- '<tool_call>\n{"name": ' + tool_call.name | tojson + ', "arguments": ' }}
        {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
        {{- '}\n</tool_call>' }}
    {%- endfor %}
{%- endmacro -%}
{%- set system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools %}
    {{- '<|im_start|>system\n' + (system + '\n\n' if system else '') + '# Tools\n<tools>\n' }}
    {%- for tool in tools %}
        {{- (tool.function or tool) | tojson + '\n' }}
    {%- endfor %}
    {{- '</tools><|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- turn('system', system) }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content or '' %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if '</think>' not in content %}
            {{- '<think>\n' + (message.reasoning_content or '') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content + ('\n' if content and message.tool_calls else '') }}
        {{- calls(message.tool_calls or []) + '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- turn('user', '<tool_response>\n' + content + '\n</tool_response>') }}
    {%- elif not (loop.first and message.role == 'system') %}
        {{- turn(message.role, content) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}""".lstrip("\n")

_NO_THOUGHT = "<think>\n\n</think>\n\n"


# --- text


def render(item: Item) -> list[tuple[str, bool]]:
    """Return the conversation as the chat template writes it, in pieces: (text, is trained on).

    The assistant's text is trained on, including `<|im_end|>`. Empty reasoning that `enable_thinking=False` puts into
    the prompt is not.
    """
    pieces = list(_system(item))
    for index, message in enumerate(item.messages):
        if message["role"] == "assistant":
            pieces += _assistant(message, item.enable_thinking)
        elif index > 0 or message["role"] != "system":
            pieces.append((_asked(message), False))
    return pieces


def prompt(item: Item) -> str:
    """Return the text before the model's output for the last message."""
    before = Item(skill=item.skill, messages=item.messages[:-1], tools=item.tools, enable_thinking=item.enable_thinking)
    text = "".join(text for text, _ in render(before))
    return text + "<|im_start|>assistant\n" + ("" if item.enable_thinking else _NO_THOUGHT)


def _system(item: Item) -> Iterator[tuple[str, bool]]:
    first = item.messages[0]
    system = first["content"] if first["role"] == "system" else ""
    if item.tools:
        described = "".join(_json(tool.get("function") or tool) + "\n" for tool in item.tools)
        lead = f"{system}\n\n" if system else ""
        yield _turn("system", f"{lead}# Tools\n<tools>\n{described}</tools>"), False
    elif first["role"] == "system":
        yield _turn("system", system), False


def _asked(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if message["role"] == "tool":
        return _turn("user", f"<tool_response>\n{content}\n</tool_response>")
    return _turn(message["role"], content)


def _assistant(message: Mapping[str, Any], enable_thinking: bool) -> Iterator[tuple[str, bool]]:
    content = message.get("content") or ""
    calls = "\n".join(map(_call, message.get("tool_calls") or ()))
    answer = content + ("\n" if content and calls else "") + calls
    thought = "" if "</think>" in content else f"<think>\n{message.get('reasoning_content') or ''}\n</think>\n\n"
    yield "<|im_start|>assistant\n", False
    if thought == _NO_THOUGHT and not enable_thinking:
        yield thought, False
        thought = ""
    yield thought + answer + EOS, message.get("weight", 1) != 0
    yield "\n", False


def _call(given: Mapping[str, Any]) -> str:
    call = given.get("function") or given
    arguments = call["arguments"]
    written = arguments if isinstance(arguments, str) else _json(arguments)
    return f'<tool_call>\n{{"name": {_json(call["name"])}, "arguments": {written}}}\n</tool_call>'


def _turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- tokens


def load(folder: Path) -> Tokenizer:
    """Load the tokenizer that `build` wrote."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def encode(tokenizer: Tokenizer, item: Item) -> tuple[list[int], list[bool]]:
    """Return the conversation's token ids and, of the same length, which of them are trained on.

    Every piece ends where a mark or a newline ends a token anyway: the ids are those of the joined text.
    """
    ids: list[int] = []
    trained: list[bool] = []
    for text, is_trained in render(item):
        piece = tokenizer.encode(text, add_special_tokens=False).ids
        ids += piece
        trained += [is_trained] * len(piece)
    return ids, trained


def build(folder: Path, texts: Iterable[str]) -> Tokenizer:
    """Train on `texts` and write tokenizer.json and tokenizer_config.json into `folder`."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    # The trainer would treat a mark as letters to merge.
    tokenizer.train_from_iterator((_MARK.sub("\n", text) for text in texts), _trainer())
    tokenizer = _with_plain_marks(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps(_config(), ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")
    return tokenizer


def _trainer() -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*SPECIAL, *MARKS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )


def _with_plain_marks(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer with MARKS no longer special, as the trainer makes all its special tokens."""
    state = json.loads(tokenizer.to_str())
    for added in state["added_tokens"]:
        added["special"] = added["content"] in SPECIAL
    return Tokenizer.from_str(json.dumps(state))


def _config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def main(folder: Path, count: int = DEFAULT_ITEMS) -> None:
    """Build from the first `count` items of the training corpus and print the lengths of its items."""
    from scripts.pocket import corpus

    items = list(islice(corpus.stream("train", 0), count))
    tokenizer = build(folder, (text for item in items for text, _ in render(item)))
    lengths: dict[str, list[int]] = {}
    for item in items[:3000]:
        lengths.setdefault(item.skill, []).append(len(encode(tokenizer, item)[0]))
    print(f"{folder}: {tokenizer.get_vocab_size()} tokens from {len(items)} items")
    for skill, found in sorted(lengths.items()):
        print(f"  {skill:16} {len(found):5} items, {sum(found) / len(found):7.1f} tokens each")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
