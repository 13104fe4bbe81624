"""What Lightning lacks: a history file, words about the first batch, about time left and about a collapsed class."""

import logging
import shutil
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators.cuda import get_nvidia_gpu_stats
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor
from torch_geometric.data import Batch

from nsm.metrics import collapsed
from nsm.runs import HISTORY, peak_memory_bytes, write_json

log = logging.getLogger(__name__)


class History(Callback):
    """Writes ``training_history.json`` after every epoch, and keeps what it holds in :attr:`rows`.

    Checkpoints hold the rows too, so that a continued run has exactly those of the epochs before it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.seconds_before = 0.0
        """That earlier processes spent on what this one continues."""
        self._begin_epoch()

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "graphs": self._graphs,
            "seconds": self._seconds + time.perf_counter() - self._start,
            "training_seconds": self._training_seconds + self._train_end - self._start,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._graphs = state_dict["rows"], state_dict["graphs"]
        self._seconds, self._training_seconds = state_dict["seconds"], state_dict["training_seconds"]
        self.seconds_before = sum(row["seconds"] for row in self.rows) + self._seconds

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rows and trainer.is_global_zero:
            write_json(self.folder / HISTORY, self.rows)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = self._train_end = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_epoch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._graphs += batch.num_graphs
        self._train_end = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items() if isinstance(value, Tensor)}
        stages = ("train/", "val/", "gpu/")
        training_seconds = self._training_seconds + self._train_end - self._start
        row = {
            "epoch": trainer.current_epoch + 1,
            **{key: value for stage in stages for key, value in metrics.items() if key.startswith(stage)},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "temperature": pl_module.temperature,
            "seconds": self._seconds + time.perf_counter() - self._start,
            "graphs_per_second": self._graphs * trainer.world_size / max(training_seconds, 1e-9),
            "peak_memory_bytes": peak_memory_bytes(),
        }
        self.rows.append(row)
        if trainer.is_global_zero:
            write_json(self.folder / HISTORY, self.rows)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._graphs = 0
        self._seconds = self._training_seconds = 0.0  # spent on this epoch by earlier processes; of it, in training
        self._start = self._train_end = time.perf_counter()


class EpochLog(Callback):
    """One line an epoch, for where no progress bar can be shown."""

    def __init__(self, history: History) -> None:
        self.history = history

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        row = self.history.rows[-1]
        names = ("auroc",) if _own_thresholds(trainer) else ("accuracy", "mse")
        quality = " ".join(f"  {key} {row[f'val/{key}']:.3f}" for key in names if f"val/{key}" in row)
        log.info(
            "epoch %d/%d  val loss %.4f%s  %.0f s, about %s left",
            row["epoch"],
            trainer.max_epochs,
            row["val/loss"],
            quality,
            row["seconds"],
            time_left(self.history.rows, trainer.max_epochs or 0),
        )


class ProgressBar(TQDMProgressBar):
    """Lightning's bar, with the time left until the last epoch."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self.history = history

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if self.history.rows:
            metrics["val_loss"] = self.history.rows[-1]["val/loss"]
            metrics["left"] = time_left(self.history.rows, trainer.max_epochs or 0)
        return metrics


class GPUStats(Callback):
    """Logs the GPU's utilisation and memory once an epoch, as ``nvidia-smi`` tells them (where it is installed).

    Lightning's ``DeviceStatsMonitor`` knows no utilisation, and writes a hundred allocator counters at each step.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if shutil.which("nvidia-smi") is None:
            return
        stats = get_nvidia_gpu_stats(pl_module.device.index or 0)
        pl_module.log("gpu/utilisation_percent", stats["utilization.gpu (%)"])
        pl_module.log("gpu/memory_used_mb", stats["memory.used (MB)"])


class FirstBatch(Callback):
    """Logs the shapes and types of the first batch."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step == 0 and batch_idx == 0:
            shapes = [
                f"{key} {list(value.shape)} {value.dtype}"
                for key, value in batch.to_dict().items()
                if isinstance(value, Tensor)
            ]
            log.info("first batch: %d graphs; %s", batch.num_graphs, ", ".join(shapes).replace("torch.", ""))


class CollapseWarning(Callback):
    """Warns when every validation sample is given the same class, once until that changes."""

    def __init__(self) -> None:
        self.warned = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        if "val/accuracy_class_0" not in metrics or _own_thresholds(trainer):
            return
        accuracies = [float(metrics[f"val/accuracy_class_{label}"]) for label in (0, 1)]
        now = collapsed(*accuracies)
        if now and not self.warned:
            log.warning(
                "class collapse: every validation sample is given class %d (accuracy %.3f on class 0, %.3f on 1). "
                "If it lasts: task.class_weights=balanced for unequal classes, else another schedule.learning_rate",
                accuracies.index(max(accuracies)),
                *accuracies,
            )
        self.warned = now


def _own_thresholds(trainer: Trainer) -> bool:
    """Whether the domain answers otherwise than by P(y = 1) > .5, so that accuracies on the way say little."""
    return getattr(getattr(trainer, "datamodule", None), "own_thresholds", False)


def time_left(rows: list[dict[str, Any]], max_epochs: int) -> str:
    """Time until the last epoch, in words, from the mean of the last five epochs."""
    recent = [row["seconds"] for row in rows[-5:]]
    seconds = sum(recent) / len(recent) * (max_epochs - rows[-1]["epoch"])
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
