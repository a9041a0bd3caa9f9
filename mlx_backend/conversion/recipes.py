"""Recipes: ordered rules that define how each tensor is stored; and the floors of all of them. No MLX.

A recipe is a YAML file, one of those shipped or a user's own. The first rule that matches a tensor decides; a tensor
that no rule matches stays as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.kinds import KINDS, kind_of, layer_of
from mlx_backend.conversion.spec import FULL_BITS, Spec, fitting, read_spec

_FOLDER = Path(__file__).parent / "shipped"
_MOST_BYTES = 1 << 20
_MOST_RULES = 10_000
_KEYS = ("description", "rules")
_RULE_KEYS = ("match", "kind", "layers", "bits", "group_size", "mode", "exact")
_ROUTER_FLOOR = Spec(8)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A weight that can be quantized: its path, the length of its rows, and the model's own preference.

    `own`: the result of the model's `quant_predicate`: False for "never", a format for "at least so", True for "any
    format".
    """

    path: str
    width: int
    own: Spec | bool = True


Chooser = Callable[[Candidate], Spec | None]
"""Decides how a weight is stored; None leaves it as it is."""


@dataclass(frozen=True, slots=True)
class Rule:
    """`spec` for the paths that match one of `globs`, are of one of `kinds` and in one of `layers`; empty: any."""

    spec: Spec | None
    globs: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    layers: tuple[int | str, ...] = ()

    def matches(self, path: str, num_layers: int) -> bool:
        return (
            (not self.globs or any(fnmatchcase(path, glob) for glob in self.globs))
            and (not self.kinds or kind_of(path) in self.kinds)
            and (not self.layers or any(_is_among(layer, path, num_layers) for layer in self.layers))
        )


@dataclass(frozen=True, slots=True)
class Recipe:
    """Ordered rules, of which the first match decides."""

    name: str
    rules: tuple[Rule, ...]
    description: str = ""
    source: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """Document that the rules were read from."""

    def chooser(self, num_layers: int) -> Chooser:
        """Return a function that applies the rules and the floors to a model of `num_layers`."""

        def choose(candidate: Candidate) -> Spec | None:
            rule = next((rule for rule in self.rules if rule.matches(candidate.path, num_layers)), None)
            return raised(None if rule is None else rule.spec, candidate)

        return choose


def plain(spec: Spec | None) -> Chooser:
    """Return mlx_lm.convert's choices: `spec` for every weight, unless the model's own predicate differs."""

    def choose(candidate: Candidate) -> Spec | None:
        if spec is None or candidate.own is False or not spec.divides(candidate.width):
            return None
        if isinstance(candidate.own, Spec):
            return candidate.own if candidate.own.divides(candidate.width) else None
        return spec

    return choose


def assigned(specs: Mapping[str, Spec | None]) -> Chooser:
    """Return a function that stores each path as `specs` defines, within the floors."""
    return lambda candidate: raised(specs.get(candidate.path), candidate)


def raised(spec: Spec | None, candidate: Candidate) -> Spec | None:
    """Return `spec`, or the floor if that is higher, in groups that divide the weight's rows."""
    if spec is None or candidate.own is False:
        return None
    floors = [candidate.own] if isinstance(candidate.own, Spec) else []
    if kind_of(candidate.path) == "router":
        floors.append(_ROUTER_FLOOR)
    for floor in floors:
        spec = floor if floor.bits > spec.bits else spec
    return fitting(spec, candidate.width)


def _is_among(layer: int | str, path: str, num_layers: int) -> bool:
    """Return whether a path is in a layer, in a range of them (`3-9`), or in one of mlx-lm's selections.

    The selections count what is in no layer as the first, as mlx-lm does.
    """
    own = layer_of(path)
    index, eighth = own or 0, num_layers // 8
    if layer == "first-eighth":
        return index < eighth
    if layer == "last-eighth":
        return index >= 7 * num_layers // 8
    if layer == "every-third":
        return (index - eighth) % 3 == 2
    if isinstance(layer, int):
        return own == (layer if layer >= 0 else num_layers + layer)
    first, _, last = layer.partition("-")
    return own is not None and int(first) <= own <= int(last)


