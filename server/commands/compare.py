"""`pippin compare`: distance between two models' predictions on a text."""

from __future__ import annotations

from pathlib import Path

import typer

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.conversion import entry
from mlx_backend.conversion.entry import ConversionError
from server import pocket
from server.commands.progress import shown
from server.commands.samples import read_samples
from server.config import ConfigError


def compare(
    source: str = typer.Argument(..., metavar="SOURCE", help="Reference model: a folder or hub id."),
    other: str = typer.Argument(..., metavar="OTHER", help="Model to measure, such as a conversion of SOURCE."),
    text: str = typer.Option(
        ..., metavar="FILE", help="Text file, or conversations (.jsonl); the first 8,192 tokens are used."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON instead of text."),
) -> None:
    """Compare a model's predictions with another's: KL divergence, next-token agreement, perplexity."""
    import json

    try:
        folders = find(source), find(other)
        samples = read_samples(folders[0], text)
        with shown("computing") as progress:
            quality = entry.compare(*folders, samples, progress)
    except (ConversionError, ModelLoadError) as error:
        raise ConfigError(str(error)) from None
    print(json.dumps(quality.to_document(), indent=2) if as_json else in_words(quality))


def in_words(quality: entry.Quality) -> str:
    """Return the measurements as text."""
    return (
        f"KL divergence {quality.kl:.5f} nats per token, over {quality.num_tokens:,} tokens\n"
        f"same next token in {quality.agreement:.2%} of positions\n"
        f"perplexity {quality.perplexity:.4f}, source {quality.source_perplexity:.4f}"
    )


def find(model: str) -> Path:
    """Return the folder of a model. Raises ModelLoadError."""
    from mlx_backend.model.checkpoint import find_model

    return pocket.folder() if pocket.is_meant(model) else find_model(model)
