"""Conversions of small checkpoints: mlx-lm's own tensors, predicted bytes, the same bytes after a kill, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_backend.conversion import entry, shards
from mlx_backend.conversion.entry import Choice, ConversionError
from tests.published_models import write_published, write_safetensors
from tests.tiny_models import write_model, write_quantized_model

pytestmark = pytest.mark.mlx

FOUR = Choice(bits=4, group_size=32)


def converted(source: Path, out: Path, choice: Choice = FOUR) -> Path:
    entry.prepare(source, "tiny", choice).run(out, lambda _: None)
    return out


def tensors_of(folder: Path) -> dict[str, Any]:
    import mlx.core as mx

    return {
        name: array for file in sorted(folder.glob("model*.safetensors")) for name, array in mx.load(str(file)).items()
    }


def mlx_lm_tensors(folder: Path, bits: int, group_size: int, mode: str = "affine", **options: Any) -> dict[str, Any]:
    """What mlx_lm.convert writes, without the detour over its files."""
    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_map_with_path
    from mlx_lm.convert import mixed_quant_predicate_builder
    from mlx_lm.utils import load_model, quantize_model

    model, config = load_model(folder, lazy=True)
    if config.get("torch_dtype") is not None:
        dtype, may_cast = getattr(mx, config["torch_dtype"]), getattr(model, "cast_predicate", lambda _: True)
        model.update(
            tree_map_with_path(
                lambda path, array: (
                    array.astype(dtype) if may_cast(path) and mx.issubdtype(array.dtype, mx.floating) else array
                ),
                model.parameters(),
            )
        )
    if "mixed" in options:
        options["quant_predicate"] = mixed_quant_predicate_builder(options.pop("mixed"), model, group_size)
    model, _ = quantize_model(model, config, group_size, bits, mode=mode, **options)
    return dict(tree_flatten(model.parameters()))


def assert_same(own: dict[str, Any], theirs: dict[str, Any]) -> None:
    import mlx.core as mx

    assert own.keys() == theirs.keys()
    for name, array in theirs.items():
        assert (own[name].dtype, own[name].shape) == (array.dtype, array.shape), name
        alike = mx.array_equal(mx.contiguous(own[name]).view(mx.uint8), mx.contiguous(array).view(mx.uint8))
        assert alike.item(), name


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


Writer = Callable[[Path], Path]
ARCHITECTURES: dict[str, Writer] = {
    "llama": lambda folder: write_model(folder, "llama", torch_dtype="bfloat16"),
    "gpt_oss": lambda folder: write_model(folder, "gpt_oss"),
    "gemma3": lambda folder: write_model(folder, "gemma3"),
    "falcon_h1": lambda folder: write_model(folder, "falcon_h1", torch_dtype="float16"),
    "mamba2": lambda folder: write_model(folder, "mamba2"),
    "llama4": lambda folder: write_model(folder, "llama4"),
    "deepseek_v3, fp8": lambda folder: write_published(folder, "deepseek_v3", fp8=True, num_files=3),
    "deepseek_v3, bf16": lambda folder: write_published(folder, "deepseek_v3"),
    "qwen3_moe": lambda folder: write_published(folder, "qwen3_moe", num_files=2),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_tensors_are_mlx_lms_and_bytes_are_those_predicted(name: str, tmp_path: Path) -> None:
    source = ARCHITECTURES[name](tmp_path / "source")
    prepared = entry.prepare(source, "tiny", FOUR)
    prepared.run(tmp_path / "out", lambda _: None)
    assert_same(tensors_of(tmp_path / "out"), mlx_lm_tensors(source, 4, 32))
    files = list((tmp_path / "out").glob("model*.safetensors"))
    assert sum(file.stat().st_size for file in files) == prepared.plan.weight_file_bytes


@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4", "mxfp8"])
def test_other_modes_are_mlx_lms(mode: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", "llama")
    converted(source, tmp_path / "out", Choice(mode=mode))
    bits, group_size = {"mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}[mode]
    assert_same(tensors_of(tmp_path / "out"), mlx_lm_tensors(source, bits, group_size, mode))


def test_a_mixed_recipe_is_mlx_lms_but_for_the_router(tmp_path: Path) -> None:
    source = write_published(tmp_path / "source", "qwen3_moe", num_hidden_layers=9)
    converted(source, tmp_path / "out", Choice(recipe="mixed_3_6", scales="range"))
    theirs = mlx_lm_tensors(source, 3, 64, mixed="mixed_3_6")
    own = tensors_of(tmp_path / "out")
    routers = {name for name in own if ".mlp.gate." in name}
    assert len(routers) == 27
    assert all(own[name].shape[-1] == 16 for name in routers if name.endswith("weight"))  # 8 bits of 64 numbers
    assert_same(*({name: array for name, array in each.items() if name not in routers} for each in (own, theirs)))


def test_the_folder_is_loaded_as_it_was_planned(tmp_path: Path) -> None:
    from mlx_backend.model.checkpoint import open_checkpoint
    from mlx_backend.model.skeleton import from_checkpoint

    source = write_published(tmp_path / "source", "deepseek_v3", fp8=True)
    prepared = entry.prepare(source, "tiny", Choice(recipe="embeddings-16-attention-4-mlp-8"))
    shape, caches = prepared.read_shape()
    prepared.run(tmp_path / "out", lambda _: None)
    found = from_checkpoint(open_checkpoint(tmp_path / "out"))
    assert (found.shape, found.caches) == (shape, caches)
    assert found.shape.weights_bytes == prepared.plan.tensor_bytes
    formats = prepared.formats()
    assert formats["model.embed_tokens"] == "as it is"
    assert formats["model.layers.0.self_attn.o_proj"] == "4 bits g64"
    assert formats["model.layers.1.mlp.switch_mlp.up_proj"] == "8 bits g64"


def test_it_fits_the_bytes_that_are_given(tmp_path: Path) -> None:
    source = write_published(tmp_path / "source", "deepseek_v3", num_hidden_layers=2)
    prepared = entry.prepare(source, "tiny", Choice(fit_bytes=150_000))
    assert 140_000 < prepared.plan.weight_file_bytes <= 150_000
    assert prepared.scales == "search"
    with pytest.raises(
        ConversionError, match=r"^0\.05 MB is below the smallest sensible size of this model, 0\.06 MB$"
    ):
        entry.prepare(source, "tiny", Choice(fit_bytes=50_000))


def test_search_loses_less_than_range(tmp_path: Path) -> None:
    source = write_published(tmp_path / "source", "qwen3_moe")
    errors = {}
    for scales in ("range", "search"):
        out = converted(source, tmp_path / scales, Choice(bits=2, scales=scales))
        errors[scales] = json.loads((out / "conversion.json").read_text())["relative_errors"]
    assert len(errors["range"]) == 18
    quantized_more = [path for path in errors["range"] if not path.endswith("mlp.gate")]
    assert all(errors["search"][path] < errors["range"][path] for path in quantized_more)


# --- what is quantized already


def test_a_weight_that_is_quantized_is_copied_or_quantized_again(tmp_path: Path) -> None:
    import mlx.core as mx

    source = write_quantized_model(tmp_path / "source", "llama", bits=8)
    again = entry.prepare(source, "tiny", FOUR)
    assert [note.partition(" of the source")[0] for note in again.plan.notes] == ["15 weights"]
    own, before = tensors_of(converted(source, tmp_path / "again")), tensors_of(source)
    name = "model.layers.0.mlp.up_proj"
    weight = mx.dequantize(*(before[f"{name}.{part}"] for part in ("weight", "scales", "biases")), 32, 8)
    expected = dict(zip(("weight", "scales", "biases"), mx.quantize(weight, 32, 4), strict=True))
    assert_same({part: own[f"{name}.{part}"] for part in expected}, expected)
    assert_same(tensors_of(converted(source, tmp_path / "copied", Choice(bits=8, group_size=32))), before)


# --- killed, resumed


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source whose output has several files."""
    monkeypatch.setattr("mlx_backend.conversion.plan.lay_out", lambda units: shards.lay_out(units, 20_000))
    source = write_published(tmp_path / "source", "deepseek_v3", fp8=True)
    (source / "tokenizer.json").write_bytes(b'{"made": "up"}\n')
    (source / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    (source / "generation_config.json").write_bytes(b'{"eos_token_id":  [0]}')
    (source / "LICENSE").write_bytes(b"terms")
    return source


class Killed(BaseException):
    """Stands in for a process's end: nothing is cleaned up after it but open files."""


def kills(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Die before the first call that changes the disk, then before the second, and so on."""
    real = {name: getattr(os, name) for name in ("pwrite", "replace", "fsync", "write")}
    count, limit = 0, 0

    def dying(name: str) -> Any:
        def call(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count > limit:
                raise Killed
            return real[name](*args)

        return call

    for name in real:
        monkeypatch.setattr(os, name, dying(name))
    while True:
        count, limit = 0, limit + 7
        yield


def test_killed_at_any_point_it_ends_in_the_same_bytes(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bytes_of(converted(published, tmp_path / "a" / "out"))
    assert sum(name.endswith(".safetensors") for name in whole) > 4
    out, tries, halfway = tmp_path / "b" / "out", 0, 0
    with monkeypatch.context() as patch:
        for _ in kills(patch):
            tries += 1
            try:
                converted(published, out)
                break
            except Killed:
                halfway += len(list(out.glob("model-*.safetensors"))) > 1
                assert (out / "SHA256SUMS").exists() or not (out / "config.json").exists()
    assert tries > 10 and halfway > 3
    assert bytes_of(out) == whole
    assert entry.prepare(published, "tiny", FOUR).run(out, lambda _: None).is_new is False


def test_files_beside_the_weights_are_copied_and_all_have_their_checksums(published: Path, tmp_path: Path) -> None:
    out = converted(published, tmp_path / "out")
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        assert (out / name).read_bytes() == (published / name).read_bytes()
    lines = [line.split("  ") for line in (out / "SHA256SUMS").read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    assert sums == {name: digest for name, digest in bytes_of(out).items() if name != "SHA256SUMS"}


# --- refusals


def refused(source: Path, out: Path, choice: Choice = FOUR) -> str:
    with pytest.raises(ConversionError) as error:
        converted(source, out, choice)
    assert "\n" not in str(error.value)
    assert not (out / "config.json").exists() or "already" in str(error.value)
    return str(error.value)


def test_another_folder_is_left_alone(published: Path, tmp_path: Path) -> None:
    out = converted(published, tmp_path / "out")
    before = bytes_of(out)
    assert "holds a model already" in refused(published, out, Choice(bits=8))
    assert bytes_of(out) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    assert "is not empty (letter.txt)" in refused(published, tmp_path / "full")
    assert "is a file" in refused(published, published / "LICENSE")


def test_a_conversion_that_was_begun_differently_is_not_gone_on_with(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mlx_backend.conversion.convert.write_file", lambda path, data: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            converted(published, tmp_path / "out")
    told = refused(published, tmp_path / "out", Choice(bits=8))
    assert "begun differently (formats" in told
    assert converted(published, tmp_path / "out").is_dir()


@pytest.mark.parametrize("text", ["{\n", "[]\n", '{"plan": {}}\n7\n', "\x00\n"])
def test_a_journal_that_is_none_is_refused(published: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "out" / ".conversion").mkdir(parents=True)
    (tmp_path / "out" / ".conversion" / "journal.jsonl").write_text(text)
    told = refused(published, tmp_path / "out")
    assert "holds no journal" in told or "begun differently" in told


def test_no_room_is_said_before_anything_is_written(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    assert "needs 67." in refused(published, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_full_later_is_said_and_what_is_there_is_used(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = os.pwrite, 0

    def full(file: int, data: Any, at: int) -> int:
        nonlocal written
        written += len(data)
        if written > 100_000:
            raise OSError(28, "No space left on device")
        return real(file, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert "is full; make room and run the same command again" in refused(published, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json"))
    done = entry.prepare(published, "tiny", FOUR).run(tmp_path / "out", lambda _: None)
    assert done.resumed_files == 5


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    import mlx.core as mx

    source = write_model(tmp_path / "source", "llama")
    weights = dict(mx.load(str(source / "model.safetensors")))
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = mx.nan
    mx.save_safetensors(str(source / "model.safetensors"), weights)
    assert "model.layers.1.mlp.up_proj has weights that are infinite or no numbers" in refused(source, tmp_path / "out")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = 0.0
    weights["model.norm.weight"][2] = mx.nan
    mx.save_safetensors(str(source / "model.safetensors"), weights)
    assert "model.norm.weight has weights that are no numbers" in refused(source, tmp_path / "other")


def test_what_does_not_fit_the_config_is_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", "llama")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    assert "does not match its config.json" in refused(source, tmp_path / "out")
    (source / "config.json").write_text(json.dumps({**config, "model_type": "unheard_of"}))
    assert "does not support the architecture 'unheard_of'" in refused(source, tmp_path / "out")


def test_a_name_in_two_files_is_refused(published: Path, tmp_path: Path) -> None:
    shutil.copy(published / "model.safetensors", published / "model-00001-of-00002.safetensors")
    write_safetensors(published / "model-00002-of-00002.safetensors", {"model.norm.weight": ("BF16", (1,), b"ab")})
    (published / "model.safetensors").unlink()
    (published / "model.safetensors.index.json").unlink()
    assert "both have 'model.norm.weight'" in refused(published, tmp_path / "out")
