"""Modelfiles: the grammar, the entries that they come to, and what has no effect or is wrong, with its line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.importing.entry import Entry, build
from server.importing.modelfile import NAMES, Instruction, parse
from server.importing.problems import CannotImport

MARIO = '''# a comment
from llama3.2
PARAMETER temperature 0.6
parameter num_ctx 2048
PARAMETER stop "<|eot_id|>"
PARAMETER stop   two words
TEMPLATE """{{ if .System }}<s>
{{ .System }}
{{ end }}{{ .Prompt }}"""
SYSTEM """
You are Mario, a "plumber".
"""
Message user Is Toronto in Canada?
MESSAGE assistant "yes"
LICENSE "MIT"
'''


def entry(text: str) -> Entry:
    return build(parse(text))


def test_the_grammar() -> None:
    assert parse(MARIO) == [
        Instruction(2, "from", "", "llama3.2"),
        Instruction(3, "parameter", "temperature", "0.6"),
        Instruction(4, "parameter", "num_ctx", "2048"),
        Instruction(5, "parameter", "stop", "<|eot_id|>"),
        Instruction(6, "parameter", "stop", "two words"),
        Instruction(7, "template", "", "{{ if .System }}<s>\n{{ .System }}\n{{ end }}{{ .Prompt }}"),
        Instruction(10, "system", "", '\nYou are Mario, a "plumber".\n'),
        Instruction(13, "message", "user", "Is Toronto in Canada?"),
        Instruction(14, "message", "assistant", "yes"),
        Instruction(15, "license", "", "MIT"),
    ]
    assert [each.value for each in parse('FROM a\r\nSYSTEM "one\r\ntwo"\r\n\ufeff'.removesuffix("\ufeff"))] == [
        "a",
        "one\ntwo",
    ]
    assert parse('\ufeffFROM a\nSYSTEM "say "hi" to all"')[1].value == 'say "hi" to all'


def test_the_entry() -> None:
    found = entry(MARIO)
    assert found.source == "llama3.2"
    assert found.values == {
        "context": {"limit": 2048},
        "defaults": {
            "temperature": 0.6,
            "stop": ["<|eot_id|>", "two words"],
            "system": '\nYou are Mario, a "plumber".\n',
            "messages": [
                {"role": "user", "content": "Is Toronto in Canada?"},
                {"role": "assistant", "content": "yes"},
            ],
        },
    }
    assert found.notes == []
    assert found.template is not None and found.template.line == 7


def test_the_seeds_file() -> None:
    found = entry(
        "FROM /home/snowkylin/DeepSeek-R1-UD-IQ1_M.gguf\nPARAMETER num_gpu 28\nPARAMETER num_ctx 2048\n"
        'PARAMETER temperature 0.6\nTEMPLATE "<｜User｜>{{ .Prompt }}<｜Assistant｜>"\n'
    )
    assert found.source == "/home/snowkylin/DeepSeek-R1-UD-IQ1_M.gguf"
    assert found.values == {"context": {"limit": 2048}, "defaults": {"temperature": 0.6}}
    assert found.notes == [
        "line 2: PARAMETER num_gpu has no effect: the server decides that itself",
    ]
    assert found.template is not None
    assert (found.template.line, found.template.value) == (5, "<｜User｜>{{ .Prompt }}<｜Assistant｜>")


@pytest.mark.parametrize(
    ("line", "defaults"),
    [
        ("PARAMETER repeat_penalty 1.1", {"repetition_penalty": 1.1}),
        ("PARAMETER num_predict 100", {"max_tokens": 100}),
        ("PARAMETER num_predict -1", {}),
        ("PARAMETER seed 18446744073709551615", {"seed": 2**64 - 1}),
        ("PARAMETER seed -1", {}),
        ("PARAMETER seed 3\nPARAMETER seed -1", {}),
        ("PARAMETER top_k 40", {"top_k": 40}),
        ("PARAMETER top_p 0", {"top_k": 1}),
        ("PARAMETER TOP_P 0.5", {"top_p": 0.5}),
        ("PARAMETER temperature 0", {"temperature": 0.0}),
        ("PARAMETER min_p 0.05\nPARAMETER min_p 0.1", {"min_p": 0.1}),
        (
            "PARAMETER presence_penalty -1\nPARAMETER frequency_penalty 1",
            {"presence_penalty": -1.0, "frequency_penalty": 1.0},
        ),
    ],
)
def test_parameters(line: str, defaults: dict[str, Any]) -> None:
    assert entry(f"FROM a\n{line}").values.get("defaults", {}) == defaults


@pytest.mark.parametrize("name", ["use_mmap", "num_thread", "mirostat", "repeat_last_n", "num_keep", "numa"])
def test_what_has_no_effect_is_reported(name: str) -> None:
    (note,) = entry(f"FROM a\nPARAMETER {name} 1").notes
    assert note.startswith(f"line 2: PARAMETER {name} has no effect: ")


def test_more_stops_than_are_looked_for() -> None:
    found = entry("FROM a\n" + "\n".join(f"PARAMETER stop s{place}" for place in range(18)))
    assert len(found.values["defaults"]["stop"]) == 16
    assert found.notes == [f"line {line}: PARAMETER stop has no effect: there are 16 already" for line in (18, 19)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it has no FROM, the model that it is about"),
        ("PARAMETER temperature 1", "it has no FROM"),
        ("FROM a\nFROM b", "line 2: a second FROM; one model is served from one"),
        ("FROM", "line 1: FROM has no value"),
        ('FROM ""', "line 1: FROM has no value"),
        ("FROM a\nSYSTEM", "line 2: SYSTEM has no value"),
        ("FROM a\nPARAMETER", "line 2: PARAMETER has no value"),
        ("FROM a\nPARAMETER stop", "line 2: PARAMETER stop has no value"),
        ("FROM a\nRUN rm -rf /", "line 2: 'RUN rm -rf /' is no instruction of a Modelfile"),
        ("FROM a\n{}", "line 2: '{}' is no instruction"),
        ('FROM a\nSYSTEM """abc\n\n', 'line 2: the quotes """ are not closed'),
        ('FROM a\nSYSTEM "abc\n', 'line 2: the quotes " are not closed'),
        ("FROM a\nPARAMETER temperature hot", "line 2: PARAMETER temperature must be a number, not 'hot'"),
        ("FROM a\nPARAMETER temperature nan", "must be a number, not 'nan'"),
        ("FROM a\nPARAMETER temperature 9", "line 2: PARAMETER temperature must be a number from 0 to 2"),
        ("FROM a\nPARAMETER top_k 1.5", "line 2: PARAMETER top_k must be a whole number, not '1.5'"),
        ("FROM a\nPARAMETER num_ctx 0", "line 2: PARAMETER num_ctx must be a whole number from 1, not '0'"),
        ("FROM a\nPARAMETER colour red", "line 2: there is no parameter 'colour'"),
        ("FROM a\nMESSAGE tool x", "line 2: a MESSAGE is of system, user, assistant, not 'tool'"),
        ("FROM a\nADAPTER ./a\nADAPTER ./b", "line 3: a second ADAPTER; one is applied to a model"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, says: str) -> None:
    with pytest.raises(CannotImport) as caught:
        entry(text)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_bounds() -> None:
    with pytest.raises(CannotImport, match="more than 10000 instructions"):
        parse("FROM a\n" + "LICENSE b\n" * 10_001)
    with pytest.raises(CannotImport, match="characters; at most"):
        parse("FROM a\nSYSTEM " + "x" * (5 << 20))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*sorted(NAMES), "FROM a\nsystem", "x"]), st.text(max_size=12)), max_size=6))
@example([("parameter", "top_k 1e400")])
def test_any_text_is_an_entry_or_a_line(parts: list[tuple[str, str]]) -> None:
    text = "FROM a\n" + "\n".join(f"{name} {value}" for name, value in parts)
    try:
        found = entry(text)
    except CannotImport as error:
        assert str(error)
    else:
        assert found.defaults.as_written() == found.values.get("defaults", {})


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(exclude_characters='"\r', codec="utf-8"), min_size=1, max_size=40))
def test_what_stands_between_three_quotes_is_kept(value: str) -> None:
    assert parse(f'FROM a\nSYSTEM """{value}"""')[1].value == value
