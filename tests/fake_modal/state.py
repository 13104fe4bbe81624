"""What all parts of the stand-in share."""

import asyncio
import collections
import contextlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path

from tests.fake_modal.faults import Faults
from tests.fake_modal.records import (
    AppRecord,
    CallRecord,
    CommitRecord,
    ContainerRecord,
    FunctionRecord,
    ImageRecord,
    InputRecord,
    LogRecord,
    MountRecord,
    SecretRecord,
    TunnelRecord,
    VolumeRecord,
)
from tests.fake_modal.settings import Settings


class Changes:
    """Wakes whoever waits for something to change."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def notify(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait(self, timeout: float) -> None:
        """Return after the next change or the timeout (s), whichever comes first."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._changed.wait(), max(timeout, 0.0))


@dataclass
class State:
    """Everything the stand-in knows. Belongs to the thread of the server's event loop; others only read."""

    settings: Settings
    faults: Faults
    directory: Path = Path()
    """Of volumes and containers; the server makes it as it starts."""
    changes: Changes = field(default_factory=Changes)
    grpc_url: str = ""
    http_url: str = ""

    rpc_counts: collections.Counter[str] = field(default_factory=collections.Counter)
    unimplemented: collections.Counter[str] = field(default_factory=collections.Counter)
    errors: list[str] = field(default_factory=list)

    apps: dict[str, AppRecord] = field(default_factory=dict)
    functions: dict[str, FunctionRecord] = field(default_factory=dict)
    calls: dict[str, CallRecord] = field(default_factory=dict)
    inputs: dict[str, InputRecord] = field(default_factory=dict)
    containers: dict[str, ContainerRecord] = field(default_factory=dict)
    images: dict[str, ImageRecord] = field(default_factory=dict)
    mounts: dict[str, MountRecord] = field(default_factory=dict)
    secrets: dict[str, SecretRecord] = field(default_factory=dict)
    volumes: dict[str, VolumeRecord] = field(default_factory=dict)
    commits: list[CommitRecord] = field(default_factory=list)
    logs: list[LogRecord] = field(default_factory=list)
    tunnels: list[TunnelRecord] = field(default_factory=list)
    contents: dict[str, bytes] = field(default_factory=dict)
    """Uploaded files and blocks of files, by SHA-256."""
    blobs: dict[str, bytes] = field(default_factory=dict)

    _counters: collections.defaultdict[str, "itertools.count[int]"] = field(
        default_factory=lambda: collections.defaultdict(lambda: itertools.count(1))
    )

    def new_id(self, prefix: str) -> str:
        """Ids have Modal's form, by which its commands tell an app's id from a name (modal._utils.name_utils)."""
        return f"{prefix}-{next(self._counters[prefix]):022d}"
