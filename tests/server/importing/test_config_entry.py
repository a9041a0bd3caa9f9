"""Entries of `models:` written into configuration files, of which all else stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from server.config import resolve
from server.importing.config_entry import add_to, as_text
from server.importing.problems import CannotImport

VALUES: dict[str, Any] = {
    "model": "/models/a",
    "context": {"limit": 2048},
    "defaults": {"temperature": 0.5, "stop": ["<|x|>", "# b"], "system": "One.\n\nTwo: 'ö' \"three\"\n", "seed": 2**60},
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "models:\n{entry}"),
        ("", "models:\n{entry}"),
        ("port: 81  # mine", "port: 81  # mine\nmodels:\n{entry}"),
        ("models:\nport: 81\n", "models:\n{entry}port: 81\n"),
        ("# a\nmodels:  # all\n  b: x\n\nport: 81\n", "# a\nmodels:  # all\n{entry}  b: x\n\nport: 81\n"),
        ("models:\n\n    # the other\n    b: x", "models:\n{entry}\n    # the other\n    b: x"),
    ],
)
def test_the_rest_stays(tmp_path: Path, before: str | None, after: str) -> None:
    file = tmp_path / "c.yaml"
    if before is not None:
        file.write_text(before)
    add_to(file, "mario", VALUES)
    indent = 4 if before and "    b:" in before else 2
    assert file.read_text() == after.format(entry=as_text("mario", VALUES, indent))
    (entry,) = (each for each in resolve(file, {}, {}).config.models if each.name == "mario")
    assert entry.model == "/models/a" and entry.own == {"context.limit": 2048}
    assert entry.defaults.as_written() == VALUES["defaults"]
    assert [each.name for each in tmp_path.iterdir()] == ["c.yaml"]


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("a \n\t:#'\"\\-|>é\u2028\x85\x07😀&*!%@`{}[]"), max_size=12), st.sampled_from([2, 4]))
def test_any_text_is_read_as_it_was_written(text: str, indent: int) -> None:
    values = {"model": "x", "defaults": {"system": text, "stop": [f"{text}a"]}}
    assert yaml.safe_load("models:\n" + as_text("m:1", values, indent)) == {"models": {"m:1": values}}


@pytest.mark.parametrize(
    ("before", "says"),
    [
        ("models: {b: x}", "has its models in a line; add this one by hand:\n  mario:"),
        ("models:\n  mario: x\n", "has a model 'mario' already; give this one another name with --name"),
        ("model: x\n", "c.yaml: model 'x' applies only to a server of one model"),
        ("prot: 1\n", "c.yaml: unknown key 'prot'"),
        ("a: [", "is not readable as YAML"),
        ("- a", "is no configuration file"),
        ("models: 3", "c.yaml has its models in a line"),
    ],
)
def test_files_that_cannot_take_it_stay_as_they_are(tmp_path: Path, before: str, says: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(before)
    with pytest.raises(CannotImport) as caught:
        add_to(file, "mario", VALUES)
    assert says in str(caught.value)
    assert file.read_text() == before
    assert [each.name for each in tmp_path.iterdir()] == ["c.yaml"]


def test_a_link_and_its_file_s_mode_stay(tmp_path: Path) -> None:
    file, link = tmp_path / "c.yaml", tmp_path / "link.yaml"
    file.write_text("port: 81\n")
    file.chmod(0o600)
    link.symlink_to(file)
    add_to(link, "mario", VALUES)
    assert link.is_symlink() and "mario" in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_name_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CannotImport, match="is not a valid name"):
        add_to(tmp_path / "c.yaml", "../mario", VALUES)
    with pytest.raises(CannotImport, match="cannot be written: No such file"):
        add_to(tmp_path / "none" / "c.yaml", "mario", VALUES)
    assert list(tmp_path.iterdir()) == []
