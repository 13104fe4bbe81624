"""A run that was stopped anywhere and continued gives what one that was not stopped gives, bit for bit."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from nsm.failures import RunError
from nsm.interrupts import InterruptedRun, Interrupts
from nsm.module import NSMModule
from nsm.train import train
from tests.same import differences

pytestmark = pytest.mark.usefixtures("process_state")
SETTINGS = {
    "plateau": ("schedule.plateau.patience=0", "schedule.learning_rate=0.3"),
    "one_cycle": ("schedule.lr_schedule=one_cycle", "schedule.accumulate_batches=2"),
    "workers": ("schedule.warmup=0.4", "hardware.num_workers=1"),
    "hierarchy": (
        "model=nsm",
        "model.node_features=8",
        "schedule.temperature.decay=0.5",
        "schedule.temperature.warmup_epochs=0",
    ),
}
LENGTH = ("schedule.max_epochs=4", "schedule.batch_size=20", "schedule.limit_batches=6", "model.dropout=0.3")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


class PowerCutError(Exception):
    """Ends a run without its knowledge."""


def stop_at(patch: pytest.MonkeyPatch, hook: str, when: Callable[[NSMModule, tuple[Any, ...]], bool]) -> None:
    """Make the module raise at a hook of Lightning's when ``when`` holds for the module and the hook's arguments."""
    before = getattr(NSMModule, hook)

    def cut(self: NSMModule, *arguments: Any) -> Any:
        if when(self, arguments):
            raise PowerCutError
        return before(self, *arguments)

    patch.setattr(NSMModule, hook, cut)


MOMENTS: dict[str, tuple[str, Callable[[NSMModule, tuple[Any, ...]], bool]]] = {
    "first batch": ("training_step", lambda module, step: True),
    "within the first epoch": ("training_step", lambda module, step: step[1] == 3),
    "epoch start": ("on_train_epoch_start", lambda module, step: module.current_epoch == 2),
    "within an epoch": ("training_step", lambda module, step: module.current_epoch == 2 and step[1] == 4),
    "last batch": ("training_step", lambda module, step: module.current_epoch == 1 and step[1] == 5),
    "validation": ("validation_step", lambda module, step: module.current_epoch == 1),
    "epoch end": ("on_train_epoch_end", lambda module, step: module.current_epoch == 2),
    "test": ("test_step", lambda module, step: True),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_continuing_gives_what_not_stopping_gives(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    length = (*LENGTH, "schedule.max_epochs=3")
    train(composed(*settings, *length), whole)
    configuration = composed(*settings, *length, "schedule.checkpoint_every_minutes=0")
    for moment, (hook, when) in MOMENTS.items():
        shutil.rmtree(parted, ignore_errors=True)
        with monkeypatch.context() as patch:
            stop_at(patch, hook, when)
            with pytest.raises(PowerCutError):
                train(configuration, parted)
        train(configuration, parted)
        assert differences(whole, parted) == [], moment


def test_an_early_stop_is_remembered(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that stopped early and was killed in its test trains no further."""
    settings = ("schedule.learning_rate=1e-12", "schedule.weight_decay=0", "schedule.early_stopping_patience=2")
    configuration = composed(*settings, "schedule.max_epochs=9")
    train(configuration, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, "test_step", lambda module, step: True)
        with pytest.raises(PowerCutError):
            train(configuration, tmp_path / "parted")
    train(configuration, tmp_path / "parted")
    assert len(read(tmp_path / "parted", "training_history.json")) == 3
    assert differences(tmp_path / "whole", tmp_path / "parted") == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("hook", ["training_step", "validation_step", "test_step"])
def test_a_signal_saves_what_was_done(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, hook: str
) -> None:
    """Within an epoch nothing is repeated; in a validation the epoch is ended first; a test is begun anew."""
    configuration = composed(*LENGTH, "schedule.checkpoint_every_minutes=null")
    train(configuration, tmp_path / "whole")
    trained, steps = NSMModule.training_step, []

    def counted(self: NSMModule, batch: Any, batch_idx: int) -> Any:
        steps.append((self.current_epoch, batch_idx))
        return trained(self, batch, batch_idx)

    monkeypatch.setattr(NSMModule, "training_step", counted)
    before, moment = getattr(NSMModule, hook), {"training_step": (1, 2), "validation_step": (1, 0)}.get(hook)

    def signalled(self: NSMModule, batch: Any, batch_idx: int, *more: int) -> Any:
        if moment in (None, (self.current_epoch, batch_idx)):
            signal.raise_signal(signum)
        return before(self, batch, batch_idx, *more)

    with monkeypatch.context() as patch:
        patch.setattr(NSMModule, hook, signalled)
        with pytest.raises(InterruptedRun) as stopped:
            train(configuration, tmp_path / "parted")
    assert stopped.value.exit_code == 128 + signum
    assert not (tmp_path / "parted" / "error.ckpt").exists()
    results = read(tmp_path / "parted", "final_results.json")
    assert (results["status"], results["test"]) == ("interrupted", None)
    assert signal.Signals(signum).name in results["error"]
    train(configuration, tmp_path / "parted")
    assert differences(tmp_path / "whole", tmp_path / "parted") == []
    assert steps == [(epoch, batch) for epoch in range(4) for batch in range(6)]


