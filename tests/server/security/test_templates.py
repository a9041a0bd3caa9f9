"""Chat templates come with a model and run in a sandbox; what a request gives them is data."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from server.text.chat_template import TemplateError, render_text
from server.text.tokenizer import load_tokenizer
from tests.tiny_tokenizer import write_tiny_tokenizer

pytest.importorskip("mlx_lm")

MESSAGES = [{"role": "user", "content": "hi"}]
ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ raise_exception.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ (messages|attr('__class__')).__mro__ }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'content': 'other'}) }}",
    "{% for i in range(1000000000) %}{% endfor %}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{{ '%s'.__mod__.__self__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_does_not_get_out_of_its_sandbox(tmp_path: Path, template: str) -> None:
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path, chat_template=f"found {template}"))
    with contextlib.suppress(TemplateError):
        assert render_text(tokenizer, MESSAGES, {}) == "found "  # what is not to be seen is not there
    assert MESSAGES == [{"role": "user", "content": "hi"}]


def test_the_sandbox_would_be_missed(tmp_path: Path) -> None:
    """A template that gets as far as it may is rendered: those above are not refused for another reason."""
    template = "{{ messages[0].content | upper }} {{ '%s' | format('x') }} {{ raise_exception is callable }}"
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path, chat_template=template))
    assert render_text(tokenizer, MESSAGES, {}) == "HI x True"


@pytest.mark.parametrize("template", ESCAPES)
def test_what_a_request_gives_is_text_and_not_a_template(tmp_path: Path, template: str) -> None:
    """As a message, and as an argument that the template writes out."""
    shown = "{% for m in messages %}{{ m.content }}{% endfor %}|{{ extra }}"
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path, chat_template=shown))
    assert (
        render_text(tokenizer, [{"role": "user", "content": template}], {"extra": template}) == f"{template}|{template}"
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {"chat_template": "{{ 1 }}"},
        {"tokenizer": "x"},
        {"tokenize": True},
        {"conversation": []},
        {"messages": []},
        {"return_dict": True},
        {"self": 1},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_arguments_cannot_be_more_than_the_templates(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path))
    with pytest.raises(TemplateError):
        render_text(tokenizer, MESSAGES, kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"raise_exception": "x"},
        {"bos_token": "x"},
        {"return_tensors": "pt"},
        {"padding": True},
        {"truncation": True, "max_length": 1},
        {"tokenizer_kwargs": {"x": 1}},
        {"documents": [{"path": "/etc/passwd"}]},
        {"return_assistant_tokens_mask": True},
        {"__class__": "x"},
        {"trust_remote_code": True},
    ],
    ids=lambda kwargs: next(iter(kwargs)),
)
def test_other_arguments_are_rendered_or_refused(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(write_tiny_tokenizer(tmp_path))
    plain = render_text(tokenizer, MESSAGES, {})
    with contextlib.suppress(TemplateError):
        assert render_text(tokenizer, MESSAGES, kwargs) == plain


def test_a_tokenizer_with_code_of_its_own_is_not_loaded(tmp_path: Path) -> None:
    from mlx_backend.api.errors import ModelLoadError

    folder, sign = write_tiny_tokenizer(tmp_path / "model"), tmp_path / "was-here"
    (folder / "evil.py").write_text(f"open({str(sign)!r}, 'w')\nclass Evil: ...\n")
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'
    )
    with contextlib.suppress(ModelLoadError):
        load_tokenizer(folder)
    assert not sign.exists()


@pytest.mark.mlx
def test_a_model_with_code_of_its_own_is_not_loaded(tmp_path: Path) -> None:
    """mlx-lm would run a file that the configuration names, where it is told to trust it."""
    from mlx_backend.api.errors import ModelLoadError
    from mlx_backend.model import loader
    from mlx_backend.model.checkpoint import open_checkpoint
    from tests.tiny_models import write_model

    folder, sign = write_model(tmp_path / "model", "llama"), tmp_path / "was-here"
    (folder / "evil.py").write_text(f"open({str(sign)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    named = {"model_file": "evil.py", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config | named))
    with contextlib.suppress(ModelLoadError):
        loader.build_model(open_checkpoint(folder))
    assert not sign.exists()
