"""A cache of generated data on disk: named by what decides the content, checked before it is trusted."""

import contextlib
import errno
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from nsm import storage

log = logging.getLogger(__name__)


def content_hash(description: Mapping[str, Any]) -> str:
    """Sixteen hex digits that change when anything in ``description`` (plain values) changes."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]


def load_or_make(folder: Path, name: str, description: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """Return the content described, from disk if a sound copy lies there, else made, stored and returned.

    ``<name>-<hash>.pt`` holds tensors and plain values; ``<name>-<hash>.json`` beside it the description and the digest
    of the former. Both are written whole, the digest last, so that no half file is ever trusted. A copy that is not
    what was written is reported and made anew. Of several processes that want the same content, one makes it.

    Raises:
        OSError: if the folder cannot be written, naming it and the setting that moves it.
    """
    stem = f"{name}-{content_hash(description)}"
    content, manifest = folder / f"{stem}.pt", folder / f"{stem}.json"
    described = json.loads(json.dumps(description))
    stored = _read(content, manifest, described)
    if stored is not None:
        return stored
    lock = FileLock(folder / f".{stem}.lock")
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        stored = _read(content, manifest, described) if manifest.exists() else None
        if stored is None:
            stored = make()
            packed = storage.pack(stored)
            written = {"sha256": hashlib.sha256(packed).hexdigest(), "description": described}
            with _told(folder):
                storage.write_whole(content, packed)
                storage.write_whole(manifest, json.dumps(written, indent=2).encode())
        return stored
    finally:
        lock.release()


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Give an error of the system its remedy."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:  # which concerns more than this folder
            raise
        raise OSError(
            f"cannot write the data cache {folder}: {error}; set domain.cache_dir to a folder that can be written"
        ) from error


def _read(content: Path, manifest: Path, described: Any) -> Any:
    """What a sound copy holds; None where there is none."""
    if not (manifest.exists() and content.exists()):
        return None
    try:
        expected, packed = storage.read_json(manifest), content.read_bytes()
        if expected != {"sha256": hashlib.sha256(packed).hexdigest(), "description": described}:
            log.warning("%s is damaged (its digest does not match); making it anew", content)
            return None
        return storage.unpack(packed, content)
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s); making it anew", content, error)
        return None
