"""A cache of generated data on disk: named by what decides the content, checked before it is trusted."""

import hashlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)


def content_hash(description: Mapping[str, Any]) -> str:
    """Sixteen hex digits that change when anything in ``description`` (plain values) changes."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def load_or_make(folder: Path, name: str, description: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """Return the content described, from disk if a sound copy lies there, else made, stored and returned.

    ``<name>-<hash>.pt`` holds tensors and plain values; ``<name>-<hash>.json`` beside it the description and the digest
    of the former. Both are written beside and renamed, the digest last, so that no half file is ever trusted. A copy
    whose digest does not match is reported and made anew.

    Raises:
        OSError: if the folder cannot be written, naming it and the setting that moves it.
    """
    stem = f"{name}-{content_hash(description)}"
    content, manifest = folder / f"{stem}.pt", folder / f"{stem}.json"
    if manifest.exists() and content.exists():
        try:
            expected = json.loads(manifest.read_text())["sha256"]
            if hashlib.sha256(content.read_bytes()).hexdigest() == expected:
                return torch.load(content, weights_only=True)
            log.warning("%s is damaged (its digest does not match); making it anew", content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%s); making it anew", manifest, error)
    made = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        payload = io.BytesIO()
        torch.save(made, payload)
        _replace(content, payload.getvalue())
        digest = hashlib.sha256(payload.getvalue()).hexdigest()
        _replace(manifest, json.dumps({"sha256": digest, "description": description}, indent=2).encode())
    except OSError as error:
        raise OSError(
            f"cannot write the data cache {folder}: {error}; set domain.cache_dir to a folder that can be written"
        ) from error
    return made


def _replace(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(content)
    os.replace(file.name, path)
