"""A model and its calibration samples, which determine the choice of formats, and then every code."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import mlx.core as mx

from mlx_backend.conversion.compensated import compensated
from mlx_backend.conversion.computing import Computed
from mlx_backend.conversion.errors import ConversionError
from mlx_backend.conversion.hessians import Hessians
from mlx_backend.conversion.measured import Sample, spread
from mlx_backend.conversion.search import searched
from mlx_backend.conversion.spec import Spec

PROBE_TOKENS = 2048
"""Tokens of samples on which the model is computed many times."""
HESSIAN_TOKENS = 16_384
"""Tokens of samples on which the model is computed once."""


class Calibrated:
    """A model's folder with its calibration samples. The model is opened on first use."""

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        self._folder, self._samples = folder, samples

    @cached_property
    def digest(self) -> str:
        """Digest that identifies these samples."""
        told = hashlib.sha256()
        for sample in self._samples:
            told.update(repr((sample.ids, sample.first)).encode())
        return told.hexdigest()[:16]

    @cached_property
    def computed(self) -> Computed:
        """Predictions of the model on some of the samples. Raises ConversionError."""
        probes, others = (spread(self._samples, most) for most in (PROBE_TOKENS, HESSIAN_TOKENS))
        if not probes:
            raise ConversionError("the text for --calibrate has no two tokens; give a longer one")
        return Computed(self._folder, probes, others)

    @cached_property
    def hessians(self) -> Hessians:
        """Hessians of weights on more of the samples. Raises ConversionError."""
        return Hessians(self.computed)

    def quantize(self, weight: mx.array, spec: Spec, path: str, place: int) -> Sequence[mx.array]:
        """Quantize a weight by the statistics of its inputs; by search alone if they are unknown."""
        hessian = self.hessians.of(path)
        if hessian is None:
            return searched(weight, spec)
        return compensated(weight, spec, hessian[place] if hessian.ndim > weight.ndim else hessian)
