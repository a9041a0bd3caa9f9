"""Write the fixtures of GGUF's types: a few rows of each, encoded by libgguf, with the values that `gguf` reads.

Needs the packages gguf and libgguf, in their own environment: `python scripts/gguf_fixtures/make.py FILE`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "IQ2_XXS", "IQ1_M"),
)
ROWS, VALUES = 2, 256


def main(file: str) -> None:
    import libgguf
    from gguf import GGMLQuantizationType, quants

    random = np.random.default_rng(0)
    spread = np.exp(random.standard_normal((ROWS, VALUES // 32)).repeat(32, 1) * 0.4)
    weights = (random.standard_normal((ROWS, VALUES)) * 0.05 * spread).astype(np.float32)
    arrays: dict[str, Any] = {"weights": weights}
    for name in TYPES:
        kind = GGMLQuantizationType[name]
        if name in ("F32", "F16", "BF16"):
            rows = quants.quantize(weights, kind).view(np.uint8)
        else:
            importance = np.ones(VALUES, np.float32) if libgguf.quantize_requires_imatrix(kind) else None
            encoded = libgguf.quantize_rows_raw(kind, weights.tobytes(), ROWS, VALUES, importance)
            rows = np.frombuffer(encoded, np.uint8)
        rows = rows.reshape(ROWS, -1)
        arrays[f"{name}.rows"] = rows
        values = rows.view(np.float32) if name == "F32" else quants.dequantize(rows, kind)
        arrays[f"{name}.values"] = values.astype(np.float32)
    np.savez_compressed(file, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
