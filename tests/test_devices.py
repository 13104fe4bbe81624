"""Several devices: two processes on the CPU train what one does."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nsm import cli
from nsm.data.loader import EpochSampler
from nsm.train import CONF, main
from tests.faults.kills import SHORT, SMALL
from tests.same import differences

LENGTH = ("schedule.max_epochs=3", "schedule.batch_size=16", "schedule.limit_batches=null", "model.dropout=0")
CLOSE = {"val/auroc": 2e-3, "auroc": 2e-3}
"""Where probabilities are equal in one process and almost equal in two, ranks differ."""
CLOCKS = {"seconds", "graphs_per_second", "peak_memory_bytes"}


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def start(overrides: Sequence[str], folder: Path, devices: int = 1) -> list[ForkProcess]:
    """``python -m nsm.train`` in one process for each device, as a cluster would start them; forked, to be fast."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def run(rank: int) -> None:
        if devices > 1:
            place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": devices, "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
        sys.argv = ["nsm.train", *overrides, f"hydra.run.dir={folder}", f"hardware.devices={devices}"]
        cli.run(main, CONF, "train")

    processes = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(devices)]
    for process in processes:
        process.start()
    return processes


def finish(processes: list[ForkProcess]) -> list[int | None]:
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def check_close(one: Path, two: Path) -> None:
    """The same history and results, but for clocks and rounding."""
    rows = zip(read(one, "training_history.json"), read(two, "training_history.json"), strict=True)
    results = [read(folder, "final_results.json")["test"] for folder in (one, two)]
    for left, right in [*rows, tuple(results)]:
        assert left.keys() == right.keys()
        for key in left.keys() - CLOCKS:
            if left[key] is None:
                assert right[key] is None, key
                continue
            assert left[key] == pytest.approx(right[key], rel=1e-4, abs=CLOSE.get(key, 1e-5)), key


@pytest.mark.parametrize("settings", [(), ("schedule.accumulate_batches=2", "schedule.lr_schedule=one_cycle")])
def test_two_devices_train_what_one_does(overrides: list[str], tmp_path: Path, settings: tuple[str, ...]) -> None:
    """Of 140 samples the last batch has 12; with a batch for each of 16, it is the only smaller one."""
    for folder, devices in (("one", 1), ("two", 2)):
        assert finish(start([*overrides, *LENGTH, *settings], tmp_path / folder, devices)) == [0] * devices
    check_close(tmp_path / "one", tmp_path / "two")
    assert not list((tmp_path / "two").glob("*ddp*"))


@pytest.mark.slow
def test_two_devices_are_stopped_and_continued(overrides: list[str], tmp_path: Path) -> None:
    """A signal reaches the first process alone."""
    length = [*overrides, *LENGTH, "schedule.max_epochs=4", "schedule.checkpoint_every_minutes=0"]
    assert finish(start(length, tmp_path / "whole", 2)) == [0, 0]
    for stop, exit_code in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        folder = tmp_path / stop.name
        processes = start(length, folder, 2)
        while not (folder / "checkpoint_epoch_2.ckpt").exists():
            assert processes[0].is_alive()
            time.sleep(0.01)
        os.kill(processes[0].pid or 0, stop)
        first, second = finish(processes)
        assert first == exit_code
        assert second not in (0, None)
        assert len(read(folder, "training_history.json")) < 4
        assert finish(start(length, folder, 2)) == [0, 0]
        assert differences(tmp_path / "whole", folder) == []


@pytest.mark.slow
def test_the_command_starts_a_process_for_each_device(tmp_path: Path) -> None:
    settings = [
        "domain=causal",
        "model=flat",
        *SMALL["causal"],
        *SHORT,
        "schedule.limit_batches=null",
        "model.dropout=0",
    ]
    settings += [f"domain.cache_dir={tmp_path / 'data'}"]
    assert finish(start(settings, tmp_path / "one")) == [0]
    command = [sys.executable, "-m", "nsm.train", *settings, "hardware.devices=2", f"hydra.run.dir={tmp_path / 'two'}"]
    ended = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    check_close(tmp_path / "one", tmp_path / "two")


def test_devices_share_every_batch() -> None:
    """Together they see the batches of one, and as many of them; a last batch too small for all is left out."""
    for size in range(20, 30):
        whole = list(EpochSampler(size, batch_size=6, seed=3, epoch=2))
        samplers = [EpochSampler(size, batch_size=6, seed=3, epoch=2, rank=rank, world_size=3) for rank in range(3)]
        parts = [list(sampler) for sampler in samplers]
        assert [len(part) for part in parts] == [len(sampler) for sampler in samplers]
        batches = [np.array_split(part, range(2, len(part), 2)) for part in parts]
        used = size if size % 6 in (0, 3, 4, 5) else size - size % 6
        assert {len(part) for part in batches} == {-(-used // 6)}
        for index, first in enumerate(range(0, used, 6)):
            together = np.concatenate([part[index] for part in batches])
            assert sorted(together) == sorted(whole[first : min(first + 6, used)])


def test_a_multirun_has_one_device_a_run(command: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: hardware\.devices=2 cannot be used: each run of a multirun"):
        command("--multirun", "hardware.devices=2", "schedule.batch_size=16", f"hydra.sweep.dir={tmp_path / 'outputs'}")


def test_a_batch_is_shared_evenly(command: Callable[..., None]) -> None:
    with pytest.raises(SystemExit, match=r"hardware\.devices=3 cannot be used: .* schedule\.batch_size"):
        command("hardware.devices=3", "schedule.batch_size=16")
