"""Convert a Modelfile's instructions to an entry of `models:`, with a note on everything that has no effect."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from server.config_sources import ConfigError
from server.importing.modelfile import Instruction
from server.importing.problems import CannotImport
from server.request_defaults import MAX_STOPS, ROLES, RequestDefaults, read_defaults

_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "num_predict": "max_tokens",
}
"""Names of the defaults, by parameter."""
_WHOLE = frozenset({"top_k", "seed", "num_predict"})
_LOADING = frozenset(
    {
        *("num_gpu", "main_gpu", "num_thread", "num_batch", "numa", "low_vram", "f16_kv", "vocab_only"),
        *("use_mmap", "use_mlock", "logits_all", "num_gqa", "embedding_only", "rope_frequency_base"),
        *("rope_frequency_scale",),
    }
)
"""Parameters of loading, which the configuration sets instead."""
_OTHERS = frozenset(
    {"repeat_last_n", "num_keep", "tfs_z", "mirostat", "mirostat_eta", "mirostat_tau", "penalize_newline"}
)
_REASONS = {
    "renderer": "the model's own chat template is used",
    "parser": "answers are taken apart as the model's chat template has them",
    "draft": "no draft model is used",
    "requires": "it is about Ollama's version",
}


@dataclass(slots=True)
class Entry:
    """Result of reading a Modelfile. `source`: the value of FROM."""

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    """Values of the entry, except its `model`."""
    adapter: str | None = None
    """Value of ADAPTER."""
    template: Instruction | None = None
    """The last TEMPLATE."""
    notes: list[str] = field(default_factory=list)
    """Instructions without effect, each with its line and the reason."""

    @property
    def defaults(self) -> RequestDefaults:
        return read_defaults(self.values.get("defaults", {}), "defaults")


def build(instructions: Iterable[Instruction]) -> Entry:
    """Return the entry. Raises CannotImport for an invalid value, with its line."""
    builder = _Builder()
    for instruction in instructions:
        builder.take(instruction)
    return builder.entry()


class _Builder:
    def __init__(self) -> None:
        self._source: str | None = None
        self._adapter: str | None = None
        self._template: Instruction | None = None
        self._defaults: dict[str, Any] = {}
        self._context: int | None = None
        self._notes: list[str] = []
        self._takes: dict[str, Callable[[Instruction], None]] = {
            "from": self._take_source,
            "parameter": self._take_parameter,
            "system": self._take_system,
            "message": self._take_message,
            "adapter": self._take_adapter,
            "template": self._take_template,
            "license": lambda _: None,
        }

    def take(self, instruction: Instruction) -> None:
        take = self._takes.get(instruction.name)
        if take is not None:
            take(instruction)
        else:
            self._note(instruction, _REASONS[instruction.name])

    def entry(self) -> Entry:
        assert self._source is not None
        values: dict[str, Any] = {}
        if self._context is not None:
            values["context"] = {"limit": self._context}
        if self._defaults:
            values["defaults"] = read_defaults(self._defaults, "defaults").as_written()
        return Entry(self._source, values, self._adapter, self._template, self._notes)

    def _note(self, instruction: Instruction, why: str) -> None:
        name = f"{instruction.name.upper()} {instruction.key}".strip()
        self._notes.append(f"line {instruction.line}: {name} has no effect: {why}")

    def _take_source(self, instruction: Instruction) -> None:
        if self._source is not None:
            raise CannotImport(f"line {instruction.line}: a second FROM; one model is served from one")
        self._source = instruction.value

    def _take_system(self, instruction: Instruction) -> None:
        self._set(instruction, "system", instruction.value)

    def _take_message(self, instruction: Instruction) -> None:
        if instruction.key not in ROLES:
            roles = ", ".join(ROLES)
            raise CannotImport(f"line {instruction.line}: a MESSAGE is of {roles}, not {instruction.key[:40]!r}")
        message = {"role": instruction.key, "content": instruction.value}
        self._set(instruction, "messages", [*self._defaults.get("messages", []), message])

    def _take_adapter(self, instruction: Instruction) -> None:
        if self._adapter is not None:
            raise CannotImport(f"line {instruction.line}: a second ADAPTER; one is applied to a model")
        self._adapter = instruction.value

    def _take_template(self, instruction: Instruction) -> None:
        self._template = instruction

    def _take_parameter(self, instruction: Instruction) -> None:
        name = instruction.key
        if name == "stop":
            self._add_stop(instruction)
        elif name == "num_ctx":
            self._context = _whole(instruction, least=1)
        elif name in _NAMES:
            self._take_number(instruction)
        elif name in _LOADING:
            self._note(instruction, "the server decides that itself")
        elif name in _OTHERS:
            self._note(instruction, "there is no such way to sample here")
        else:
            raise CannotImport(f"line {instruction.line}: there is no parameter {name[:40]!r}")

    def _add_stop(self, instruction: Instruction) -> None:
        stops = [*self._defaults.get("stop", []), instruction.value]
        if len(stops) > MAX_STOPS:
            self._note(instruction, f"there are {MAX_STOPS} already")
        else:
            self._set(instruction, "stop", stops)

    def _take_number(self, instruction: Instruction) -> None:
        name = instruction.key
        value = _whole(instruction) if name in _WHOLE else _number(instruction)
        if value < 0 and name in ("seed", "num_predict"):  # any number, and as many as fit
            self._defaults.pop(_NAMES[name], None)
            return
        if name == "top_p" and value == 0:
            name, value = "top_k", 1
        self._set(instruction, _NAMES[name], value)

    def _set(self, instruction: Instruction, name: str, value: Any) -> None:
        try:
            read_defaults({name: value}, "defaults")
        except ConfigError as error:
            said = f"{instruction.name.upper()} {instruction.key}".strip()
            raise CannotImport(f"line {instruction.line}: {said} {str(error).partition(' ')[2]}") from None
        self._defaults[name] = value


def _whole(instruction: Instruction, least: int | None = None) -> int:
    value = _number(instruction)
    if value != int(value) or (least is not None and value < least):
        raise _wrong(instruction, "a whole number" if least is None else f"a whole number from {least}")
    return int(instruction.value) if instruction.value.lstrip("+-").isdecimal() else int(value)


def _number(instruction: Instruction) -> float:
    try:
        value = float(instruction.value)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _wrong(instruction, "a number")
    return value


def _wrong(instruction: Instruction, wanted: str) -> CannotImport:
    name = f"{instruction.name.upper()} {instruction.key}"
    return CannotImport(f"line {instruction.line}: {name} must be {wanted}, not {instruction.value[:40]!r}")
