"""`defaults` of a model in the configuration: how they are written, shown again, and what is wrong in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from server.config import Config, ConfigError, resolve, value_of
from server.models import build_models
from server.request_defaults import NAMES, SAMPLING, RequestDefaults, read_defaults


def resolved(tmp_path: Path, defaults: str) -> Config:
    file = tmp_path / "c.yaml"
    file.write_text(f"backend: mock\nmodels:\n  a:\n    model: x\n    defaults: {defaults}\n", encoding="utf-8")
    return resolve(file, {}, {}).config


def test_they_are_a_model_s(tmp_path: Path) -> None:
    text = """
      temperature: 0
      top_p: 0.95
      seed: 7
      max_tokens: 100
      stop: "###"
      system: |
        You are Mario.
        Be brief.
      messages:
        - {role: user, content: hi}
        - {role: assistant, content: ho}"""
    config = resolved(tmp_path, text)
    defaults = config.models[0].defaults
    assert defaults == RequestDefaults(
        sampling={"temperature": 0.0, "top_p": 0.95, "seed": 7},
        max_tokens=100,
        stop=("###",),
        system="You are Mario.\nBe brief.\n",
        messages=({"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}),
    )
    (model,) = build_models(config)
    assert model.defaults is defaults
    assert value_of(config, "models")["a"]["defaults"] == {**yaml.safe_load(text), "stop": ["###"]}


WHOLE, SHARES = st.integers(0, 100), st.sampled_from([0.5, 0.75, 1.0])
VALUES = {name: WHOLE if name in ("top_k", "seed") else SHARES for name in SAMPLING}
MESSAGE = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": st.text(min_size=1)})
OTHERS = {
    "max_tokens": st.integers(1, 9),
    "stop": st.lists(st.text(min_size=1, max_size=3), min_size=1, max_size=3),
    "system": st.text(min_size=1, max_size=9),
    "messages": st.lists(MESSAGE, min_size=1),
}


@settings(max_examples=20, deadline=None)
@given(st.fixed_dictionaries({}, optional={**VALUES, **OTHERS}))
def test_what_is_written_again_is_the_same(values: dict[str, object]) -> None:
    defaults = read_defaults(values, "here")
    assert defaults.as_written() == values
    assert read_defaults(defaults.as_written(), "here") == defaults


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("3", f"models.a.defaults must be a mapping of {', '.join(NAMES)}, not 3"),
        ("{temprature: 1}", "models.a.defaults cannot have 'temprature'; it is a mapping of temperature, top_p"),
        ("{temperature: hot}", "models.a.defaults.temperature must be a number from 0 to 2, not 'hot'"),
        ("{temperature: 3}", "must be a number from 0 to 2, not 3"),
        ("{temperature: .nan}", "must be a number from 0 to 2, not nan"),
        ("{temperature: true}", "must be a number from 0 to 2, not True"),
        ("{temperature: null}", "must be a number from 0 to 2, not None"),
        ("{top_p: 0}", "top_p must be a number above 0, up to 1, not 0"),
        ("{top_k: 1.5}", "top_k must be a whole number from 0 to 2147483648, not 1.5"),
        ("{seed: -1}", "seed must be a whole number from 0 to 18446744073709551615, not -1"),
        ("{max_tokens: 0}", "max_tokens must be a whole number from 1 to"),
        ("{stop: 1}", "stop must be a text or a list of texts that are not empty, not 1"),
        ("{stop: ['']}", "that are not empty, not ['']"),
        (f"{{stop: {['a'] * 17}}}", "stop has 17 texts; at most 16 are looked for"),
        ("{system: ''}", "system must be a text that is not empty, not ''"),
        ("{system: [a]}", "system must be a text that is not empty, not ['a']"),
        ("{messages: hi}", "messages must be a list of messages, not 'hi'"),
        ("{messages: [{role: tool, content: a}]}", "messages[0] must have a role (system, user, assistant) and a"),
        ("{messages: [{role: user}]}", "messages[0] must have a role"),
        ("{messages: [{role: user, content: 1}]}", "messages[0].content must be a text that is not empty, not 1"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(tmp_path, text)
    message = str(caught.value)
    assert says in message and "\n" not in message and message.startswith(f"file {tmp_path / 'c.yaml'}: ")
