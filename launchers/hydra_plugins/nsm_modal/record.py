"""What is remembered of a sweep: one JSON file on the volume, from which any client can go on."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone

from hydra_plugins.nsm_modal.config import LauncherError
from hydra_plugins.nsm_modal.sync import VolumeClient

RECORDS = ".sweeps"
"""Folder of the records on the volume."""


@dataclass
class JobRecord:
    """One job of a sweep."""

    num: int
    overrides: list[str]
    config_hash: str
    folder: str
    """On the volume."""
    output_dir: str
    """Here: absolute, or relative to the working directory of the launch."""
    call: str | None = None
    """Modal's id of the call that runs it; None while it is not submitted."""


@dataclass
class SweepRecord:
    """A sweep: its jobs, and what is needed to find them again."""

    name: str
    """When it was launched and :attr:`identity`, so that names sort by age."""
    identity: str
    """Shared by launches of the same configurations from the same code."""
    app: str
    """Name of its app on Modal."""
    keep_app: bool
    mount: str
    commit_on: list[str]
    """Names of checkpoints, as patterns."""
    command: list[str]
    """That launched it, and that continues it."""
    gpus: list[str | None]
    usd_per_second: float
    """Of the dearest container that it may get."""
    jobs: list[JobRecord] = field(default_factory=list)

    @staticmethod
    def new_name(identity: str) -> str:
        """Name of a sweep that is launched now, UTC."""
        return f"{datetime.now(timezone.utc):%Y-%m-%d_%H-%M-%S}_{identity}"

    @property
    def path(self) -> str:
        """On the volume."""
        return f"{RECORDS}/{self.name}.json"

    def to_json(self) -> str:
        """What the file holds."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def parse(cls, text: str | bytes) -> "SweepRecord | None":
        """Read a record; None if it is damaged."""
        try:
            fields = json.loads(text)
            jobs = [JobRecord(**job) for job in fields.pop("jobs")]
            return cls(**fields, jobs=jobs)
        except (ValueError, TypeError, KeyError, AttributeError):
            return None


async def read_record(volume: VolumeClient, name: str) -> SweepRecord | None:
    """The record of a sweep; None if the volume has none.

    Raises:
        LauncherError: if it is damaged, and not because somebody is just writing it.
    """
    for pause in (0.5, 1.0, 2.0, 0.0):
        text = await volume.read(f"{RECORDS}/{name}.json")
        record = None if text is None else SweepRecord.parse(text)
        if text is None or record is not None:
            return record
        await asyncio.sleep(pause)
    raise LauncherError(f"the record of the sweep {name} on the volume {volume.name} is damaged")


def newest(names: Sequence[str], identity: str) -> str | None:
    """The youngest of the sweeps with this identity."""
    return max((name for name in names if name.endswith(f"_{identity}")), default=None)
