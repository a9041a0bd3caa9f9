"""Tiny tokenizers, written into a folder as in a checkpoint: one for each spelling of bytes."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog says hello to the world.",
    "你好世界。今天的天气很好、我们去公园散步。",
    "Emoji come in families: 👩‍👩‍👧 and flags: 🇩🇪, and 😀 alone.",
    "Combining characters: e\u0301 n\u0303 a\u0308, Devanagari नमस्ते.",
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN_ADDED_TOKENS = ("<think>", "「工具」", "é")
"""Added, but not special: they are text of the answer."""

HARMONY_TOKENS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
HARMONY_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}"
    "{% if m.role == 'assistant' %}"
    "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant{% endif %}"
    "<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
"""As in gpt-oss."""

DEEPSEEK_TOKENS = (
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
)  # fmt: skip
DEEPSEEK_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}<｜User｜>{{ m.content }}"
    "{% elif m.role == 'tool' %}<result>{{ m.content }}</result>"
    "{% elif m.content is none %}<｜Assistant｜><｜tool▁calls▁begin｜>{% for call in m.tool_calls %}"
    "{{ '<｜tool▁call▁begin｜>' + call.type + '<｜tool▁sep｜>' + call.function.name + '\n```json\n' }}"
    "{{ call.function.arguments + '\n```<｜tool▁call▁end｜>' }}{% endfor %}<｜tool▁calls▁end｜>"
    "{% else %}{{ '<｜Assistant｜>' + m.content + '<｜end｜>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)
"""As in R1: calls are written without content, their arguments as text; the offered tools are not written."""

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] in ('tool', 'critic') %}{{ raise_exception('this model knows no ' + m['role']) }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opening | default('') }}{% endif %}"
)


def write_tiny_tokenizer(folder: Path, kind: str = "byte_level", chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Write config.json, tokenizer.json and tokenizer_config.json; the end token's id is in config.json."""
    tokenizer = {"byte_level": _byte_level, "sentencepiece": _sentencepiece, "wordpiece": _wordpiece}[kind]()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in PLAIN_ADDED_TOKENS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL_TOKENS[0]}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    config = {"model_type": "llama", "eos_token_id": tokenizer.token_to_id(SPECIAL_TOKENS[2])}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_harmony_tokenizer(folder: Path) -> Path:
    """Do as `write_tiny_tokenizer`, with gpt-oss's special tokens and a template that writes them."""
    return _write_with(folder, HARMONY_TOKENS, HARMONY_TEMPLATE)


def write_deepseek_tokenizer(folder: Path) -> Path:
    """Do as `write_tiny_tokenizer`, with DeepSeek's call tokens, and R1's way of writing them."""
    return _write_with(folder, DEEPSEEK_TOKENS, DEEPSEEK_TEMPLATE)


def _write_with(folder: Path, tokens: tuple[str, ...], template: str) -> Path:
    write_tiny_tokenizer(folder, chat_template=template)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(list(tokens))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _sentencepiece() -> Tokenizer:
    words = ["\u2581", "a", "b", "c", "\u2581a", "\u2581\u2581", "\u2581the", "你", "\u2581好"]
    pieces = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def _wordpiece() -> Tokenizer:
    pieces = [*SPECIAL_TOKENS, "[UNK]", "the", "fox", "##es", "##\ufffd", ",", "you", "'", "re", "你", "##好"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return tokenizer