def test_a_second_signal_stops_at_once() -> None:
    interrupts, before = Interrupts(), signal.getsignal(signal.SIGTERM)
    with interrupts.heeded(), contextlib.suppress(InterruptedRun), interrupts.patiently():
        signal.raise_signal(signal.SIGINT)
        assert interrupts.waiting
        with pytest.raises(InterruptedRun, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_goes_on_where_its_folder_was_moved(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best epoch is before the move, and no later one may take its place."""
    settings = ("schedule.max_epochs=5", "schedule.learning_rate=0.1", "schedule.lr_schedule=constant", "seed=4")
    configuration = composed(*settings, "schedule.checkpoint_every_epochs=2")
    train(configuration, tmp_path / "whole")
    history = read(tmp_path / "whole", "training_history.json")
    best = min(history, key=lambda row: row["val/loss"])["epoch"]
    assert best in (2, 3, 4), "choose another seed"
    with monkeypatch.context() as patch:
        stop_at(patch, "on_train_epoch_start", lambda module, step: module.current_epoch == best)
        with pytest.raises(PowerCutError):
            train(configuration, tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(tmp_path / "here")
    train(configuration, tmp_path / "here")
    assert differences(tmp_path / "whole", tmp_path / "here") == []
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "missing", "foreign"])
def test_a_damaged_checkpoint_is_told_and_the_newest_sound_one_used(
    composed: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    configuration = composed(*LENGTH, "schedule.checkpoint_every_epochs=2")
    train(configuration, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, "on_train_epoch_start", lambda module, step: module.current_epoch == 3)
        with pytest.raises(PowerCutError):
            train(configuration, tmp_path / "parted")
    last = tmp_path / "parted" / "last.ckpt"
    content = last.read_bytes()
    middle = len(content) // 2
    if damage == "missing":
        last.unlink()
    else:
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        made = {"flipped": flipped, "truncated": content[:middle], "empty": b"", "foreign": b"PK\x05\x06" * 50}
        last.write_bytes(made[damage])
    (tmp_path / "parted" / "error.ckpt").write_bytes(content)  # newer, but not to be continued from
    os.utime(tmp_path / "parted" / "checkpoint_epoch_2.ckpt", (0, 0))  # a clock says nothing
    train(configuration, tmp_path / "parted")
    if damage != "missing":
        assert f"{last} " in caplog.text
        assert "continuing from" in caplog.text
    assert differences(tmp_path / "whole", tmp_path / "parted") == []


def test_without_a_sound_checkpoint_nothing_is_started_anew(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    train(composed(), tmp_path)
    (tmp_path / "final_results.json").unlink()
    for path in tmp_path.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1])
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")}
    with pytest.raises(RunError, match=r"no checkpoint of .* is sound: .*last\.ckpt .*resume=never"):
        train(composed(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.ckpt")} == before


def test_a_lost_best_epoch_is_told(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    train(composed(), tmp_path)
    (tmp_path / "final_results.json").unlink()
    (tmp_path / "best_model.ckpt").write_bytes(b"")
    with pytest.raises(RunError, match=r"best_model\.ckpt .* nothing else holds the weights of the best epoch"):
        train(composed(), tmp_path)


@pytest.mark.parametrize("complete", [True, False])
def test_another_configuration_is_refused(composed: Callable[..., DictConfig], tmp_path: Path, complete: bool) -> None:
    train(composed(), tmp_path)
    if not complete:
        (tmp_path / "final_results.json").unlink()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(RunError, match=r"\(schedule\.learning_rate was 0\.002, now 0\.1, seed was 0, now 1\)"):
        train(composed("schedule.learning_rate=0.1", "seed=1", "domain.seed=0"), tmp_path)
    with pytest.raises(RunError, match=r"holds a run of another configuration|holds another model"):
        train(composed("model=flat"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_where_a_run_computes_may_change(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(composed(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, "on_train_epoch_start", lambda module, step: module.current_epoch == 1)
        with pytest.raises(PowerCutError):
            train(composed(), tmp_path / "parted")
    elsewhere = (f"domain.cache_dir={tmp_path / 'other'}", "hardware.num_workers=1", "hardware=auto")
    train(composed(*elsewhere, "schedule.checkpoint_every_minutes=0"), tmp_path / "parted")
    found = differences(tmp_path / "whole", tmp_path / "parted")
    assert [where for where in found if "/hyper_parameters/" not in where] == []


def test_a_complete_run_is_left_alone(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = train(composed(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    monkeypatch.delattr(NSMModule, "training_step")
    assert train(composed(), tmp_path) == best
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_damaged_results_are_made_anew(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    train(composed(), tmp_path)
    results = read(tmp_path, "final_results.json")
    for content in (b"", b"[]", b"{", b'{"status": "completed"}', b"\xff\xfe"):
        (tmp_path / "final_results.json").write_bytes(content)
        (tmp_path / "training_history.json").write_bytes(content)
        train(composed(), tmp_path)
        assert read(tmp_path, "final_results.json")["test"] == results["test"]
        assert len(read(tmp_path, "training_history.json")) == 2
