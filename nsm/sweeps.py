"""Multiruns on this machine: the same command finds the folders that it wrote into before, and does what is missing."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from nsm import resume, runs
from nsm.config import ConfigError
from nsm.data.cache import content_hash
from nsm.failures import DivergedError, RunError
from nsm.storage import write_whole

RECORDS = ".sweeps"
"""Folder, in ``hydra.sweep.dir``, of one file for each sweep."""
NAME = "NSM_SWEEP"
"""Environment variable by which ``hydra.sweep.subdir`` gives all jobs of a sweep its name."""
AGAIN = tuple(f"failed: {error.__name__}" for error in (ConfigError, DivergedError))
"""How the state of a job begins that the same command would not change."""


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep."""

    num: int
    """Its number in the sweep, from 0, as Hydra prints it."""
    overrides: Sequence[str]
    folder: Path
    settings: Mapping[str, Any]

    def state(self) -> str:
        """``complete``, or what is known of why not."""
        try:
            if resume.look(self.folder, self.settings).results is not None:
                return "complete"
        except RunError as error:
            return str(error)
        results = runs.read_results(self.folder) or {}
        return ": ".join(str(results[key]) for key in ("status", "error") if results.get(key)) or "not complete"


@contextlib.contextmanager
def named(jobs: Sequence[DictConfig]) -> Iterator[list[Job]]:
    """Name the sweep of ``jobs``, and give their folders: those of the newest same sweep, or new ones.

    Sweeps are the same if their jobs' configurations and the code are. With ``resume=never`` one begins anew.

    Args:
        jobs: the whole configuration of each, Hydra's included, in their order.
    """
    settings = [settings_of(job) for job in jobs]
    identity = content_hash({"jobs": [runs.config_hash(each) for each in settings], "code": _code()})
    records = Path(jobs[0].hydra.sweep.dir, RECORDS)
    earlier = sorted(path.name for path in records.glob(f"*_{identity}.json"))
    goes_on = bool(earlier) and all(each["resume"] == "auto" for each in settings)
    name = earlier[-1].rpartition("_")[0] if goes_on else f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    before = os.environ.get(NAME)
    os.environ[NAME] = name
    try:
        overrides = [list(job.hydra.overrides.task) for job in jobs]
        numbers = range(len(jobs))
        found = [Job(*each) for each in zip(numbers, overrides, map(_folder, numbers, jobs), settings, strict=True)]
        if not goes_on:
            records.mkdir(parents=True, exist_ok=True)
            content = [{"overrides": job.overrides, "folder": str(job.folder)} for job in found]
            write_whole(records / f"{name}_{identity}.json", json.dumps(content, indent=2).encode())
        yield found
    finally:
        if before is None:
            del os.environ[NAME]
        else:
            os.environ[NAME] = before


def summary(jobs: Sequence[Job]) -> str:
    """How many are complete, and what became of the others."""
    states = {job: state for job in jobs if (state := job.state()) != "complete"}
    lines = [f"job {job.num}, {job.folder}: {state}" for job, state in states.items()]
    how = "the same command does what is missing" if lines else "resume=never runs it anew"
    again = [job for job, state in states.items() if state.startswith(AGAIN)]
    if again:
        how += f", but {named_jobs(again)} would fail again: change what the message names"
    return "\n".join([*lines, f"{len(jobs) - len(lines)} of {len(jobs)} runs are complete; {how}"])


def named_jobs(jobs: Sequence[Job]) -> str:
    """Their numbers."""
    return f"job{'s' * (len(jobs) > 1)} {', '.join(str(job.num) for job in jobs)}"


def settings_of(composed: DictConfig) -> dict[str, Any]:
    """A run's own settings, without Hydra's, as plain values."""
    own = [str(key) for key in composed if key != "hydra"]
    settings: Any = OmegaConf.to_container(OmegaConf.masked_copy(composed, own), resolve=True)
    return settings


def _folder(num: int, job: DictConfig) -> Path:
    with open_dict(job):
        job.hydra.job.num, job.hydra.job.id = num, str(num)
    HydraConfig.instance().set_config(job)  # which names of folders may refer to
    return Path(job.hydra.sweep.dir, job.hydra.sweep.subdir)


def _code() -> str:
    """Digest of this package's code."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
