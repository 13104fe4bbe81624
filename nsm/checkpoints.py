"""Checkpoint files: written whole, sealed with a digest, and checked before they are trusted.

A checkpoint is Lightning's own, which ``torch.load`` reads; the seal is the comment at the end of its zip archive.
"""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO

from nsm import storage
from nsm.failures import RunError
from nsm.storage import DamagedError

log = logging.getLogger(__name__)
LAST, BEST, PERIODIC = "last.ckpt", "best_model.ckpt", "checkpoint_epoch_*.ckpt"
FORMAT = 1
"""Raise it when a checkpoint changes so that the code before cannot continue from it; older ones must load."""
SEAL = re.compile(rb"..nsm checkpoint (\d+) sha256:[0-9a-f]{64}\Z", re.DOTALL)
SEAL_SIZE = 128
"""More bytes than a seal has."""
STATE = frozenset({"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "hyper_parameters"})
"""What every checkpoint of a run has."""


class CheckpointFiles(TorchCheckpointIO):
    """How Lightning writes and reads checkpoints here."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        save(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load(Path(path))


def save(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` to ``path``, whole and sealed."""
    packed = storage.pack(state)
    assert packed.endswith(bytes(2))  # a zip archive without a comment: its last field is the comment's length
    storage.write_whole(path, packed[:-2] + _seal(packed[:-2], FORMAT))


def load(path: Path) -> dict[str, Any]:
    """The state that :func:`save` wrote, its tensors on the CPU.

    Raises:
        DamagedError: if the file is not what was written, or is no checkpoint of a run.
        RunError: if a newer version of NSM wrote it.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error.strerror})") from error
    seal = SEAL.search(content[-SEAL_SIZE:])
    if seal is None:
        raise DamagedError(f"{path} does not end as a checkpoint does")
    version = int(seal[1])
    if content[-len(seal[0]) :] != _seal(memoryview(content)[: -len(seal[0])], version):
        raise DamagedError(f"{path} is damaged: its digest does not match its content")
    if version > FORMAT:
        raise RunError(f"{path} was written by a newer version of NSM (format {version}, here {FORMAT}); update NSM")
    state = storage.unpack(content, path)
    if not isinstance(state, dict) or not state.keys() >= STATE:
        raise DamagedError(f"{path} is no checkpoint of a run")
    return state


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest sound checkpoint of the run in ``folder`` and its state, or None where there is no checkpoint at all.

    Damaged ones are reported. What is newest is decided by the steps in it, not by the file's time.

    Raises:
        RunError: if there are checkpoints, but none is sound.
    """
    last = folder / LAST
    damage: list[str] = []
    found: list[tuple[Path, dict[str, Any]]] = []
    for path in [last, *sorted([folder / BEST, *folder.glob(PERIODIC)])]:
        if not path.exists():
            continue
        try:
            found.append((path, load(path)))
        except DamagedError as error:
            damage.append(str(error))
            continue
        if path == last:  # always the newest where it is sound
            break
    if damage and not found:
        raise RunError(
            f"no checkpoint of {folder} is sound: {'; '.join(damage)}. To start anew there: resume=never; else choose "
            "another folder with hydra.run.dir="
        )
    if not found:
        return None
    path, state = max(found, key=lambda item: item[1]["global_step"])
    for told in damage:
        log.warning("%s; continuing from %s, step %d", told, path.name, state["global_step"])
    return path, state


def describe(folder: Path) -> str:
    """What a run in ``folder`` that ended too early can be continued from, in words."""
    try:
        found = newest(folder)
    except RunError as error:
        return str(error)
    if found is None:
        return "Nothing was saved yet: the same command starts anew"
    path, state = found
    return f"{path} holds step {state['global_step']}, which the run continues from"


def _seal(content: bytes | memoryview, version: int) -> bytes:
    """The comment, after its length in two bytes, that ends an archive."""
    digest = hashlib.sha256(content)
    digest.update(b"%d" % version)
    comment = b"nsm checkpoint %d sha256:%s" % (version, digest.hexdigest().encode())
    return len(comment).to_bytes(2, "little") + comment
