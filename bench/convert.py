"""Conversions at a size: memory, time beside mlx_lm.convert, its tensors, the same bytes after kills.

python -m bench.convert [--only kills] [--gigabytes 3.2] [--kills 20] [--bits 4] [--keep FOLDER]
python -m bench.convert --only pocket [--items 25] [--sizes '3.03,mixed_2_6'] [--keep FOLDER]
python -m bench.convert --only r1

The source is generated: DeepSeek-V3 as published, fp8 in blocks of 128 with a scale each, with the pocket model's
tokenizer. Each conversion is a separate process; peak memory is its resident set's, as reported by the system. Kills
are at random points.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from bench import convert_pocket, convert_r1
from server import pocket

_SHARD_BYTES = 256 << 20
_HIDDEN, _EXPERT, _DENSE, _EXPERTS, _VOCABULARY = 1024, 512, 2048, 48, 4096
_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": _VOCABULARY,
    "hidden_size": _HIDDEN,
    "intermediate_size": _DENSE,
    "moe_intermediate_size": _EXPERT,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_shared_experts": 1,
    "n_routed_experts": _EXPERTS,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "kv_lora_rank": 512,
    "q_lora_rank": 768,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "qk_nope_head_dim": 128,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 4096,
    "rope_scaling": None,
    "torch_dtype": "bfloat16",
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "eos_token_id": 1,
}
_MEASURED = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("USED", used.ru_maxrss, used.ru_utime + used.ru_stime, file=sys.stderr)
"""

_SMALL_FILES = """
import runpy, sys
from mlx_backend.conversion import shards
shards.lay_out.__defaults__ = (int(sys.argv[1]),)
sys.argv = sys.argv[2:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
_PAIRS = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One conversion: seconds, processor seconds, and peak memory in bytes."""

    seconds: float
    cpu_s: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.cpu_s:.1f} s of the processor, peak {self.peak_bytes / 1e6:,.0f} MB"


def main() -> None:
    """Make the source, convert it both ways, kill and resume, compare."""
    parser = argparse.ArgumentParser(prog="python -m bench.convert", description=__doc__)
    parser.add_argument(
        "--only", choices=("pocket", "r1", "compare", "kills", "time"), help="one of these; else compare, time, kills"
    )
    parser.add_argument("--items", type=int, default=25, help="pocket: questions of each skill; 0 for none")
    parser.add_argument("--sizes", default=f"{','.join(convert_pocket.THEIRS)},3.03", help="pocket: which sizes")
    parser.add_argument("--file-mb", type=int, default=64, help="kills: size of the weight files")
    parser.add_argument("--gigabytes", type=float, default=3.2, help="size of the source")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--bits", default="4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="work here and leave everything there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pippin-convert-") as name:
        work = options.keep or Path(name)
        work.mkdir(parents=True, exist_ok=True)
        if options.only == "pocket":
            convert_pocket.run(work, options.items, options.sizes.split(","))
            return
        if options.only == "r1":
            convert_r1.run(work)
            return
        source = work / "source"
        if not source.exists():
            _make(source, options.gigabytes)
        size = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        print(f"source: {size / 1e9:.2f} GB")
        if options.only in (None, "compare"):
            _compare(work, source, options)
        if options.only in (None, "time"):
            _time(work, source, options)
        if options.only in (None, "kills"):
            _kill(work, source, options)


def _compare(work: Path, source: Path, options: Any) -> None:
    ours, theirs = work / "ours", work / "theirs"
    for folder in (ours, theirs):
        shutil.rmtree(folder, ignore_errors=True)
    own = _run("server", "convert", str(source), "--bits", options.bits, "--out", str(ours))
    print(f"pippin convert --bits {options.bits}: {own}", flush=True)
    other = _run(
        "mlx_lm", "convert", "--hf-path", str(source), "--mlx-path", str(theirs), "-q", "--q-bits", options.bits
    )
    print(f"mlx_lm.convert: {other}")
    print(
        f"ours to theirs: {own.seconds / other.seconds:.2f}, of the processor {own.cpu_s / other.cpu_s:.2f}", flush=True
    )
    print(f"tensors: {_differing(ours, theirs)}")
    shutil.rmtree(theirs)
    print(f"pippin convert again: {'nothing to do' if _is_done(source, ours, options) else 'NOT RECOGNIZED'}")


