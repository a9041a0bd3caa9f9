"""The tokenizers of checkpoints, against the `tokenizers` library itself, and the folders that cannot be loaded."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.errors import ModelLoadError
from server.text.calls.forms import FORMS, GENERIC
from server.text.chat_template import TemplateError, render_text
from server.text.detokenizer import ByteDetokenizer, WindowDetokenizer
from server.text.tokenizer import HFTokenizer, Tokenizer, load_tokenizer

pytest.importorskip("mlx_lm")
tokenizers = pytest.importorskip("tokenizers")

from tests.tiny_tokenizer import SENTENCES, write_tiny_tokenizer  # noqa: E402 - needs the library checked for above

_MESSAGES = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好"})


def _streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    detokenizer = tokenizer.detokenizer()
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece", "wordpiece"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    return write_tiny_tokenizer(tmp_path_factory.mktemp(kind), kind)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def library(folder):
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_encode_is_the_librarys(tokenizer, library):
    for text in ("the fox", "你好 the foxes", "a<think>é「工具」<|im_end|>\n", ""):
        assert tokenizer.encode(text, add_special_tokens=False) == library.encode(text).ids


def test_decode_is_the_librarys(tokenizer, library, kind):
    source = random.Random(0)
    for _ in range(500):
        ids = [source.randrange(tokenizer.vocab_size) for _ in range(source.randrange(24))]
        expected = library.decode(ids, skip_special_tokens=True)
        # Of bytes that are no UTF-8, byte fallback breaks the whole run; the sound characters are kept here.
        if kind != "sentencepiece" or "\ufffd" not in expected:
            assert tokenizer.decode(ids) == expected


@given(data=st.data())
def test_streamed_is_decoded(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    assert _streamed(tokenizer, ids) == tokenizer.decode(ids)


# The library reads an added token as byte-level characters where it can, and this one is no UTF-8 then.
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="é\ufffd")))
def test_no_character_is_streamed_broken(tokenizer, kind, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = tokenizer.detokenizer()
    pushed = "".join(map(detokenizer.push, ids))
    assert "\ufffd" not in pushed
    assert pushed + detokenizer.flush() == tokenizer.decode(ids)
    if kind == "byte_level":
        assert pushed == text


def test_the_detokenizer_fits_the_decoder(tokenizer, kind):
    expected = WindowDetokenizer if kind == "wordpiece" else ByteDetokenizer
    assert type(tokenizer.detokenizer()) is expected


def test_special_tokens_read_as_their_names_and_are_not_decoded(tokenizer, library):
    end = library.token_to_id("<|im_end|>")
    assert tokenizer.token_text(end) == "<|im_end|>"
    assert tokenizer.token_bytes(end) == b"<|im_end|>"
    assert tokenizer.decode([end]) == ""


def test_special_tokens_are_text_where_they_are_markup(tokenizer, library):
    start, end = library.token_to_id("<|im_start|>"), library.token_to_id("<|im_end|>")
    for markup, expected in (((), ""), (("<|im_start|>thought", "x"), "<|im_start|>")):
        detokenizer = tokenizer.detokenizer(markup)
        text = "".join([detokenizer.push(start), detokenizer.push(end), detokenizer.flush()])
        assert text == expected


def test_a_model_without_marks_is_told_of_calls(tokenizer):
    assert tokenizer.chat_format.calls == GENERIC
    assert not tokenizer.chat_format.has_reasoning
    tool = {"type": "function", "function": {"name": "f"}}
    text = tokenizer.render_chat(_MESSAGES, {}, [tool])
    assert '{"name": "f"}' in text
    assert '<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>' in text


def test_the_marks_are_mlx_lms_and_the_template_is_shown_the_tools(tmp_path):
    calls = "{% for tool_call in [] %}<tool_call>{{ tool_call.name }}{% endfor %}"
    template = "{% if tools %}{{ tools | tojson }}{% endif %}" + calls
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path / "calling", chat_template=template))
    assert tokenizer.chat_format.calls == FORMS["json_tools"]
    assert tokenizer.chat_format.has_tools
    tool = {"type": "function", "function": {"name": "f"}}
    assert tokenizer.render_chat(_MESSAGES, {}, [tool]).startswith('[{"type": "function", "function": {"name": "f"}}]')
    assert tokenizer.render_chat(_MESSAGES, {}) == ""


def test_added_tokens_that_are_not_special_are_text(tokenizer, library):
    assert tokenizer.decode([library.token_to_id("<think>")]) == "<think>"
    assert tokenizer.token_text(library.token_to_id("「工具」")) == "「工具」"


def test_the_end_tokens_are_the_configs_and_the_tokenizers(tokenizer, library):
    assert tokenizer.eos_ids == {library.token_to_id("<|im_end|>"), library.token_to_id("<|endoftext|>")}


def test_ids_outside_the_vocabulary_stand_for_nothing(tokenizer):
    assert tokenizer.vocab_size > 10
    assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
    assert tokenizer.token_bytes(-1) == b""
    assert tokenizer.token_bytes(tokenizer.vocab_size - 1) != b""


def test_a_lone_surrogate_is_no_error(tokenizer):
    assert tokenizer.encode("a\ud800", add_special_tokens=False) == tokenizer.encode(
        "a\ufffd", add_special_tokens=False
    )


def test_the_template_opens_the_answer(tokenizer):
    assert tokenizer.render_chat(_MESSAGES, {"opening": "<think>"}) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n<think>"
    )


def test_the_templates_own_refusal_is_quoted(tokenizer):
    with pytest.raises(TemplateError, match=r"messages: this model knows no critic$"):
        render_text(tokenizer, ({"role": "critic", "content": "42"},), {})


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_a_texts_tokens_have_its_bytes(tmp_path, kind):
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path / kind, kind))
    for sentence in SENTENCES:
        ids = tokenizer.encode(sentence, add_special_tokens=False)
        lead = " " if kind == "sentencepiece" else ""
        assert b"".join(map(tokenizer.token_bytes, ids)) == (lead + sentence).encode()
        assert tokenizer.decode(ids) == sentence


def test_byte_fallback_keeps_sound_characters_beside_broken_ones(tmp_path):
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path / "broken", "sentencepiece"))
    ids = [3 + byte for byte in (*"中".encode(), 0xFF)]
    assert tokenizer.decode(ids) == _streamed(tokenizer, ids) == "中\ufffd"


def test_without_a_template_a_chat_is_refused(tmp_path):
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path / "base", chat_template=None))
    with pytest.raises(TemplateError, match="the model has none"):
        render_text(tokenizer, _MESSAGES, {})


def test_a_tokenizer_with_a_way_of_its_own_is_asked(tmp_path):
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from transformers import PreTrainedTokenizerFast

    class Shouting(PreTrainedTokenizerFast):
        def decode(self, *args, **kwargs):
            return str(super().decode(*args, **kwargs)).upper()

    file = write_tiny_tokenizer(tmp_path / "own") / "tokenizer.json"
    tokenizer = HFTokenizer(TokenizerWrapper(Shouting(tokenizer_object=tokenizers.Tokenizer.from_file(str(file)))))
    ids = tokenizer.encode("the fox 你好", add_special_tokens=False)
    assert tokenizer.decode(ids) == _streamed(tokenizer, ids) == "THE FOX 你好"


@pytest.fixture
def model(tmp_path):
    return write_tiny_tokenizer(tmp_path / "model")


def _failure(model: Path) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load_tokenizer(model)
    message = str(caught.value)
    assert "\n" not in message
    assert str(model) in message
    return message


def test_it_loads_when_nothing_is_wrong(model):
    assert isinstance(load_tokenizer(model), HFTokenizer)


def test_no_folder(tmp_path):
    assert "no model folder" in _failure(tmp_path / "nowhere")


def test_no_config(model):
    (model / "config.json").unlink()
    assert "config.json" in _failure(model)


def test_no_tokenizer_files(model):
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    assert "fetch the model's files again" in _failure(model)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_file_cut_off(model, name):
    path = model / name
    path.write_text(path.read_text(encoding="utf-8")[:-5], encoding="utf-8")
    assert "fetch the model's files again" in _failure(model)


def test_code_of_the_checkpoint_is_not_run(model):
    (model / "tokenizer.json").unlink()
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    (model / "own.py").write_text("raise SystemExit('it was run')")
    assert "not run" in _failure(model)


# --- where the template is, and what a prompt begins with

CHATML = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
CALLING = "{# <tool_call> #}" + CHATML + "{% if tools %}!{% endif %}"
HI = [{"role": "user", "content": "hi"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def named(default: str, tool_use: str) -> list[dict[str, str]]:
    return [{"name": "default", "template": default}, {"name": "tool_use", "template": tool_use}]


@pytest.mark.parametrize(
    ("files", "calls"),
    [
        ({"chat_template.jinja": CHATML}, False),
        ({"chat_template.json": json.dumps({"chat_template": CHATML})}, False),
        ({"chat_template.json": json.dumps({"chat_template": named(CHATML, CALLING)})}, True),
        ({"chat_template.json": json.dumps({"chat_template": {"default": CHATML, "tool_use": CALLING}})}, True),
        ({"chat_template.json": json.dumps({"chat_template": "other"}), "chat_template.jinja": CHATML}, False),
        ({"chat_template.jinja": CHATML, "additional_chat_templates/tool_use.jinja": CALLING}, True),
        ({"tokenizer_config.json": CHATML, "chat_template.json": json.dumps({"chat_template": "other"})}, False),
        ({"tokenizer_config.json": named(CHATML, CALLING)}, True),
    ],
)
def test_templates_wherever_they_are(tmp_path, files, calls):
    folder = write_tiny_tokenizer(tmp_path / "model", chat_template=None)
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        if name == "tokenizer_config.json":
            text = json.dumps({**json.loads(file.read_text()), "chat_template": text})
        file.write_text(text)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.render_chat(HI, {}) == "<user>hi<a>"
    with_tools = tokenizer.render_chat(HI, {}, [WEATHER])
    assert with_tools.endswith("!") == calls
    assert tokenizer.chat_format.calls == (FORMS["json_tools"] if calls else GENERIC)


@pytest.mark.parametrize("text", ["{", '{"other": 1}', "7"])
def test_a_broken_template_file_is_told(tmp_path, text):
    folder = write_tiny_tokenizer(tmp_path / "model", chat_template=None)
    (folder / "chat_template.json").write_text(text)
    with pytest.raises(ModelLoadError, match="cannot be loaded"):
        load_tokenizer(folder)


def test_a_prompt_that_begins_with_the_first_token_gets_no_second(tmp_path):
    folder = write_tiny_tokenizer(tmp_path / "model")
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = library.token_to_id("<|im_start|>")
    library.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", bos)]
    )
    library.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": "<|im_start|>"}))
    tokenizer = load_tokenizer(folder)
    fox = tokenizer.encode("fox", add_special_tokens=False)
    assert tokenizer.encode("fox", add_special_tokens=True) == [bos, *fox]
    assert tokenizer.encode("<|im_start|>fox", add_special_tokens=True) == [bos, *fox]
    assert tokenizer.encode("<|im_start|><|im_start|>fox", add_special_tokens=True) == [bos, bos, *fox]
    assert tokenizer.encode("<|im_start|>fox", add_special_tokens=False) == [bos, *fox]
