"""Files that are written whole or not at all, and read without trusting them."""

import contextlib
import io
import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch

UNFINISHED = ".part"
"""How the name of a file ends that is being written."""


class DamagedError(ValueError):
    """A file does not hold what it should; the message names the file and what is wrong with it."""


def write_whole(path: Path, content: bytes) -> None:
    """Replace ``path`` by a file that holds ``content``: after a power cut, too, it is the old or the new one.

    Raises:
        OSError: if it cannot be written; ``path`` is then as it was.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every network file system can sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_unfinished(folder: Path) -> None:
    """Remove what a process that was killed while writing into ``folder`` left behind."""
    for path in folder.glob(f".*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        DamagedError: if it cannot be read, or holds anything else.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read ({error})") from error


def pack(content: Any) -> bytes:
    """Tensors and plain values as ``torch.save`` writes them."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def unpack(content: bytes, name: Path) -> Any:
    """Tensors (on the CPU) and plain values from what :func:`pack` made; nothing in it is run.

    Raises:
        DamagedError: if ``content``, read from the file ``name``, is anything else.
    """
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that mean nothing make torch raise nearly anything
        reason = str(error).strip().split("\n")[0]
        raise DamagedError(f"{name} holds something else than tensors and plain values ({reason})") from error
