"""The words of a run: collapse, time left, progress."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nsm.callbacks import CollapseWarning, GPUStats, time_left


def epochs_with(*accuracies: tuple[float, float]) -> CollapseWarning:
    """Feed the callback validation accuracies on class 0 and class 1, epoch by epoch."""
    callback = CollapseWarning()
    for class_0, class_1 in accuracies:
        metrics = {"val/accuracy_class_0": torch.tensor(class_0), "val/accuracy_class_1": torch.tensor(class_1)}
        trainer: Any = SimpleNamespace(datamodule=None, callback_metrics=metrics)
        callback.on_train_epoch_end(trainer, None)
    return callback


def test_collapse_is_told_once_until_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    epochs_with((0.0, 1.0), (0.0, 1.0), (0.5, 0.6), (1.0, 0.0))
    first, second = [record.getMessage() for record in caplog.records]
    assert "given class 1" in first
    assert "given class 0" in second
    assert "task.class_weights=balanced" in first


def test_no_collapse_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    epochs_with((0.3, 0.9), (0.0, 0.4), (0.9, 0.9))
    assert not caplog.records


def test_time_left_follows_the_last_epochs() -> None:
    rows = [{"epoch": epoch, "seconds": 100.0 if epoch == 1 else 10.0} for epoch in range(1, 8)]
    assert time_left(rows, 20) == "2 min"
    assert time_left(rows, 7) == "0 s"


def test_gpu_stats_are_those_of_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(device=torch.device("cuda", 0), log=logged.__setitem__)
    monkeypatch.setenv("PATH", str(tmp_path))
    GPUStats().on_train_epoch_end(None, module)
    assert logged == {}  # not installed

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 37, 1024, 79000, 5, 0, 40, 41\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + "/bin")
    GPUStats().on_train_epoch_end(None, module)
    assert logged == {"gpu/utilisation_percent": 37, "gpu/memory_used_mb": 1024}