# --- files


@cache
def shipped() -> tuple[str, ...]:
    """Return the names of the recipes that come with Pippin."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))


def find_recipe(name: str) -> Recipe:
    """Return a shipped recipe, by its name, or the one in a file. Raises ConversionError."""
    if name in shipped():
        return read_recipe(_FOLDER / f"{name}.yaml")
    file = Path(name).expanduser()
    if not file.is_file():
        near = difflib.get_close_matches(name, shipped(), n=1)
        hint = f"do you mean {near[0]}?" if near else f"shipped are {', '.join(shipped())}"
        raise ConversionError(f"there is no recipe and no file {name}; {hint}")
    return read_recipe(file)


def read_recipe(file: Path) -> Recipe:
    """Read a recipe's file. Raises ConversionError."""
    import yaml

    try:
        if file.stat().st_size > _MOST_BYTES:
            raise ConversionError(f"{file} has more than {_MOST_BYTES >> 20} MiB; a recipe is a short YAML file")
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConversionError(f"{file} cannot be read as YAML ({' '.join(str(error).split())[:200]})") from None
    try:
        return parse_recipe(file.stem, document)
    except ConversionError as error:
        raise ConversionError(f"{file}: {error}") from None


def parse_recipe(name: str, document: Any) -> Recipe:
    """Return the recipe of a document. Raises ConversionError."""
    _check_keys(document, _KEYS, "a recipe")
    rules = document.get("rules")
    if not isinstance(rules, list) or not rules or len(rules) > _MOST_RULES:
        raise ConversionError("`rules` is a list of at least one rule")
    parsed = tuple(_parse_rule(rule, f"rule {place}") for place, rule in enumerate(rules, 1))
    return Recipe(name, parsed, str(document.get("description", "")), document)


def _parse_rule(rule: Any, where: str) -> Rule:
    _check_keys(rule, _RULE_KEYS, where)
    if rule.get("exact") not in (None, True, False):
        raise ConversionError(f"{where}: `exact` is true or false")
    is_exact = bool(rule.get("exact"))
    if is_exact and {"bits", "group_size", "mode"} & rule.keys():
        raise ConversionError(f"{where}: `exact` keeps a tensor as it is; leave out bits, group_size and mode")
    numbers = [rule.get(key) for key in ("bits", "group_size")]
    if any(number is not None and type(number) is not int for number in numbers):
        raise ConversionError(f"{where}: bits and group_size are whole numbers")
    try:
        spec = read_spec(FULL_BITS if is_exact else numbers[0], numbers[1], rule.get("mode", "affine"))
    except ConversionError as error:
        raise ConversionError(f"{where}: {error}") from None
    kinds = _texts(rule.get("kind"), f"{where}: `kind`")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConversionError(f"{where}: there is no kind {unknown[0]!r}; kinds are {', '.join(KINDS)}")
    return Rule(spec, _texts(rule.get("match"), f"{where}: `match`"), kinds, _layers(rule.get("layers"), where))


def _check_keys(document: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(document, dict):
        raise ConversionError(f"{where} is a mapping of {', '.join(known)}")
    if unknown := [str(key) for key in document if key not in known]:
        raise ConversionError(f"{where} has an unknown key {unknown[0]!r}; keys are {', '.join(known)}")


def _texts(value: Any, where: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(each, str) for each in values):
        raise ConversionError(f"{where} is a text, or a list of them")
    return tuple(values)


def _layers(value: Any, where: str) -> tuple[int | str, ...]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    for each in values:
        is_word = each in ("first-eighth", "last-eighth", "every-third")
        first, dash, last = each.partition("-") if isinstance(each, str) else ("", "", "")
        is_range = dash and first.isdecimal() and last.isdecimal()
        if type(each) is not int and not is_word and not is_range:
            words = "first-eighth, last-eighth, every-third"
            raise ConversionError(f"{where}: `layers` are numbers, ranges such as 3-9, or {words}, not {each!r}")
    return tuple(values)
