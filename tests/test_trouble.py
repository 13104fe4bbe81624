"""Trouble in a run: each is provoked, ends with a remedy, costs nothing that was saved, and is survived."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from nsm import checkpoints
from nsm.failures import RunError, explaining
from nsm.module import NSMModule
from nsm.train import train
from tests.same import differences

pytestmark = pytest.mark.usefixtures("process_state")
LENGTH = ("schedule.max_epochs=3", "schedule.batch_size=20", "schedule.limit_batches=6")
WHERE = (1, 3)
"""Epoch and batch, from 0, that the trouble comes with."""


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@contextlib.contextmanager
def at(monkeypatch: pytest.MonkeyPatch, trouble: Callable[[], Any]) -> Iterator[None]:
    """Let ``trouble`` come before one training step; a number that it returns is the loss."""
    before = NSMModule.training_step

    def troubled(self: NSMModule, batch: Any, batch_idx: int) -> Any:
        if (self.current_epoch, batch_idx) == WHERE:
            factor = trouble()
            return before(self, batch, batch_idx) * (1.0 if factor is None else factor)
        return before(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(NSMModule, "training_step", troubled)
        yield


def check_survived(configuration: DictConfig, folder: Path, whole: Path) -> None:
    """What the failure left is sound, and the same command goes on to what it would have given."""
    results = read(folder, "final_results.json")
    assert (results["status"], results["test"]) == ("failed", None)
    for path in folder.glob("*.ckpt"):
        checkpoints.load(path)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    train(configuration, whole)
    train(configuration, folder)
    assert read(folder, "final_results.json")["error"] is None
    assert differences(whole, folder) == []


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_it_reaches_the_weights(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    configuration = composed(*LENGTH, "schedule.checkpoint_every_minutes=0")
    folder = tmp_path / "run"
    told = r"epoch 2, batch 4, step 10 the loss is .*schedule\.skip_nonfinite=true .*last\.ckpt holds step 9,"
    with at(monkeypatch, lambda: factor), pytest.raises(RunError, match=told):
        train(configuration, folder)
    weights = checkpoints.load(folder / "error.ckpt")["state_dict"]
    assert all(bool(value.isfinite().all()) for value in weights.values())
    check_survived(configuration, folder, tmp_path / "whole")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_or_the_step_is_left_out(
    composed: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    accumulate: int,
) -> None:
    """The weights and the optimiser's memory stay as they are, and the epoch's mean leaves that batch out."""
    states: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def note(self: NSMModule, *_: Any) -> None:
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        memory = {
            f"{index}/{name}": value.clone()
            for index, state in self.optimizers().optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        states.append((weights, memory))

    skipping = composed(*LENGTH, "schedule.skip_nonfinite=true", f"schedule.accumulate_batches={accumulate}")
    with at(monkeypatch, lambda: float("nan")):
        monkeypatch.setattr(NSMModule, "on_train_batch_end", note)
        train(skipping, tmp_path)
    steps = [index for index in range(1, len(states)) if not _equal(states[index - 1], states[index])]
    left_out = 6 * WHERE[0] + WHERE[1]
    assert steps == [index for index in range(accumulate - 1, 18, accumulate) if index not in (0, left_out)]
    assert "epoch 2, batch 4, step" in caplog.text
    assert "is left out" in caplog.text
    history = read(tmp_path, "training_history.json")
    assert all(row["train/loss"] > 0 for row in history)
    assert read(tmp_path, "final_results.json")["status"] == "completed"


def _equal(one: tuple[dict[str, Any], ...], other: tuple[dict[str, Any], ...]) -> bool:
    return all(
        left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
        for left, right in zip(one, other, strict=True)
    )


def gpu_memory_gone() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def memory_gone() -> None:
    torch.empty(2**60)


def worker_gone() -> None:
    for worker in multiprocessing.active_children():
        if type(worker).__module__.startswith("multiprocessing"):  # those of joblib, of another test, are not
            worker.kill()


@pytest.mark.parametrize(
    ("trouble", "setting", "told"),
    [
        (gpu_memory_gone, None, r"out of GPU memory .*batch_size=20\. .*batch_size=10 schedule\.accumulate_batches=2"),
        (memory_gone, None, r"out of memory .*batch_size=20\. .*batch_size=10 schedule\.accumulate_batches=2"),
        (worker_gone, "hardware.num_workers=1", r"a process that makes batches died .*hardware\.num_workers=0"),
    ],
)
def test_what_is_lacking_is_told_with_what_to_lower(
    composed: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[], None],
    setting: str | None,
    told: str,
) -> None:
    configuration = composed(*LENGTH, *([setting] if setting else []))
    with at(monkeypatch, trouble), pytest.raises(RunError, match=told) as failed:
        train(configuration, tmp_path / "run")
    assert f"{tmp_path / 'run' / 'last.ckpt'} holds step 6" in str(failed.value)
    check_survived(configuration, tmp_path / "run", tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system may be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def test_a_full_disk_leaves_the_last_checkpoint_as_it_was(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_disk: Path
) -> None:
    configuration, folder = composed(*LENGTH, "schedule.checkpoint_every_minutes=0"), small_disk / "run"
    with at(monkeypatch, lambda: fill(small_disk)), pytest.raises(RunError, match=r"the disk is full .*Free some"):
        train(configuration, folder)
    assert checkpoints.load(folder / "last.ckpt")["global_step"] == 9
    assert len(read(folder, "training_history.json")) == 1
    assert os.statvfs(small_disk).f_bavail == 0 or (small_disk / "filler").stat().st_size > 2**20
    (small_disk / "filler").unlink()
    train(configuration, tmp_path / "whole")
    train(configuration, folder)
    assert differences(tmp_path / "whole", folder) == []


def test_a_full_disk_stops_a_run_before_it_begins(composed: Callable[..., DictConfig], small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(RunError, match=r"the disk is full .*domain\.cache_dir="):
        train(composed(f"domain.cache_dir={small_disk / 'data'}"), small_disk / "run")
    (small_disk / "filler").unlink()
    train(composed(f"domain.cache_dir={small_disk / 'data'}"), small_disk / "run")
    assert read(small_disk / "run", "final_results.json")["status"] == "completed"


def test_a_clock_that_jumps_changes_nothing(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(composed(*LENGTH), tmp_path / "whole")
    now, calls = time.time, iter(range(10**9))
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + (-1) ** next(calls) * 86400 * 365)
        train(composed(*LENGTH), tmp_path / "run")
    assert next(calls) > 0
    assert all(0 <= row["seconds"] < 3600 for row in read(tmp_path / "run", "training_history.json"))
    assert differences(tmp_path / "whole", tmp_path / "run") == []


def test_a_worker_that_dies_while_it_hands_over_a_batch_is_told_likewise() -> None:
    ours, theirs = multiprocessing.Pipe()
    theirs.close()
    with pytest.raises(RunError, match=r"a process that makes batches died .*num_workers=0"), explaining(8):
        ours.recv_bytes()
    with pytest.raises(ConnectionResetError), explaining(8):
        raise ConnectionResetError("of a logger's server")
