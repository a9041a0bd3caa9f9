"""Write an entry of `models:` as text, or into a configuration file without changing the rest of it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.config import ConfigError, resolve
from server.importing.problems import CannotImport

_MODELS = re.compile(r"^models:[ \t]*(#.*)?$", re.MULTILINE)


def as_text(name: str, values: Mapping[str, Any], indent: int = 2) -> str:
    """Return the entry as lines of YAML under `models:`."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """YAML dumper that writes multi-line texts as blocks."""

    def of_text(dumper: Any, text: str) -> Any:
        is_plain = text.replace("\n", "").isprintable()
        style = '"' if not is_plain else "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, of_text)
    content = {name: dict(values)}
    written = yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=sys.maxsize)
    lines = written.split("\n")
    return "\n".join(f"{' ' * indent}{line}" if line.strip() else line for line in lines)


def add_to(file: Path, name: str, values: Mapping[str, Any]) -> None:
    """Add the entry to a configuration file, which is created if missing. Raises CannotImport.

    The file is replaced as a whole, after its new content has been read as a configuration.
    """
    file = file.resolve()  # a link stays a link
    part = file.with_name(f"{file.name}.part")
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        part.write_text(_with_entry(before, file, name, values), encoding="utf-8")
        try:
            resolve(part, {}, {})
        except ConfigError as error:
            message = str(error).replace(str(part), str(file))
            raise CannotImport(f"the model {name!r} cannot be added: {message}") from None
        if file.exists():
            shutil.copymode(file, part)
        os.replace(part, file)
    except OSError as error:
        raise CannotImport(f"{file} cannot be written: {error.strerror or error}") from None
    except UnicodeError:
        raise CannotImport(f"{file} is no text in UTF-8") from None
    finally:
        part.unlink(missing_ok=True)


def _with_entry(before: str, file: Path, name: str, values: Mapping[str, Any]) -> str:
    import yaml

    try:
        content = yaml.safe_load(before)
    except (yaml.YAMLError, RecursionError, ValueError):
        raise CannotImport(f"{file} is not readable as YAML") from None
    if not isinstance(content or {}, dict):
        raise CannotImport(f"{file} is no configuration file")
    models = (content or {}).get("models")
    if isinstance(models, dict) and name in models:
        raise CannotImport(f"{file} has a model {name!r} already; give this one another name with --name")
    if "models" not in (content or {}):
        gap = "" if not before or before.endswith("\n") else "\n"
        return f"{before}{gap}models:\n{as_text(name, values)}"
    found = _MODELS.search(before)
    if found is None:
        raise CannotImport(f"{file} has its models in a line; add this one by hand:\n{as_text(name, values)}")
    rest = before[found.end() :]
    first = re.search(r"^( +)[^ #\n]", rest, re.MULTILINE) if models else None
    entry = as_text(name, values, len(first[1]) if first else 2)
    return f"{before[: found.end()]}\n{entry.rstrip()}{rest if rest.startswith(chr(10)) else chr(10) + rest}"
