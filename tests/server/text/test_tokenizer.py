"""The mock's tokenizer, and that it needs no library."""

from __future__ import annotations

import ast
import inspect

from hypothesis import given
from hypothesis import strategies as st

import server.text.tokenizer
from server.text.tokenizer import ByteTokenizer

_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


class TestByteTokenizer:
    tokenizer = ByteTokenizer()

    @given(_TEXT)
    def test_text_survives(self, text):
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        assert ids == list(text.encode())
        assert self.tokenizer.decode(ids) == text

    def test_special_tokens_are_added_when_asked_and_never_decoded(self):
        ids = self.tokenizer.encode("a", add_special_tokens=True)
        assert ids == [257, 97]
        assert self.tokenizer.decode([*ids, 256, 259, 999]) == "a"

    def test_a_token_alone(self):
        assert [self.tokenizer.token_bytes(i) for i in (0x61, 0xE4, 256, 999)] == [b"a", b"\xe4", b"<eos>", b""]
        assert [self.tokenizer.token_text(i) for i in (0x61, 0xE4, 256)] == ["a", "\ufffd", "<eos>"]

    def test_a_chat(self):
        messages = ({"role": "user", "content": "hi"}, {"role": "assistant", "content": None})
        assert self.tokenizer.render_chat(messages, {"enable_thinking": True}) == "user: hi\nassistant: \nassistant:"

    def test_a_lone_surrogate_is_replaced(self):
        ids = self.tokenizer.encode("a\ud800b\U0001f600", add_special_tokens=False)
        assert self.tokenizer.decode(ids) == "a\ufffdb😀"

    def test_ids_and_sizes(self):
        assert self.tokenizer.vocab_size == 260
        assert self.tokenizer.eos_ids == {256}


def test_the_module_imports_no_model_library_until_a_model_is_loaded():
    tree = ast.parse(inspect.getsource(server.text.tokenizer))
    tops = {name.name for node in tree.body if isinstance(node, ast.Import) for name in node.names}
    tops |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert not {top for top in tops if top.split(".")[0] in ("mlx", "mlx_lm", "transformers", "tokenizers")}
