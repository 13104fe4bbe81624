"""When checkpoints are written, and what a continued run needs beside them."""

import logging
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint

from nsm.checkpoints import BEST, LAST
from nsm.interrupts import Interrupts

log = logging.getLogger(__name__)


class FolderCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint, whose memory of files outlives a move of the folder that holds them."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert self.dirpath is not None

        def here(path: str) -> str:
            return str(Path(self.dirpath or "") / Path(path).name) if path else path

        moved = {key: here(value) if key.endswith("_path") else value for key, value in state_dict.items()}
        moved["best_k_models"] = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**moved, "dirpath": self.dirpath})
        self.current_score = state_dict["current_score"]  # which Lightning saves, but does not load


class BestCheckpoint(FolderCheckpoint):
    """Keeps ``best_model.ckpt``, the epoch with the least validation loss."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, Path(BEST).stem, monitor="val/loss", enable_version_counter=False)


class PeriodicCheckpoint(FolderCheckpoint):
    """Keeps ``checkpoint_epoch_<N>.ckpt`` of every so many epochs, counted from 1 as in the history."""

    def __init__(self, folder: Path, *, every_epochs: int) -> None:
        name = "checkpoint_epoch_{epoch}"
        super().__init__(
            folder,
            name,
            every_n_epochs=every_epochs,
            save_top_k=-1,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def format_checkpoint_name(self, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> str:
        return super().format_checkpoint_name({**metrics, "epoch": metrics["epoch"] + 1}, *args, **kwargs)


class LastCheckpoint(Checkpoint):
    """Keeps the newest state in ``last.ckpt``: after every epoch, every so many minutes, before an interrupt is obeyed.

    It must be the last callback, so that it saves what all others have made of an epoch.

    Args:
        folder: of the run.
        every_minutes: within an epoch; None for never.
        interrupts: what asks to stop.
    """

    def __init__(self, folder: Path, *, every_minutes: float | None, interrupts: Interrupts) -> None:
        self.path, self.every_minutes, self.interrupts = folder / LAST, every_minutes, interrupts
        self._saved = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interrupts.listen()
        self._saved = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.strategy.reduce_boolean_decision(self.interrupts.waiting, all=False):
            self.interrupts.obey(asked=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *step: Any) -> None:
        batch_idx = step[-1]
        # Accumulated gradients are in no checkpoint, and what follows an epoch's last batch is saved with the epoch.
        if (batch_idx + 1) % trainer.accumulate_grad_batches or trainer.is_last_batch:
            return
        due = self.every_minutes is not None and time.monotonic() - self._saved >= 60 * self.every_minutes
        # Devices save together or wait for each other forever, and a signal may reach only one of their processes.
        stop = trainer.strategy.reduce_boolean_decision(self.interrupts.waiting, all=False)
        if stop or trainer.strategy.reduce_boolean_decision(due, all=False):
            with pl_module.gathered():
                self._save(trainer)
        if stop:
            self.interrupts.obey(asked=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()


class ErrorCheckpoint(Callback):
    """Keeps the state at an exception in ``error.ckpt``, to look at; a run continues from the state before.

    Lightning's own ``OnExceptionCheckpoint`` makes every later fit start from it, then in the middle of a step.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "error.ckpt"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        within = trainer.training or trainer.validating
        if isinstance(exception, KeyboardInterrupt) or not within or trainer.world_size > 1:  # others may not be at it
            return
        try:
            trainer.save_checkpoint(self.path)
        except OSError as error:
            log.warning("%s could not be written: %s", self.path, error)


class Patience(EarlyStopping):
    """Lightning's early stopping, which a run that had stopped early and is continued remembers."""

    def __init__(self, patience: int) -> None:
        super().__init__("val/loss", patience=patience)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.stopped_epoch:
            log.info("training ends: no better validation loss in %d epochs", self.patience)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
