"""Model stores of other programs for tests: Ollama's blobs and manifests, LM Studio's folders."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def add_to_ollama(root: Path, name: str, gguf: bytes | None, **layers: Any) -> Path:
    """Add a model (`host/namespace/name/tag`) and return its manifest; `layers`: by kind, text or data for JSON."""
    found = [] if gguf is None else [_blob(root, "model", gguf)]
    for kind, content in layers.items():
        text = content if isinstance(content, str) else json.dumps(content)
        found.append(_blob(root, kind, text.encode()))
    manifest = root / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": _blob(root, "config", b"{}"), "layers": found}))
    return manifest


def _blob(root: Path, kind: str, content: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(content)
    media = f"application/vnd.ollama.image.{kind}"
    return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)}