def _time(work: Path, source: Path, options: Any) -> None:
    """Convert both ways in turn, and compare the times."""
    ratios: list[tuple[float, float]] = []
    for place in range(_PAIRS):
        runs = {}
        for name in ("ours", "theirs") if place % 2 else ("theirs", "ours"):
            out = work / f"{name}-timed"
            shutil.rmtree(out, ignore_errors=True)
            if name == "ours":
                runs[name] = _run("server", "convert", str(source), "--bits", options.bits, "--out", str(out))
            else:
                given = ("--hf-path", str(source), "--mlx-path", str(out), "-q", "--q-bits", options.bits)
                runs[name] = _run("mlx_lm", "convert", *given)
            shutil.rmtree(out)
        ratios.append((runs["ours"].seconds / runs["theirs"].seconds, runs["ours"].cpu_s / runs["theirs"].cpu_s))
        print(f"pippin: {runs['ours']}; mlx_lm.convert: {runs['theirs']}", flush=True)
    wall, cpu = (sorted(each)[len(ratios) // 2] for each in zip(*ratios, strict=True))
    print(f"ours to theirs, the median of {len(ratios)}: {wall:.2f}, of the processor {cpu:.2f}", flush=True)


def _kill(work: Path, source: Path, options: Any) -> None:
    """Convert into several weight files, with a kill whenever a random number of further bytes is on disk."""
    chance = random.Random(options.seed)
    file_bytes = options.file_mb << 20
    arguments = ("convert", str(source), "--bits", options.bits, "--out")
    command = [sys.executable, "-c", _SMALL_FILES, str(file_bytes), "server", *arguments]
    reference, out = work / "whole", work / "killed"
    for folder in (reference, out):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([*command, str(reference)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    whole, command = _digests(reference), [*command, str(out)]
    files = list(reference.glob("model*.safetensors"))
    kills, start, size = 0, time.perf_counter(), sum(file.stat().st_size for file in files)
    while kills < options.kills:
        whole_bytes = sum(path.stat().st_size for path in out.glob("model*.safetensors"))
        # on average, as far as lets all kills find something to do
        reach = min(size - whole_bytes, 2.2 * max(size / options.kills, file_bytes / 2))
        target, since = whole_bytes + chance.random() * reach, time.time()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and whole_bytes + _written(out, since) < target:
                time.sleep(0.005)
            if process.poll() is None:
                process.kill()
                kills += 1
        if process.returncode == 0:
            break
        assert not (out / "config.json").exists() or (out / "SHA256SUMS").exists()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    named = ("README.md", "SHA256SUMS")  # the card's title is the folder's name
    found = _digests(out)
    is_same = found.keys() == whole.keys() and all(found[name] == whole[name] for name in whole if name not in named)
    took = time.perf_counter() - start
    words = "the same bytes" if is_same else "OTHER BYTES"
    print(f"killed {kills} times over {len(files)} weight files, {took:.0f} s in all: {words}")


def _written(out: Path, since: float) -> int:
    """Return the bytes of weight files, complete or not, written since then."""
    found = 0
    for path in out.glob("model*.safetensors*"):
        try:
            facts = path.stat()
        except OSError:  # renamed meanwhile
            continue
        found += 512 * facts.st_blocks if facts.st_mtime >= since else 0
    return found


def _run(module: str, *arguments: str) -> Run:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, module, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{module} ended with {done.returncode}: {done.stderr[-2000:]}")
    peak, cpu_s = done.stderr.rpartition("USED ")[2].split()[:2]
    took = time.perf_counter() - start
    return Run(took, float(cpu_s), int(peak) * (1 if sys.platform == "darwin" else 1024))


def _is_done(source: Path, out: Path, options: Any) -> bool:
    command = [sys.executable, "-m", "server", "convert", str(source), "--bits", options.bits, "--out", str(out)]
    return "was converted so before" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _differing(ours: Path, theirs: Path) -> str:
    own, other = _tensors(ours), _tensors(theirs)
    if own.keys() != other.keys():
        return f"OTHER NAMES: {sorted(own.keys() ^ other.keys())[:4]}"
    names = sorted(own)
    differing = [name for name in names if not _is_alike(own.pop(name), other.pop(name))]
    return f"{len(names)}, {len(differing)} differ"


def _is_alike(a: Any, b: Any) -> bool:
    alike = (
        a.dtype == b.dtype and a.shape == b.shape and bool(mx.array_equal(a.view(mx.uint8), b.view(mx.uint8)).item())
    )
    mx.clear_cache()
    return alike


def _tensors(folder: Path) -> dict[str, Any]:
    return {name: array for file in folder.glob("model*.safetensors") for name, array in mx.load(str(file)).items()}


def _digests(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


# --- the source


def _make(folder: Path, gigabytes: float) -> None:
    """Write a published DeepSeek-V3 of about this size."""
    per_layer = 3 * _EXPERTS * _EXPERT * _HIDDEN
    num_layers = max(2, round(gigabytes * 1e9 / per_layer))
    part = folder.with_name("source.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    filled = 0
    for each in _layout(num_layers):
        size = _num_bytes(each)
        if filled + size > _SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append(each)
        filled += size
    chance = random.Random(0)
    weight_map: dict[str, str] = {}
    for place, tensors in enumerate(shards, 1):
        name = f"model-{place:05}-of-{len(shards):05}.safetensors"
        _write(part / name, tensors, chance)
        weight_map |= {tensor: name for tensor, _, _ in tensors}
    (part / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (part / "config.json").write_text(json.dumps({**_CONFIG, "num_hidden_layers": num_layers}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(pocket.folder() / name, part)
    part.rename(folder)


def _layout(num_layers: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield (name, dtype, shape) of every tensor."""
    yield "model.embed_tokens.weight", "BF16", (_VOCABULARY, _HIDDEN)
    for layer in range(num_layers):
        path = f"model.layers.{layer}"
        attention = (
            ("q_a_proj", 768, _HIDDEN),
            ("q_b_proj", 16 * 192, 768),
            ("kv_a_proj_with_mqa", 576, _HIDDEN),
            ("kv_b_proj", 16 * 256, 512),
            ("o_proj", _HIDDEN, 2048),
        )
        for name, *shape in attention:
            yield from _linear(f"{path}.self_attn.{name}", *shape)
        norms = (("self_attn.q_a", 768), ("self_attn.kv_a", 512), ("input_", _HIDDEN), ("post_attention_", _HIDDEN))
        for name, width in norms:
            yield f"{path}.{name}{'' if name.endswith('_') else '_'}layernorm.weight", "BF16", (width,)
        if layer == 0:
            yield from _mlp(f"{path}.mlp", _DENSE)
            continue
        yield f"{path}.mlp.gate.weight", "BF16", (_EXPERTS, _HIDDEN)
        yield f"{path}.mlp.gate.e_score_correction_bias", "F32", (_EXPERTS,)
        for expert in range(_EXPERTS):
            yield from _mlp(f"{path}.mlp.experts.{expert}", _EXPERT)
        yield from _mlp(f"{path}.mlp.shared_experts", _EXPERT)
    yield "model.norm.weight", "BF16", (_HIDDEN,)
    yield "lm_head.weight", "BF16", (_VOCABULARY, _HIDDEN)


def _mlp(path: str, width: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    for name, shape in (("gate", (width, _HIDDEN)), ("up", (width, _HIDDEN)), ("down", (_HIDDEN, width))):
        yield from _linear(f"{path}.{name}_proj", *shape)


def _linear(path: str, rows: int, columns: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    yield f"{path}.weight", "F8_E4M3", (rows, columns)
    yield f"{path}.weight_scale_inv", "F32", (-(-rows // 128), -(-columns // 128))


def _num_bytes(tensor: tuple[str, str, tuple[int, ...]]) -> int:
    size = {"F8_E4M3": 1, "BF16": 2, "F32": 4}[tensor[1]]
    for each in tensor[2]:
        size *= each
    return size


def _write(file: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]], chance: random.Random) -> None:
    header, end = {}, 0
    for tensor in tensors:
        begin, end = end, end + _num_bytes(tensor)
        header[tensor[0]] = {"dtype": tensor[1], "shape": tensor[2], "data_offsets": (begin, end)}
    raw = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors:
            stream.write(_values(tensor, chance))


def _values(tensor: tuple[str, str, tuple[int, ...]], chance: random.Random) -> bytes:
    _, dtype, shape = tensor
    if dtype == "F8_E4M3":  # any bytes except the two NaNs
        return chance.randbytes(_num_bytes(tensor)).replace(b"\x7f", b"\x30").replace(b"\xff", b"\xb0")
    mx.random.seed(chance.randrange(2**32))
    if dtype == "F32":
        return bytes(memoryview(mx.random.uniform(1e-5, 1e-4, shape)))
    values = mx.random.normal(shape) * 0.02 + (1.0 if len(shape) == 1 else 0.0)
    return bytes(memoryview(values.astype(mx.bfloat16).view(mx.uint16)))


if __name__ == "__main__":
    main()
