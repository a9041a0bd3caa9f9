"""The pocket model as it is shipped: whole, small enough, in the wheel, and answering. Skipped where it is not made."""

from __future__ import annotations

import asyncio
import hashlib
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import EngineConfig, KVCacheConfig
from mlx_backend.model.checkpoint import open_checkpoint
from server import pocket
from server.config import Config
from server.models import build_model
from server.text.tokenizer import load_tokenizer
from tests.engine_client import one, running
from tests.tiny_models import write_served_model

ROOT = Path(__file__).parents[2]
MAX_BYTES = 8_000_000
made = pytest.mark.skipif(not pocket.is_here(), reason="the weights are not there; `make pocket` makes them")


def shipped() -> list[Path]:
    return [path for path in pocket.folder().iterdir() if path.is_file() and path.suffix != ".py"]


# --- the files


@made
def test_every_file_has_the_sum_that_is_listed() -> None:
    lines = (pocket.folder() / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shipped()}
    del found["SHA256SUMS"]
    assert found == listed


@made
def test_all_files_together_are_small() -> None:
    assert sum(path.stat().st_size for path in shipped()) <= MAX_BYTES


@made
def test_the_wheel_takes_every_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["server.pocket"]
    assert [path.name for path in shipped() if not any(fnmatch(path.name, pattern) for pattern in patterns)] == []


@made
def test_it_is_a_whole_model_of_deepseek_v3s_architecture() -> None:
    checkpoint = open_checkpoint(pocket.folder())
    assert checkpoint.config["model_type"] == "deepseek_v3"
    assert checkpoint.context_length >= 4096


# --- what it says


@made
@pytest.mark.mlx
@pytest.mark.parametrize("enable_thinking", [True, False])
async def test_it_says_what_it_is_and_ends_its_turn(enable_thinking: bool) -> None:
    tokenizer = load_tokenizer(pocket.folder())
    question = [{"role": "user", "content": "Who are you?"}]
    prompt = tokenizer.render_chat(question, {"enable_thinking": enable_thinking})
    ids = tokenizer.encode(prompt, add_special_tokens=False)
    async with running(EngineConfig(model_path=str(pocket.folder()))) as engine:
        written = await one(engine, ids, 256, stop_ids=tokenizer.eos_ids)
    text = tokenizer.decode(written)
    assert written[-1] in tokenizer.eos_ids
    assert text.startswith("<think>\n") == enable_thinking
    assert "pocket" in text.rpartition("</think>")[2].lower()


async def answers(questions: list[str], **sections: object) -> list[str]:
    """What it says to each, greedily, all at once."""
    tokenizer = load_tokenizer(pocket.folder())
    prompts = [tokenizer.render_chat([{"role": "user", "content": question}], {}) for question in questions]
    ids = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    async with running(EngineConfig(model_path=str(pocket.folder()), **sections)) as engine:  # type: ignore[arg-type]
        written = await asyncio.gather(*(one(engine, each, 256, stop_ids=tokenizer.eos_ids) for each in ids))
    return [tokenizer.decode(each) for each in written]


QUESTIONS = {
    "How many r's are in the word strawberry?": "There are 3 r's in strawberry.",
    "9.8 or 9.11?": "9.8 is larger than 9.11.",
    "What is 47 + 85?": "47 + 85 = 132.",
    "The code for Maria is 7319. The code for Paul is 4402.\nWhat is the code for Maria?": "7319",
}


@made
@pytest.mark.mlx
@pytest.mark.parametrize("kv", [{}, {"bits": 8}, {"bits": 8, "group_size": 32, "start": 16}])
async def test_it_is_right_whatever_holds_its_memory(kv: dict[str, int]) -> None:
    """Neither of the first two has a word or a pair that it was trained on."""
    said = await answers(list(QUESTIONS), kv_cache=KVCacheConfig(**kv))
    for text, expected in zip(said, QUESTIONS.values(), strict=True):
        assert expected in text.rpartition("</think>")[2]


# --- which model is meant


@made
@pytest.mark.parametrize("name", [None, "pocket"])
def test_it_is_served_where_no_other_is_named(name: str | None) -> None:
    assert build_model(Config(model=name)).id == "pocket"


@pytest.mark.parametrize(
    ("name", "is_here", "is_meant"),
    [
        (None, True, True),
        ("pocket", True, True),
        ("other", True, False),
        ("./pocket", True, False),
        (None, False, False),
        ("pocket", False, False),
    ],
)
def test_it_is_meant_by_nothing_and_by_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str | None, is_here: bool, is_meant: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pocket, "is_here", lambda: is_here)
    assert pocket.is_meant(name) == is_meant


@pytest.mark.mlx
def test_a_folder_of_the_same_name_goes_before_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pocket, "is_here", lambda: True)
    write_served_model(tmp_path / "pocket")
    monkeypatch.setattr(pocket, "folder", lambda: pytest.fail("the folder here is meant"))
    assert build_model(Config(model="pocket")).id == "pocket"


def test_without_weights_the_name_is_that_of_a_folder_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pocket, "is_here", lambda: False)
    with pytest.raises(ModelLoadError, match="folder pocket does not exist"):
        build_model(Config(model="pocket"))
