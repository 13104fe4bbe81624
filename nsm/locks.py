"""One writer a folder."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nsm.failures import RunError
from nsm.storage import DamagedError, read_json

LOCK = ".lock"
BEAT = 5.0
"""Seconds between the signs of life of a holder."""
WATCH = 30.0
"""Seconds for which another host's lock is watched for signs of life; network file systems show a change late."""
LINGER = 15.0
"""Seconds that the children of a killed process may hold on to its lock."""
SIZE = 300
"""Bytes of the file: always the same, so that it is never seen half-written."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the only process that writes into ``folder``.

    The system's lock on ``folder/.lock`` falls with its holder, so that a dead process of this host keeps nobody out.
    Not every network file system carries locks between hosts: there the file, which names its holder, is watched for
    the holder's signs of life. Whoever ends in good order removes it.

    Raises:
        RunError: if another process is at it, naming its host and process id.
    """
    path = folder / LOCK
    file = _acquire(path)
    try:
        with _signs_of_life(file):
            yield
    finally:
        path.unlink(missing_ok=True)  # while it is held, so that nobody else's is removed
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # for this process's children too, which closing would not do
        os.close(file)


def _acquire(path: Path) -> int:
    """Open and lock the file, once whoever held it is dead."""
    deadline = time.monotonic() + LINGER
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            owner = _owner(path)
            if _elsewhere(owner) or _alive(owner) or time.monotonic() > deadline:
                raise _refusal(path, owner) from None
            time.sleep(0.1)
            continue
        except OSError:  # a file system without locks: what the holder writes has to do
            if not _elsewhere(_owner(path)) and _alive(_owner(path)):
                os.close(file)
                raise _refusal(path, _owner(path)) from None
        owner = _owner(path)
        if _elsewhere(owner) and _shows_life(path, owner):
            os.close(file)
            raise _refusal(path, owner)
        if _is(path, file):
            return file
        os.close(file)  # its holder removed it in the meantime


@contextlib.contextmanager
def _signs_of_life(file: int) -> Iterator[None]:
    """Keep writing who holds the file into it."""
    ended = threading.Event()

    def sign(beat: int) -> None:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "beat": beat}
        os.pwrite(file, json.dumps(owner).encode().ljust(SIZE), 0)

    def keep_signing() -> None:
        beat = 0
        while not ended.wait(BEAT):
            beat += 1
            with contextlib.suppress(OSError):  # what the run itself writes tells more
                sign(beat)

    sign(0)
    pulse = threading.Thread(target=keep_signing, name="lock", daemon=True)
    pulse.start()
    try:
        yield
    finally:
        ended.set()
        pulse.join()


def _owner(path: Path) -> dict[str, Any]:
    """Who signed, or nothing where nobody did."""
    try:
        owner = read_json(path)
    except DamagedError:
        return {}
    return owner if isinstance(owner, dict) and {"host", "pid"} <= owner.keys() else {}


def _elsewhere(owner: dict[str, Any]) -> bool:
    return bool(owner) and owner["host"] != socket.gethostname()


def _alive(owner: dict[str, Any]) -> bool:
    """Whether the process, one of this host, exists."""
    try:
        os.kill(int(owner["pid"]), 0)
    except PermissionError:  # somebody else's
        return True
    except (KeyError, TypeError, ValueError, OverflowError, ProcessLookupError):
        return False
    return True


def _shows_life(path: Path, owner: dict[str, Any]) -> bool:
    """Whether another host's process still signs, told without comparing the clocks of two machines."""
    deadline = time.monotonic() + WATCH
    while time.monotonic() < deadline:
        time.sleep(min(1.0, WATCH / 10))
        if _owner(path) != owner:
            return True
    return False


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _refusal(path: Path, owner: dict[str, Any]) -> RunError:
    who = f"process {owner['pid']} on {owner['host']}" if owner else "another process"
    return RunError(
        f"{path.parent} is being written by {who}. Wait for it, stop it, or choose another folder with hydra.run.dir="
    )
