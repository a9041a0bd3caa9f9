"""Sources of settings: a YAML file, variables and flags, by dotted key, and the parsing of their values.

Works on any table of fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

PREFIX = "PIPPIN_"
FILE_VARIABLE = "PIPPIN_CONFIG"
"""Variable that names the configuration file if no flag does."""


class ConfigError(ValueError):
    """The configuration is invalid; one line names the source, the key and the problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Declaration of one setting. `section` is empty at the top level."""

    section: str
    name: str
    type: type
    """int, float, bool or str; for a Literal, the type of its values."""
    is_optional: bool
    choices: tuple[Any, ...] = ()
    default: Any
    help: str
    short_flag: str | None = None
    """Alias of its flag."""

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def flag(self) -> str:
        return "--" + self.key.replace(".", "-").replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.key.replace(".", "_").upper()


@dataclass(frozen=True, slots=True)
class Given:
    """A value from a source, not parsed yet."""

    value: Any
    origin: str


Table = Sequence[Field]

# --- the sources


def from_file(path: Path, table: Table, apart: Sequence[str] = ()) -> dict[str, Given]:
    """Return the values of a YAML file, with sections as nested mappings; keys in `apart` are not checked.

    Raises ConfigError.
    """
    origin = f"file {path}"
    keys = {f.key for f in table}
    values: dict[str, Any] = {}
    for name, value in _load_yaml(path).items():
        if name in _sections(table):
            values |= _section_values(name, value, origin, table)
        elif "." in str(name):
            raise _unknown_key(str(name), origin, table)
        else:
            values[str(name)] = value
    for key in values:
        if key not in keys and key not in apart:
            raise _unknown_key(key, origin, table)
    return {key: Given(value, origin) for key, value in values.items()}


def from_environment(environ: Mapping[str, str], table: Table) -> dict[str, Given]:
    """Return the values of the variables that begin with PIPPIN_. Raises ConfigError."""
    known = {f.variable: f.key for f in table}
    given = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        if variable not in known:
            names = [name.removeprefix(PREFIX) for name in (*known, FILE_VARIABLE)]
            nearest = PREFIX + _nearest(variable.removeprefix(PREFIX), names)
            raise ConfigError(f"environment: unknown variable {variable}; did you mean {nearest}?")
        given[known[variable]] = Given(text, f"environment {variable}")
    return given


def from_flags(flags: Mapping[str, str | None], table: Table) -> dict[str, Given]:
    """Return the values of the flags that were set, by dotted key. Raises KeyError for an unknown key."""
    flag_of = {f.key: f.flag for f in table}
    return {key: Given(text, f"flag {flag_of[key]}") for key, text in flags.items() if text is not None}


def _load_yaml(path: Path) -> dict[Any, Any]:
    import yaml  # late: not needed by `pippin --help`

    try:
        text = path.read_bytes()
        repeated = next(_repeated_keys(yaml.compose(text, yaml.SafeLoader)), None)
        content = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"file {path}: {error.strerror or error}") from None
    except RecursionError:
        raise ConfigError(f"file {path}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"file {path}: {_yaml_problem(error)}") from None
    if repeated:
        raise ConfigError(f"file {path}: {repeated}")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"file {path}: must be a mapping of keys to values, not {type(content).__name__}")
    return content


def _repeated_keys(node: Any) -> Iterator[str]:
    """Yield an error for each repeated key: YAML readers silently take the last one."""
    if node is None or node.id != "mapping":
        return
    seen = set()
    for key, value in node.value:
        name = str(key.value)
        if name in seen:
            yield f"line {key.start_mark.line + 1}: {name!r} is given twice"
        seen.add(name)
        yield from _repeated_keys(value)


def _yaml_problem(error: Any) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else f"not readable as YAML: {problem}"


def _sections(table: Table) -> list[str]:
    return [section for section in dict.fromkeys(f.section for f in table) if section]


def _section_values(section: str, value: Any, origin: str, table: Table) -> dict[str, Any]:
    if value is None:  # every line of the section is commented out
        return {}
    if not isinstance(value, dict):
        names = ", ".join(f.name for f in table if f.section == section)
        raise ConfigError(f"{origin}: {section} must be a mapping of {names}, not {value!r}")
    return {f"{section}.{name}": below for name, below in value.items()}


def _unknown_key(key: str, origin: str, table: Table) -> ConfigError:
    nearest = _nearest_key(key, table)
    advice = f"did you mean {nearest}?"
    if nearest == key:  # known, but written with a dot
        advice = "write sections nested, as in {}: {{{}: …}}".format(*key.split("."))
    return ConfigError(f"{origin}: unknown key {key!r}; {advice}")


def _nearest_key(key: str, table: Table) -> str:
    """Return the key or section closest to `key`; a bare name finds its section."""
    names = {f.name: f.key for f in table} | {name: name for name in _sections(table)} | {f.key: f.key for f in table}
    return names[_nearest(key, list(names))]


def _nearest(word: str, known: list[str]) -> str:
    return difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]


# --- reading one value


def read(declared: Field, given: Given) -> Any:
    """Return the value in the field's type. Raises ConfigError."""
    value = given.value
    try:
        if value is None or (value == "none" and "none" not in declared.choices):
            if not declared.is_optional:
                raise ValueError("must not be none")
            return None
        if value == "":
            raise ValueError("is empty; set a value" + (" or 'none'" if declared.is_optional else ""))
        value = KINDS[declared.type](value)
        if declared.choices and value not in declared.choices:
            raise ValueError(f"must be one of {', '.join(map(str, declared.choices))}, not {value!r}")
        return value
    except ValueError as error:
        raise ConfigError(f"{given.origin}: {declared.key} {error}") from None


def _read_int(value: Any) -> int:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"must be a whole number, not {value!r}")


def _read_float(value: Any) -> float:
    number = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"must be a number, not {value!r}")
    return number


_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _read_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUTHS:
        return _TRUTHS[value.lower()]
    raise ValueError(f"must be true or false, not {value!r}")


def _read_str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {value!r}; put it in quotes")
    return value


KINDS: Mapping[type, Callable[[Any], Any]] = {
    int: _read_int,
    float: _read_float,
    bool: _read_bool,
    str: _read_str,
}
"""Allowed types of fields, each with its parser."""


def declared_fields(owner: type, section: str, *skipped: str) -> Iterator[Field]:
    """Yield the settings that a section declares, without sections within it and those that are `skipped`."""
    hints = typing.get_type_hints(owner)
    for declared in dataclasses.fields(owner):
        hint = hints[declared.name]
        if dataclasses.is_dataclass(hint) or declared.name in skipped:
            continue
        base, is_optional, choices = _unfold(hint)
        yield Field(
            section=section,
            name=declared.name,
            type=base,
            is_optional=is_optional,
            choices=choices or declared.metadata.get("choices") or (),
            default=declared.default,
            short_flag=declared.metadata.get("short_flag"),
            help=declared.metadata["help"],
        )


def _unfold(hint: Any) -> tuple[type, bool, tuple[Any, ...]]:
    """(type, whether None is allowed, the choices of a Literal) of an annotation."""
    is_optional = False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (arg for arg in typing.get_args(hint) if arg is not types.NoneType)
        is_optional = True
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        return type(choices[0]), is_optional, choices
    if hint not in KINDS:
        raise TypeError(f"a configuration field cannot be a {hint!r}")
    return hint, is_optional, ()
