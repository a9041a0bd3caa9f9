"""Weights into memory: mlx-lm builds the model lazily, and its arrays are read a few at a time, with progress."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm import utils as mlx_lm_utils

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import LoadProgress
from mlx_backend.model.checkpoint import Checkpoint
from mlx_backend.model.pooling import is_embedding_model
from mlx_backend.model.scoring import is_classifier, num_labels
from mlx_backend.model.weight_files import INDEX, is_main

logger = logging.getLogger("pippin.load")

SCORE = "score"
"""Name of the last layer of a sequence classifier, in its files and as an attribute of the model."""
_READ_BYTES = 256 << 20
"""Size of the pieces in which weights are read: large enough to keep a disk busy, small enough for a progress bar."""
_MIN_PIECES = 32
"""Least number of pieces: a rank's share of an array is cut from the whole array, held until its piece is read."""


def read_weights(model: nn.Module, checkpoint: Checkpoint, report: Callable[[LoadProgress], None]) -> None:
    """Bring all weights into memory. Raises ModelLoadError."""
    arrays = [array for _, array in tree_flatten(model.parameters())]
    total = sum(array.nbytes for array in arrays)
    done = 0
    report(LoadProgress(done_bytes=0, total_bytes=total))
    for piece in _pieces(arrays, min(_READ_BYTES, total // _MIN_PIECES)):
        try:
            mx.eval(piece)
        except RuntimeError as error:
            raise ModelLoadError(f"reading the weights of {checkpoint.path} failed: {error}") from error
        done += sum(array.nbytes for array in piece)
        report(LoadProgress(done_bytes=done, total_bytes=total))
    mx.clear_cache()


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, those of quantized weights unpacked."""
    return int(mlx_lm_utils.get_total_parameters(model))


def build_model(checkpoint: Checkpoint) -> nn.Module:
    """Build the model without reading its weights. Raises ModelLoadError."""
    model_type = checkpoint.config["model_type"]
    try:
        return _build(checkpoint)
    except ValueError as error:
        if "not supported" in str(error):
            raise ModelLoadError(
                f"mlx-lm does not support the architecture {model_type!r}; use another model or a newer mlx-lm"
            ) from error
        known = "".join(f"; {note}" for note in checkpoint.notes)
        raise ModelLoadError(
            f"{checkpoint.path} does not match its config.json: {_first_line(error)}{known}"
        ) from error
    except (KeyError, TypeError, AttributeError, AssertionError, RuntimeError, OSError) as error:
        what = f"{type(error).__name__}: {_first_line(error)}"
        raise ModelLoadError(f"{checkpoint.path} cannot be built as a {model_type} model ({what})") from error


def _build(checkpoint: Checkpoint) -> nn.Module:
    """Build the model, if necessary without separate parts it cannot use, such as one that predicts several tokens."""
    main = tuple(file for file in checkpoint.weight_files if is_main(file.name))
    try:
        return _load(checkpoint, checkpoint.weight_files)
    except ValueError as error:
        if "not in model" not in str(error) or not main or main == checkpoint.weight_files:
            raise
    model = _load(checkpoint, main)
    others = ", ".join(file.name for file in checkpoint.weight_files if file not in main)
    logger.info("%s: skipped files that the model does not use: %s", checkpoint.path.name, others)
    return model


def _load(checkpoint: Checkpoint, files: tuple[Path, ...]) -> nn.Module:
    changes = _of_classifier(checkpoint) or _of_bare_weights(checkpoint)
    quantization = checkpoint.config.get("quantization_config")
    if isinstance(quantization, dict) and "bits" in quantization and "quant_method" not in quantization:
        # another name that mlx-lm accepts; without this, it assumes another library's format
        changes.setdefault("model_config", {}).setdefault("quantization", quantization)
    with _only(checkpoint.path, files) as folder:
        model, _ = mlx_lm_utils.load_model(folder, lazy=True, **changes)
    return model


@contextmanager
def _only(folder: Path, files: tuple[Path, ...]) -> Iterator[Path]:
    """Yield a folder with only these weights, since mlx-lm loads all of model*.safetensors."""
    if {*folder.glob("model*.safetensors")} == {*files}:
        yield folder
        return
    with TemporaryDirectory(prefix="pippin-model-") as name:
        view = Path(name)
        for each in folder.iterdir():
            if each.suffix != ".safetensors" and each.name != INDEX:
                (view / each.name).symlink_to(each.absolute())
        for place, file in enumerate(files):
            (view / f"model-{place:05}.safetensors").symlink_to(file.absolute())
        yield view  # weights are read later, through files that are open by then


def _of_bare_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return further arguments to mlx-lm for an embedding model with files of a model without its head.

    Their weights then have names relative to it (`layers.0…`, not `model.layers.0…`).
    """
    if not is_embedding_model(checkpoint.path):
        return {}
    names = {name for file in checkpoint.weight_files for name in mx.load(str(file))}
    if "embed_tokens.weight" not in names:
        return {}
    return {"get_model_classes": _classes_with_prefix, "model_config": {"tie_word_embeddings": True}}


def _of_classifier(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return further options of mlx-lm for a sequence classifier: a score is in the place of the head."""
    if not is_classifier(checkpoint.config):
        return {}
    return {"get_model_classes": _classes_with_score, "model_config": {"tie_word_embeddings": True}}


def _classes_with_score(config: dict[str, Any]) -> tuple[Any, Any]:
    model_class, arguments_class = mlx_lm_utils._get_classes(config)
    labels = num_labels(config)

    class Scored(model_class):  # type: ignore[misc, valid-type]
        def __init__(self, arguments: Any) -> None:
            super().__init__(arguments)
            setattr(self, SCORE, nn.Linear(arguments.hidden_size, labels, bias=False))

    return Scored, arguments_class


def _classes_with_prefix(config: dict[str, Any]) -> tuple[Any, Any]:
    model_class, arguments_class = mlx_lm_utils._get_classes(config)

    class Whole(model_class):  # type: ignore[misc, valid-type]
        def sanitize(self, weights: dict[str, Any]) -> dict[str, Any]:
            named = {f"model.{name}": weight for name, weight in weights.items()}
            return super().sanitize(named) if hasattr(model_class, "sanitize") else named

    return Whole, arguments_class


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _pieces(arrays: list[Any], num_bytes: int) -> Iterator[list[Any]]:
    piece: list[Any] = []
    for array in arrays:
        piece.append(array)
        if sum(member.nbytes for member in piece) >= num_bytes:
            yield piece
            piece = []
    if piece:
        yield piece
