"""The values and codes of GGUF's types, against fixtures that the `gguf` package has read (scripts/gguf_fixtures)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.importing import affine, dequantize, requantize
from server.importing.dtypes import DType
from server.importing.problems import CannotImport

FIXTURES = Path(__file__).parent / "gguf_types.npz"
AFFINE = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8, "Q4_K": 4, "Q5_K": 5}
READ = ("F32", "F16", "BF16", "Q2_K", "Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS")


@pytest.fixture(scope="module")
def fixtures() -> dict[str, Any]:
    with np.load(FIXTURES) as file:
        return dict(file)


def relative(found: Any, wanted: Any) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("name", [*AFFINE, *READ])
def test_values_are_those_of_the_reference(fixtures: dict[str, Any], name: str) -> None:
    found = dequantize.values(name, fixtures[f"{name}.rows"])
    np.testing.assert_allclose(found, fixtures[f"{name}.values"], rtol=2e-6, atol=1e-9)


@pytest.mark.mlx
@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_mlx_reads_the_copied_codes(fixtures: dict[str, Any], name: str, dtype: Any, most: float) -> None:
    import mlx.core as mx

    groups = affine.read_groups(name, fixtures[f"{name}.rows"])
    bits = affine.bits_of(name)
    assert bits == AFFINE[name] and int(groups.codes.max()) < 1 << bits
    packed = mx.array(affine.pack(groups.codes, bits))
    kind = getattr(mx, dtype)
    scales, biases = mx.array(groups.scales).astype(kind), mx.array(groups.biases).astype(kind)
    values = np.array(mx.dequantize(packed, scales, biases, 32, bits).astype(mx.float32))
    assert relative(values, fixtures[f"{name}.values"]) < most


@pytest.mark.mlx
@pytest.mark.parametrize("bits", requantize.BITS)
def test_mlx_unpacks_what_is_packed(bits: int) -> None:
    import mlx.core as mx

    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 96)).astype(np.uint8)
    ones, zeros = mx.ones((3, 3)), mx.zeros((3, 3))
    values = mx.dequantize(mx.array(affine.pack(codes, bits)), ones, zeros, 32, bits)
    np.testing.assert_array_equal(np.array(values), codes)


def test_six_bits_become_eight_without_loss_to_speak_of(fixtures: dict[str, Any]) -> None:
    values, weights = fixtures["Q6_K.values"], fixtures["weights"]
    again = affine.values_of(requantize.quantize(values, 8, DType("float16")))
    assert relative(again, values) < 0.005
    assert relative(again, weights) < 1.05 * relative(values, weights)


def test_fewer_bits_lose_more(fixtures: dict[str, Any]) -> None:
    weights = fixtures["weights"]
    errors = [
        relative(affine.values_of(requantize.quantize(weights, b, DType("bfloat16"))), weights) for b in (2, 3, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


def test_a_group_of_equal_values_stays_as_it_is() -> None:
    values = np.full((1, 64), 0.5, np.float32)
    groups = requantize.quantize(values, 4, DType("float16"))
    np.testing.assert_array_equal(affine.values_of(groups), values)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ1_M"])
def test_types_with_tables_are_left_to_the_library(fixtures: dict[str, Any], name: str) -> None:
    rows = fixtures[f"{name}.rows"]
    if importlib.util.find_spec("gguf") is None:
        with pytest.raises(CannotImport, match=f"reading {name} needs the gguf package"):
            dequantize.values(name, rows)
    else:
        np.testing.assert_allclose(dequantize.values(name, rows), fixtures[f"{name}.values"], rtol=1e-6)


@pytest.mark.mlx
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32"])
def test_numbers_are_written_as_mlx_rounds_them(name: Any) -> None:
    import mlx.core as mx

    values = np.random.default_rng(1).standard_normal(4096).astype(np.float32) * 3
    values[:4] = [0.0, -0.0, 65504.0, 1 + 2**-9]  # the last is half-way between two of bfloat16
    wanted = np.array(mx.array(values).astype(getattr(mx, name)).astype(mx.float32))
    dtype = DType(name)
    np.testing.assert_array_equal(dtype.rounded(values), wanted)
    assert len(dtype.encode(values)) == dtype.num_bytes * 4096


def test_what_a_format_cannot_hold_is_noticed() -> None:
    with pytest.raises(OverflowError):
        DType("float16").encode(np.array([70000.0], np.float32))
    assert DType("bfloat16").encode(np.array([np.nan], np.float32)) == b"\xc0\x7f"
