"""Settings: precedence, reading, what is refused and how it is said."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mlx_backend.api.interface import EngineConfig
from server.config import Config, ConfigError, Field, engine_config, fields, resolve, sections, value_of
from server.config_sources import read
from server.models import build_models

CONFIGS = Path(__file__).parents[2] / "configs"
FIELDS = {f.key: f for f in fields()}

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(content: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(content, encoding="utf-8")
        return path

    return write_file


def problem(
    file: Path | None = None, environ: dict[str, str] | None = None, flags: dict[str, str | None] | None = None
) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(file, environ or {}, flags or {})
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the declaration


def test_names_follow_from_the_key() -> None:
    bits = FIELDS["kv_cache.bits"]
    assert (bits.flag, bits.variable) == ("--kv-cache-bits", "PIPPIN_KV_CACHE_BITS")
    assert (bits.type, bits.is_optional, bits.choices, bits.default) == (int, True, (4, 5, 6, 8), None)
    assert (FIELDS["port"].flag, FIELDS["log_level"].variable) == ("--port", "PIPPIN_LOG_LEVEL")


def test_the_top_level_comes_first() -> None:
    top = [f.key for f in fields() if not f.section]
    logs = ["log_level", "log_format", "log_prompts", "log_file"]
    assert top == ["model", "aliases", "adapters", "adapters_folder", "backend", "host", "port", *logs]
    assert [f.key for f in fields()][: len(top)] == top


def test_no_two_fields_share_a_flag_or_a_variable() -> None:
    for names in ([f.flag for f in fields()], [f.variable for f in fields()]):
        assert len(names) == len(set(names))
    assert "PIPPIN_CONFIG" not in {f.variable for f in fields()}
    assert not {"--config", "--help", "--json"} & {f.flag for f in fields()}


def test_every_field_has_help_and_a_default_of_its_type() -> None:
    for declared in fields():
        assert declared.help
        assert value_of(Config(), declared.key) == declared.default
        assert isinstance(declared.default, declared.type) or (declared.is_optional and declared.default is None)


NOT_CONFIGURED = {"model_path", "share", "hosts", "ranks_here"}
"""Found out as the server starts."""


def test_a_section_that_the_engine_needs_is_in_the_config() -> None:
    assert {f.name for f in dataclasses.fields(EngineConfig)} - NOT_CONFIGURED <= set(get_type_hints(Config))


def test_engine_config_carries_its_sections_over() -> None:
    config = resolve(None, {}, {"backend": "mock", "kv_cache.bits": "8", "scheduler.max_num_seqs": "3"}).config
    told = engine_config(config, "/models/a")
    assert (told.model_path, told.backend, told.kv_cache.bits, told.scheduler.max_num_seqs) == (
        "/models/a",
        "mock",
        8,
        3,
    )
    assert told.health is config.health


# --- precedence and round trips


LEAST = {"grammars.memory_gb": 0.1, "scheduler.batch_share": 0.01}
"""Of numbers that may be no smaller than this."""


MOST = {"speculation.max_tokens": 15}


def valid_values(declared: Field) -> st.SearchStrategy[Any]:
    """Values in bounds; bounds are few, so what `Config` refuses is not drawn."""
    if declared.choices:
        values: st.SearchStrategy[Any] = st.sampled_from(declared.choices)
    elif declared.type is bool:
        values = st.booleans()
    elif declared.type is int:
        values = st.integers(8, MOST.get(declared.key, 65534))
    elif declared.type is float:
        values = st.floats(LEAST.get(declared.key, 1e-6), 1e6)
    else:
        # text as people may write it, quotes and YAML's own characters among it; "none" means no value
        letters = st.characters(blacklist_categories=("Cs", "Cc"))
        values = st.text(letters, min_size=1).filter(lambda text: text != "none")
    return values | st.none() if declared.is_optional else values


def as_text(value: Any) -> str:
    return "none" if value is None else str(value)


@st.composite
def layers(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """For a few fields, a value in each of a few sources."""
    chosen: dict[str, dict[str, Any]] = {"file": {}, "environment": {}, "flag": {}}
    for key in draw(st.sets(st.sampled_from(sorted(FIELDS)))):
        for source in draw(st.sets(st.sampled_from(sorted(chosen)))):
            chosen[source][key] = draw(valid_values(FIELDS[key]))
    if any("kv_cache" in key for values in chosen.values() for key in values):
        chosen["flag"]["kv_cache.bits"] = 8  # the section's other fields apply to a quantized cache
    given = {key for values in chosen.values() for key in values}
    if given & {"speculation.kind", "speculation.draft_model"}:
        chosen["flag"] |= {"speculation.kind": "draft-model", "speculation.draft_model": "folder"}  # both or none
    if "residency.keep_alive_s" in given and any(key.startswith("ranks.") for key in given):
        chosen["flag"]["residency.keep_alive_s"] = None  # a model in parts stays
    return chosen


def nested(values: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (content.setdefault(section, {}) if section else content)[name] = value
    return content


@given(layers())
def test_flags_beat_the_environment_beats_the_file_beats_defaults(
    tmp_path_factory: pytest.TempPathFactory, chosen: dict[str, dict[str, Any]]
) -> None:
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(yaml.safe_dump(nested(chosen["file"]), allow_unicode=True), encoding="utf-8")
    resolved = resolve(
        file,
        {FIELDS[key].variable: as_text(value) for key, value in chosen["environment"].items()} | {"HOME": "/"},
        {key: as_text(value) for key, value in chosen["flag"].items()},
    )
    for key, declared in FIELDS.items():
        expected, origin = declared.default, "default"
        for source, name in (("file", str(file)), ("environment", declared.variable), ("flag", declared.flag)):
            if key in chosen[source]:
                expected, origin = chosen[source][key], f"{source} {name}"
        value = value_of(resolved.config, key)
        assert (value, resolved.origins[key]) == (expected, origin)
        assert value is None or type(value) is declared.type


def test_a_flag_not_given_counts_for_nothing() -> None:
    resolved = resolve(None, {"PIPPIN_PORT": "81"}, {"port": None})
    assert (resolved.config.port, resolved.origins["port"]) == (81, "environment PIPPIN_PORT")


def test_the_file_may_be_named_by_a_variable_and_a_flag_beats_it(write: Write) -> None:
    file = write("port: 81")
    assert resolve(None, {"PIPPIN_CONFIG": str(file)}, {}).config.port == 81
    assert resolve(CONFIGS / "default.yaml", {"PIPPIN_CONFIG": str(file)}, {}).config.port == 8080


# --- files


def test_default_yaml_is_the_defaults_and_says_all_help() -> None:
    file = CONFIGS / "default.yaml"
    resolved = resolve(file, {}, {})
    assert resolved.config == Config()
    assert set(resolved.origins.values()) == {f"file {file}"}  # every key is there
    text = file.read_text(encoding="utf-8")
    for declared in fields():
        assert re.search(rf"^ *# {re.escape(declared.help)}.*\n *{declared.name}:", text, re.MULTILINE), declared.key
    for section in sections().values():
        assert f"# {section.__doc__}\n" in text


def test_one_model_has_defaults_of_its_requests(write: Write) -> None:
    resolved = resolve(write("backend: mock\ndefaults: {temperature: 0.5, system: Be brief.}"), {}, {})
    assert value_of(resolved.config, "defaults") == {"temperature": 0.5, "system": "Be brief."}
    assert resolved.origins["defaults"].startswith("file ")
    (model,) = build_models(resolved.config)
    assert (model.defaults.sampling, model.defaults.system) == ({"temperature": 0.5}, "Be brief.")
    assert resolve(write("defaults:"), {}, {}).config == Config()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("defaults: {colour: 1}", "defaults cannot have 'colour'"),
        ("defaults: [1]", "defaults must be a mapping"),
        ("defaults: {temperature: 9}", "defaults.temperature"),
        ("defaults: {seed: 1}\nmodels: {a: b}", "defaults apply only to a server of one model; move them into models"),
        ("models: {a: {model: b, adapters: {c: /c}, adapter: d}}", "models.a.adapter must be the name of one of its"),
    ],
)
def test_defaults_and_adapters_that_cannot_be_are_refused(write: Write, content: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        resolve(write(content), {}, {})


def test_mock_yaml_resolves_to_the_mock() -> None:
    assert resolve(CONFIGS / "mock.yaml", {}, {}).config.backend == "mock"


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "kv_cache:\n", "{}"])
def test_a_file_may_say_nothing(write: Write, content: str) -> None:
    assert resolve(write(content), {}, {}).config == Config()


def test_numbers_in_a_file_may_be_written_as_text_and_whole(write: Write) -> None:
    config = resolve(write("port: '81'\nmock: {itl_s: 1, ttft_s: 1e-3}"), {}, {}).config
    assert (config.port, config.mock.itl_s, config.mock.ttft_s) == (81, 1.0, 0.001)
    assert type(config.mock.itl_s) is float


def test_null_and_none_are_no_value(write: Write) -> None:
    file = write("model: none\nkv_cache: {bits: null}\ncontext: {limit: }")
    config = resolve(file, {}, {}).config
    assert (config.model, config.kv_cache.bits, config.context.limit) == (None, None, None)
    assert resolve(write("kv_cache: {bits: 8}"), {"PIPPIN_KV_CACHE_BITS": "none"}, {}).config.kv_cache.bits is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("prot: 1", "unknown key 'prot'; did you mean port?"),
        ("kv_cahce: {bits: 8}", "unknown key 'kv_cahce'; did you mean kv_cache?"),
        ("kv_cache: {bit: 8}", "unknown key 'kv_cache.bit'; did you mean kv_cache.bits?"),
        ("bits: 8", "unknown key 'bits'; did you mean kv_cache.bits?"),
        ("kv_cache.bits: 8", "unknown key 'kv_cache.bits'; write sections nested, as in kv_cache: {bits: …}"),
        ("port: 1\n7: 8", "unknown key '7'"),
        ("'': 8", "unknown key ''"),
        ("kv_cache: 8", "kv_cache must be a mapping of bits, key_bits, value_bits, group_size, start, not 8"),
        ("port: [1]", "port must be a whole number, not [1]"),
        ("port: {a: 1}", "port must be a whole number, not {'a': 1}"),
        ("port: true", "port must be a whole number, not True"),
        ("port: 1.0", "port must be a whole number, not 1.0"),
        ("port: null", "port must not be none"),
        ("port: 65536", "port must be at most 65535, not 65536"),
        ("host: 1", "host must be text, not 1; put it in quotes"),
        ("backend: cuda", "backend must be one of mlx, mock, not 'cuda'"),
        ("health: {stall_s: .nan}", "health.stall_s must be a number, not nan"),
        ("health: {stall_s: 1" + "0" * 400 + "}", "health.stall_s must be a number"),
        ("health: {stall_s: 0}", "health.stall_s must be more than 0, not 0.0"),
        ("kv_cache: {bits: 7}", "kv_cache.bits must be one of 4, 5, 6, 8, not 7"),
        ("port: 1\nport: 2", "line 2: 'port' is given twice"),
        ("mock: {itl_s: 1, itl_s: 2}", "line 1: 'itl_s' is given twice"),
        ("- port", "must be a mapping of keys to values, not list"),
        ("port", "must be a mapping of keys to values, not str"),
        ("port: [1", "line 1, column 9"),
        ("a: b: c", "line 1, column 5"),
        ("[1]: 2", "line 1"),
        ("port: 2026-99-99", "not readable as YAML"),
        ("port: 1\n---\nport: 2", "line 2"),
        ("port: !!python/name:os.system", "line 1"),
        ("a: &a {b: *a}", "nested too deeply"),
        ("port: " + "[" * 5000, "nested too deeply"),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_wrong_in_a_file_is_said_in_one_line(write: Write, content: str, says: str) -> None:
    file = write(content)
    message = problem(file)
    assert message.startswith(f"file {file}: ")
    assert says in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert problem(missing) == f"file {missing}: No such file or directory"
    assert problem(tmp_path) == f"file {tmp_path}: Is a directory"
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\x00\xff\xfe\x01")
    assert problem(binary).startswith(f"file {binary}: not readable as YAML: ")


@given(st.binary() | st.text().map(str.encode))
def test_no_file_is_so_broken_that_it_is_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_bytes(content)
    try:
        resolve(file, {}, {})
    except ConfigError as error:
        assert str(error).startswith(f"file {file}: ")


# --- variables and flags


@pytest.mark.parametrize(
    ("variable", "text", "says"),
    [
        ("PIPPIN_PROT", "1", "environment: unknown variable PIPPIN_PROT; did you mean PIPPIN_PORT?"),
        ("PIPPIN_BIT", "8", "environment: unknown variable PIPPIN_BIT; did you mean PIPPIN_KV_CACHE_BITS?"),
        ("PIPPIN_CONFIGS", "a", "environment: unknown variable PIPPIN_CONFIGS; did you mean PIPPIN_CONFIG?"),
        ("PIPPIN_PORT", "abc", "environment PIPPIN_PORT: port must be a whole number, not 'abc'"),
        ("PIPPIN_PORT", "-1", "environment PIPPIN_PORT: port must be at least 0, not -1"),
        ("PIPPIN_PORT", "", "environment PIPPIN_PORT: port is empty; set a value"),
        ("PIPPIN_HOST", "", "environment PIPPIN_HOST: host is empty; set a value"),
        ("PIPPIN_HOST", "none", "environment PIPPIN_HOST: host must not be none"),
        ("PIPPIN_MODEL", "", "environment PIPPIN_MODEL: model is empty; set a value or 'none'"),
        ("PIPPIN_CONFIG", "", "environment PIPPIN_CONFIG is empty; set it to a file or unset it"),
        ("PIPPIN_MOCK_ITL_S", "inf", "environment PIPPIN_MOCK_ITL_S: mock.itl_s must be a number, not 'inf'"),
        (
            "PIPPIN_LOG_LEVEL",
            "loud",
            "environment PIPPIN_LOG_LEVEL: log_level must be one of debug, info, warning, error, not 'loud'",
        ),
    ],
)
def test_what_is_wrong_in_a_variable_is_said_in_one_line(variable: str, text: str, says: str) -> None:
    assert problem(environ={variable: text}) == says


def test_what_is_wrong_in_a_flag_is_said_in_one_line() -> None:
    says = "flag --kv-cache-bits: kv_cache.bits must be one of 4, 5, 6, 8, not 7"
    assert problem(flags={"kv_cache.bits": "7"}) == says
    says = "flag --scheduler-max-stall-s: scheduler.max_stall_s must be more than 0, not 0.0"
    assert problem(flags={"scheduler.max_stall_s": "0"}) == says


def test_other_programs_variables_are_left_alone() -> None:
    assert resolve(None, {"PORT": "x", "pippin_port": "x", "XPIPPIN_PORT": "x"}, {}).config == Config()


def test_a_value_that_loses_is_not_read(write: Write) -> None:
    assert resolve(write("port: abc"), {"PIPPIN_PORT": "81"}, {}).config.port == 81


# --- the parts of a declaration that no field uses yet


def field_of(kind: type, choices: tuple[Any, ...] = (), is_optional: bool = False) -> Field:
    return Field(section="s", name="x", type=kind, is_optional=is_optional, choices=choices, default=None, help="x")


@pytest.mark.parametrize(
    ("given_value", "expected"),
    [
        *((value, True) for value in ("true", "Yes", "on", "1", True)),
        *((value, False) for value in ("FALSE", "no", "off", "0", False)),
    ],
)
def test_truth_values(given_value: object, expected: bool) -> None:
    assert read_one(field_of(bool), given_value) is expected


@pytest.mark.parametrize("given_value", ["maybe", 1, 0.0, "2"])
def test_what_is_no_truth_value(given_value: object) -> None:
    with pytest.raises(ConfigError, match=r"^here: s\.x must be true or false, not "):
        read_one(field_of(bool), given_value)


def test_none_may_be_a_choice() -> None:
    assert read_one(field_of(str, ("auto", "none")), "none") == "none"


def test_only_finite_numbers() -> None:
    for text in ("nan", "-inf", "1e999", math.inf):
        with pytest.raises(ConfigError, match="must be a number"):
            read_one(field_of(float), text)


def read_one(declared: Field, value: object) -> object:
    from server.config_sources import Given

    return read(declared, Given(value, "here"))


def test_a_field_of_another_type_cannot_be_declared() -> None:
    from server.config_sources import _unfold

    assert _unfold(Literal["a", "b"] | None) == (str, True, ("a", "b"))
    with pytest.raises(TypeError, match="cannot be a"):
        _unfold(list[int])


def test_the_config_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().port = 1  # type: ignore[misc]


def test_bounds_hold_for_a_config_built_by_hand() -> None:
    with pytest.raises(ValueError, match=r"^port must be at most 65535, not 70000$"):
        Config(port=70000)
