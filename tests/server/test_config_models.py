"""`models:` of the configuration: how entries are written, what each becomes, and what is wrong in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.config import Config, ConfigError, Resolved, engine_config, resolve, value_of, with_own
from server.config_models import ModelEntry


def resolved(tmp_path: Path, text: str, **flags: str) -> Resolved:
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    return resolve(file, {}, dict(flags))


def test_a_name_has_a_folder_or_a_mapping(tmp_path: Path) -> None:
    config = resolved(
        tmp_path,
        """
models:
  small: owner/small
  org/large:
    model: /models/large
    pinned: yes
    aliases: [gpt-4o, best]
    context: {limit: 4096}
    kv_cache: {bits: 8, start: 4}
    speculation: {kind: draft-model, draft_model: owner/smaller}
  other: {model: x/y, keep_alive_s: "60"}
""",
    ).config
    assert config.models == (
        ModelEntry(name="small", model="owner/small"),
        ModelEntry(
            name="org/large",
            model="/models/large",
            pinned=True,
            aliases=("gpt-4o", "best"),
            own={
                "context.limit": 4096,
                "kv_cache.bits": 8,
                "kv_cache.start": 4,
                "speculation.kind": "draft-model",
                "speculation.draft_model": "owner/smaller",
            },
        ),
        ModelEntry(name="other", model="x/y", keep_alive_s=60.0),
    )
    told = engine_config(with_own(config, config.models[1]), "/models/large")
    assert (told.context.limit, told.kv_cache.bits, told.kv_cache.start) == (4096, 8, 4)
    assert told.speculation.draft_model == "owner/smaller"
    assert engine_config(with_own(config, config.models[0]), "x").kv_cache.bits is None


def test_what_holds_is_shown_as_it_was_written(tmp_path: Path) -> None:
    found = resolved(tmp_path, "models: {a: mock, b: {model: mock, pinned: true, context: {limit: 99}}}")
    assert found.origins["models"] == f"file {tmp_path / 'c.yaml'}"
    assert value_of(found.config, "models") == {
        "a": {"model": "mock"},
        "b": {"model": "mock", "pinned": True, "context.limit": 99},
    }
    assert "models" not in resolve(None, {}, {}).origins


@pytest.mark.parametrize("text", ["models:\n", "models: {}\n", ""])
def test_none_is_none(tmp_path: Path, text: str) -> None:
    assert resolved(tmp_path, text).config.models == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("models: [a]", "models must be a mapping of names to models, not ['a']"),
        ("models: {a: 1}", "models.a must be a folder, a hub id or a mapping, not 1"),
        ("models: {a: {}}", "models.a.model is missing; set it to a folder or hub id"),
        ("models: {a: {model: 1}}", "models.a.model must be text, not 1; put it in quotes"),
        ("models: {a: {model: }}", "models.a.model must not be none"),
        ("models: {1: x}", "models: 1 is not a valid name"),
        ("models: {../a: x}", "models: '../a' is not a valid name"),
        ("models: {a: {model: x, pinned: maybe}}", "models.a.pinned must be true or false, not 'maybe'"),
        (
            "models: {a: {model: x, port: 1}}",
            "models.a has an unknown or malformed key 'port'; valid keys: model, pinned",
        ),
        ("models: {a: {model: x, kv_cache: 8}}", "models.a has an unknown or malformed key 'kv_cache'"),
        ("models: {a: {model: x, context: {on_overflow: error}}}", "models.a.context has an unknown key 'on_overflow'"),
        ("models: {a: {model: x, kv_cache: {bits: x}}}", "models.a.kv_cache.bits must be a whole number, not 'x'"),
        (
            "models: {a: {model: x, speculation: {kind: draft-model}}}",
            "models.a: kind draft-model needs speculation.draft_model, a folder or a hub id",
        ),
        ("models: {a: {model: x, kv_cache: {bits: 7}}}", "models.a.kv_cache.bits must be one of 4, 5, 6, 8, not 7"),
        ("models: {a: {model: x, kv_cache: {start: 4}}}", "models.a: start applies only to a quantized cache"),
        ("models: {a: {model: x, keep_alive_s: 0}}", "models.a.keep_alive_s must be more than 0, not 0.0"),
        ("models: {a: {model: x, keep_alive_s: 1, pinned: true}}", "models.a is pinned"),
        ("models: {a: {model: x, aliases: b}}", "models.a.aliases must be a list of names, not 'b'"),
        ("models: {a: {model: x, aliases: [b]}, b: y}", "models: 'b' names two models"),
        ("aliases: c\nmodels: {a: x}", "aliases 'c' applies only to a server of one model; use models"),
        ("models: {a: x}\nmodel: y", "model 'y' applies only to a server of one model; use models"),
        ("model: y\nmodel_s: {}", "unknown key 'model_s'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(tmp_path, text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_a_flag_beside_models_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^flag --model: model 'y' applies only to a server of one model"):
        resolved(tmp_path, "models: {a: x}", model="y")


def test_the_config_is_checked_when_it_is_built_by_hand() -> None:
    with pytest.raises(ValueError, match="applies only to a server of one model"):
        Config(model="a", models=(ModelEntry(name="a", model="a"),))
