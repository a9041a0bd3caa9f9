"""The pocket model: the one that ships inside the package. Knows where its files lie, nothing of what is in them."""

from __future__ import annotations

from pathlib import Path

MODEL_ID = "pocket"
"""What it is called by, in configuration and over HTTP."""


def folder() -> Path:
    """The folder of the model's files, this one."""
    return Path(__file__).resolve().parent


def is_here() -> bool:
    """Whether the weights have been put there: they are made by `make pocket`."""
    return (folder() / "model.safetensors").is_file()


def is_meant(model: str | None) -> bool:
    """Whether the configured model is this one: none named, or `pocket` where no folder is called so."""
    return is_here() and (model is None or (model == MODEL_ID and not Path(model).is_dir()))
