"""The jobs of a launch: whole configurations, their folders, and what makes them the same in another launch."""

import hashlib
import importlib
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from hydra_plugins.nsm_modal.config import LauncherError, ModalLauncherConfig, refuse_unless
from hydra_plugins.nsm_modal.cost import usd_per_second
from hydra_plugins.nsm_modal.task import TaskName
from omegaconf import DictConfig, OmegaConf, open_dict


@dataclass
class Job:
    """One configuration to be run."""

    num: int
    overrides: list[str]
    config: DictConfig
    """Hydra's node included."""
    config_hash: str
    output_dir: str
    """Where its outputs belong here, as configured: relative to the working directory, or absolute."""
    expected_seconds: float | None

    @property
    def folder(self) -> str:
        """Its folder on the volume."""
        return volume_folder(self.output_dir)

    def spec(
        self, settings: ModalLauncherConfig, *, sweep: str, task: TaskName | None, env: dict[str, str]
    ) -> dict[str, Any]:
        """What :func:`hydra_plugins.nsm_modal.worker.run` is told, in plain values."""
        prices = {str(gpu or "none"): usd_per_second(settings, gpu) for gpu in settings.gpus}
        return {
            "sweep": sweep,
            "num": self.num,
            "overrides": self.overrides,
            "config_hash": self.config_hash,
            "task": task and task.to_dict(),
            "volume": settings.volume,
            "mount": settings.mount,
            "folder": self.folder,
            "commit_seconds": settings.commit_seconds,
            "commit_on": list(settings.commit_on),
            "max_retries": settings.retries.max_retries,
            "not_after": list(settings.retries.not_after),
            "timeout": settings.timeout,
            "usd_per_second": prices,
            "env": env,
        }

    def job_return(self, value: Any, *, failed: bool = False) -> JobReturn:
        """What Hydra's sweeper is given: ``value`` returned, or raised where the job ``failed``."""
        task_config = self.config.copy()
        with open_dict(task_config):
            del task_config["hydra"]
        return JobReturn(
            overrides=self.overrides,
            cfg=task_config,
            hydra_cfg=OmegaConf.masked_copy(self.config, "hydra"),
            working_dir=self.output_dir,
            task_name=self.config.hydra.job.name,
            status=JobStatus.FAILED if failed else JobStatus.COMPLETED,
            _return_value=value,
        )


def compose_jobs(
    context: HydraContext, config: DictConfig, overrides: Iterable[Sequence[str]], first: int, expected: Any
) -> list[Job]:
    """Compose the configuration of every job, numbered from ``first``.

    Raises:
        LauncherError: if a job asks for another launcher, or for other settings of this one, than the sweep has.
    """
    jobs = []
    for num, job_overrides in enumerate(overrides, first):
        composed = context.config_loader.load_sweep_config(config, list(job_overrides))
        with open_dict(composed):
            composed.hydra.job.id = str(num)
            composed.hydra.job.num = num
        if composed.hydra.launcher != config.hydra.launcher:
            raise LauncherError(
                f"job {num} ({' '.join(job_overrides)}) asks for another launcher, or other settings of it, than the "
                "sweep has: all jobs of a multirun go to one kind of hardware. Launch one multirun for each"
            )
        HydraConfig.instance().set_config(composed)
        output_dir = Path(str(composed.hydra.sweep.dir), str(composed.hydra.sweep.subdir))
        task_config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
        jobs.append(
            Job(
                num=num,
                overrides=list(composed.hydra.overrides.task),
                config=composed,
                config_hash=_digest(OmegaConf.to_yaml(task_config, sort_keys=True)),
                output_dir=str(output_dir),
                expected_seconds=_expected_seconds(expected, task_config),
            )
        )
    HydraConfig.instance().set_config(config)
    folders = [job.folder for job in jobs]
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise LauncherError(
            f"two jobs would write into {twice}: let hydra.sweep.subdir tell jobs apart, as in "
            "hydra.sweep.subdir='${hydra.job.num}'"
        )
    return jobs


def volume_folder(output_dir: str) -> str:
    """Folder on the volume of an output folder here: the same path if it is relative and stays below the working
    directory, else its absolute path without the root."""
    path = Path(output_dir)
    inside = not path.is_absolute() and ".." not in path.parts
    parts = path.parts if inside else path.resolve().parts[1:]
    return str(PurePosixPath(*parts))


def identity(jobs: Sequence[Job], sources: Sequence[Path]) -> str:
    """What two launches share exactly when they ask for the same configurations from the same code."""
    code = [_digest(path.read_bytes()) for source in sorted(sources) for path in source_files(source)]
    return _digest(repr(([job.config_hash for job in jobs], code)))[:12]


def source_files(source: Path) -> list[Path]:
    """The Python files of a package's folder, or the one file of a module."""
    return sorted(source.rglob("*.py")) if source.is_dir() else [source]


def git_commit(source: Path) -> str | None:
    """Commit of the checkout that holds ``source``, with ``-dirty`` if files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _expected_seconds(expected: Any, task_config: DictConfig) -> float | None:
    if isinstance(expected, str):
        module, _, name = expected.partition(":")
        try:
            expected = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise LauncherError(f"hydra.launcher.expected_seconds={module}:{name} cannot be used: {error}") from error
        expected = expected(task_config)
        known = expected is None or isinstance(expected, int | float)
        refuse_unless(
            known, "expected_seconds", f"{module}:{name}", f"it returned {expected!r}, not a number of seconds"
        )
    return None if expected is None else float(expected)


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
