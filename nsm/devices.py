"""A run on several devices: Lightning starts the same command once more for each device but the first.

The first process is the run's: it has the lock, writes the folder and tests. The others only train along.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.strategies import DDPStrategy, Strategy
from omegaconf import DictConfig
from torch import distributed

from nsm.config import ConfigError, HardwareConfig


def following() -> bool:
    """Whether this process trains along with one that started it."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0


def strategy(hardware: HardwareConfig) -> Strategy | str:
    """How Lightning trains on the devices; they exchange gradients alone: no layer here has running statistics."""
    if hardware.devices == 1:
        return "auto"
    backend = "nccl" if hardware.device == "cuda" else "gloo"
    return DDPStrategy(process_group_backend=backend, forward_sync_buffers=False)


def be_silent() -> None:
    """Leave it to the first process to tell what happens, on the terminal and in ``train.log``."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
        if isinstance(handler, logging.FileHandler):
            Path(handler.baseFilename).unlink(missing_ok=True)
    root.addHandler(logging.NullHandler())


def part() -> None:
    """End what connects the processes, so that the first may go on alone."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def check_single(jobs: Sequence[DictConfig]) -> None:
    """Raise :class:`ConfigError` if a job of a multirun asks for several devices.

    Lightning starts the further processes with this process's command line, which would be the whole multirun.
    """
    for job in jobs:
        if job.hardware.devices > 1:
            raise ConfigError(
                f"hardware.devices={job.hardware.devices} cannot be used: each run of a multirun has one device; give "
                "the runs one command each, without --multirun"
            )
