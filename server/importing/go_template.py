"""Convert TEMPLATE of a Modelfile from Go's template language to a Jinja chat template.

Only templates of one turn are converted: texts, `.System`, `.Prompt` and `.Response`, and conditions on them, which
cover most handwritten Modelfiles. Such a template is repeated for every turn; in the last turn, the part after the
response is left out. Anything else in a template is named in the error and not converted.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from server.importing.problems import CannotImport

_ACTION = re.compile(r"\{\{(-(?=\s))?\s*(.*?)\s*((?<=\s)-)?\}\}", re.DOTALL)
_FIELD = re.compile(r"\.(System|Prompt|Response)")
_COMMENT = re.compile(r"/\*.*\*/", re.DOTALL)
_MOST_CHARS = 100_000
_MOST_DEPTH = 50


@dataclass(slots=True)
class _If:
    name: str
    then: list[_Node] = field(default_factory=list)
    otherwise: list[_Node] = field(default_factory=list)
    has_else: bool = False


@dataclass(frozen=True, slots=True)
class _Field:
    name: str


_Node = str | _Field | _If


def to_jinja(text: str, *, begins_with_bos: bool) -> str:
    """Return the chat template. `begins_with_bos`: the tokenizer puts its first token before a prompt.

    Raises CannotImport for a template with unsupported parts.
    """
    if len(text) > _MOST_CHARS:
        raise CannotImport(f"it has {len(text)} characters")
    nodes = _parse(text)
    names = set(_names(nodes))
    if "Prompt" not in names:
        raise CannotImport("it has no .Prompt")
    if "Response" not in names:
        nodes = [*nodes, _Field("Response")]
    elif not any(isinstance(node, _Field) and node.name == "Response" for node in nodes):
        raise CannotImport("its .Response stands in a condition")
    last = next(place for place, node in enumerate(nodes) if isinstance(node, _Field) and node.name == "Response")
    turn, ending = _written(nodes), _written(nodes[: last + 1])
    values = "ns.system, ns.prompt, ns.response"
    arguments = "system, prompt, response"
    begin = "{{ bos_token }}" if begins_with_bos else ""
    whole = f"{{{{ turn({values}) }}}}{{% set ns.system = '' %}}{{% set ns.prompt = '' %}}{{% set ns.response = '' %}}"
    return (
        f"{{% macro turn({arguments}) %}}{turn}{{% endmacro %}}"
        f"{{% macro ending({arguments}) %}}{ending}{{% endmacro %}}"
        f"{begin}{{% set ns = namespace(system='', prompt='', response='') %}}"
        "{% for message in messages %}"
        "{% if message.role == 'system' %}"
        f"{{% if ns.prompt or ns.response %}}{whole}{{% endif %}}{{% set ns.system = message.content %}}"
        "{% elif message.role == 'user' %}"
        f"{{% if ns.response %}}{whole}{{% endif %}}{{% set ns.prompt = message.content %}}"
        "{% elif message.role == 'assistant' %}{% set ns.response = message.content %}"
        "{% else %}{{ raise_exception('this template has no role ' + message.role) }}{% endif %}"
        "{% endfor %}"
        f"{{% if ns.response %}}{whole}"
        f"{{% if add_generation_prompt %}}{{{{ ending({values}) }}}}{{% endif %}}"
        f"{{% else %}}{{{{ ending({values}) }}}}{{% endif %}}"
    )


def _parse(text: str) -> list[_Node]:
    """Parse the template. Raises CannotImport."""
    root: list[_Node] = []
    opened: list[_If] = []
    place, is_trimmed = 0, False
    for found in _ACTION.finditer(text):
        before = text[place : found.start()]
        before = before.lstrip() if is_trimmed else before
        nodes = _within(root, opened)
        _add_text(nodes, before.rstrip() if found[1] else before)
        _take(found[2], nodes, opened)
        place, is_trimmed = found.end(), bool(found[3])
    if opened:
        raise CannotImport("a condition has no end")
    rest = text[place:]
    if "{{" in rest:
        raise CannotImport("a {{ is not closed")
    _add_text(root, rest.lstrip() if is_trimmed else rest)
    return root


def _within(root: list[_Node], opened: list[_If]) -> list[_Node]:
    """Return the list that takes the following nodes."""
    if not opened:
        return root
    return opened[-1].otherwise if opened[-1].has_else else opened[-1].then


def _add_text(nodes: list[_Node], text: str) -> None:
    if text:
        nodes.append(text)


def _take(action: str, nodes: list[_Node], opened: list[_If]) -> None:
    """Take one action of the template. Raises CannotImport for an unsupported one."""
    what, _, of = action.partition(" ")
    condition = _FIELD.fullmatch(of.strip())
    if (is_field := _FIELD.fullmatch(action)) is not None:
        nodes.append(_Field(is_field[1]))
    elif what == "if" and condition is not None and len(opened) < _MOST_DEPTH:
        opened.append(_If(condition[1]))
        nodes.append(opened[-1])
    elif action == "else" and opened and not opened[-1].has_else:
        opened[-1].has_else = True
    elif action == "end" and opened:
        opened.pop()
    elif not _COMMENT.fullmatch(action):
        raise CannotImport(f"it says {{{{ {action[:40]} }}}}")


def _names(nodes: list[_Node]) -> list[str]:
    found: list[str] = []
    for node in nodes:
        if isinstance(node, _Field):
            found.append(node.name)
        elif isinstance(node, _If):
            found += _names([*node.then, *node.otherwise])
    return found


def _written(nodes: list[_Node]) -> str:
    """Return the nodes in Jinja, with texts as literals that Jinja does not interpret."""
    found = []
    for node in nodes:
        if isinstance(node, str):
            found.append(f"{{{{ {json.dumps(node, ensure_ascii=False)} }}}}")
        elif isinstance(node, _Field):
            found.append(f"{{{{ {node.name.lower()} }}}}")
        else:
            otherwise = f"{{% else %}}{_written(node.otherwise)}" if node.otherwise else ""
            found.append(f"{{% if {node.name.lower()} %}}{_written(node.then)}{otherwise}{{% endif %}}")
    return "".join(found)
