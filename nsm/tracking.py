"""Where a run's curves go beside its own files: TensorBoard, CSV, Weights & Biases, MLflow, several at once."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.utils.tensorboard.summary import hparams
from torch_geometric.data import Batch

from nsm import drawings, figures
from nsm.config import LoggerConfig
from nsm.files import PROGRESS
from nsm.predictions import calibration_bins, confusion_counts
from nsm.runs import headline, peak_memory_bytes, write_json
from nsm.settings import hyperparameters, split_override

CHOICES = ("schedule", "experiment")
"""Groups whose choice decides hyperparameters, as ``schedule=smoke`` does."""


def build_loggers(config: LoggerConfig, folder: Path) -> list[Logger]:
    """Those that are asked for."""
    loggers: list[Logger] = []
    if config.tensorboard:
        loggers.append(Board(folder, name="", version="tensorboard", default_hp_metric=False))
    if config.csv:
        loggers.append(CSVLogger(folder, name="csv"))  # a version for each time that the run is continued
    if config.wandb:
        offline = config.wandb_mode == "offline"
        loggers.append(WandbLogger(folder.name, folder, project=config.project, offline=offline))
    if config.mlflow:
        uri, tags = config.mlflow_uri, {"folder": str(folder)}
        loggers.append(MLFlowLogger(config.project, run_name=folder.name, tracking_uri=uri, tags=tags))
    return loggers


class Board(TensorBoardLogger):
    """TensorBoard without Lightning's curve of the epoch, so that all names are of train, val or test."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)


def log_results(
    loggers: Sequence[Logger], settings: Mapping[str, Any], results: Mapping[str, Any], given: Sequence[str] = ()
) -> None:
    """Give every logger the hyperparameters and what they led to, so that it can compare runs.

    TensorBoard gets those that were given alone: its table shows but five of those that differ, the first by name, and
    what differs between domains and models anyway would leave no place for what was varied.

    Args:
        given: overrides of the command line.
    """
    named, every = {key: results[key] for key in ("domain", "model", "seed")}, hyperparameters(settings)
    chosen = named | {
        key: every.get(key, value) for key, value in map(split_override, given) if key in every or key in CHOICES
    }
    figures = headline(results)
    for logger in loggers:
        logger.log_metrics(figures)
        if isinstance(logger, TensorBoardLogger):
            # Without Lightning's summary of the experiment, TensorBoard looks for what differs between runs itself.
            plain = {
                key: value if isinstance(value, bool | int | float) else str(value) for key, value in chosen.items()
            }
            for summary in hparams(plain, figures)[1:]:
                logger.experiment.file_writer.add_summary(summary)
        else:
            logger.log_hyperparams(named | every)
        logger.finalize("success")


class Rates(Callback):
    """Logs the learning rate and the temperature of every epoch, under names that do not depend on the optimiser."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rates = {"train/lr": trainer.optimizers[0].param_groups[0]["lr"], "train/temperature": pl_module.temperature}
        for logger in trainer.loggers:
            logger.log_metrics(rates, step=trainer.global_step)


class Progress(Callback):
    """Writes ``progress.json``, for whoever watches the run from another process.

    Args:
        every_seconds: least time between two writes.
    """

    def __init__(self, folder: Path, every_seconds: float = 0.5) -> None:
        self.folder, self.every_seconds = folder, every_seconds
        self._written = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not trainer.is_global_zero:
            return
        if not trainer.is_last_batch and time.monotonic() - self._written < self.every_seconds:
            return
        self._written = time.monotonic()
        on_gpu = pl_module.device.type == "cuda"
        system = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        row = {
            "epoch": trainer.current_epoch + 1,
            "max_epochs": trainer.max_epochs,
            "batch": batch_idx + 1,
            "batches": trainer.num_training_batches,
            "peak_memory_bytes": peak_memory_bytes(),
            "total_memory_bytes": torch.cuda.mem_get_info()[1] if on_gpu else system,
        }
        write_json(self.folder / PROGRESS, row)


class ValidationFigures(Callback):
    """Draws for TensorBoard: confusion matrix, calibration, and which nodes of one sample WHY keeps.

    With several devices they show the first one's part of the validation.

    Args:
        every_epochs: how often; an epoch's pictures take a few tenths of a second.
    """

    def __init__(self, every_epochs: int) -> None:
        self.every_epochs = every_epochs
        self._predictions: list[Tensor] = []
        self._labels: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._predictions, self._labels = [], []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._predictions.append(outputs.cpu())
        self._labels.append(batch.y.cpu())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        epoch = trainer.current_epoch + 1
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if epoch % self.every_epochs or not boards:
            return
        drawn = {}
        if pl_module.task.type != "regression":
            probability = torch.cat(self._predictions).double().numpy()
            y = torch.cat(self._labels).numpy()
            drawn["val/confusion"] = figures.confusion(
                confusion_counts((probability > 0.5).astype(int), y), f"validation, epoch {epoch}"
            )
            bins = calibration_bins(probability, y)
            drawn["val/calibration"] = figures.calibration(bins, f"validation, epoch {epoch}")
        datamodule: Any = getattr(trainer, "datamodule", None)  # which Lightning does not declare
        dataset = datamodule.val_set
        sample = dataset.__getitems__([0]).to(pl_module.device)
        drawn["val/graph"] = drawings.sample_graph(
            sample.cpu(),
            datamodule.relations,
            datamodule.entity_types,
            f"a validation sample, epoch {epoch}",
            selection=drawings.selection_of(pl_module, sample),
        )
        for board in boards:
            for name, figure in drawn.items():
                board.experiment.add_figure(name, figure, global_step=epoch, close=False)
