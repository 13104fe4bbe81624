"""The LightningModule: losses, metrics, optimiser and learning-rate schedule, the same for every model and domain.

Shape letters: G samples, C logits.
"""

import contextlib
import logging
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR, OneCycleLR, ReduceLROnPlateau
from torch_geometric.data import Batch
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy
from torchmetrics.regression import MeanSquaredError

from nsm.config import Config, ScheduleConfig, TaskConfig
from nsm.data.datamodule import Scorer
from nsm.failures import DivergedError
from nsm.metrics import SampleMean, UnexplainedVariance, log_odds, positive_probability, prediction_metrics
from nsm.models.encoder import ModelOutput

log = logging.getLogger(__name__)


class NSMModule(LightningModule):
    """Trains a model on a task.

    Args:
        model: called as ``model(batch, temperature=...)``, returns ``logits`` [G, C] and ``cycle_loss`` (or None);
            where it ``reconstructs``, it also has ``reconstruct``, like :meth:`nsm.models.hierarchy.NSM.reconstruct`.
        task: what is predicted.
        schedule: how it is learned.
        total_steps: steps of the optimiser in all epochs; learning-rate schedules are laid out over them.
        cycle_weight: weight of the cycle loss beside the task loss.
        seed: decides, with the epoch and the batch, everything random in a step.
        class_weights: weight of each class in the loss, if they differ.
        test_sets: names of the test sets, in the order of their loaders.
        hparams: plain values, written to checkpoints.
    """

    class_weights: Tensor | None
    model: Any

    def __init__(
        self,
        model: nn.Module,
        *,
        task: TaskConfig,
        schedule: ScheduleConfig,
        total_steps: int,
        cycle_weight: float = 0.0,
        seed: int = 0,
        class_weights: Sequence[float] | None = None,
        test_sets: Sequence[str] = ("test",),
        hparams: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(hparams or {}, logger=False)
        self.model, self.task, self.schedule = model, task, schedule
        self.total_steps, self.cycle_weight, self.seed = total_steps, cycle_weight, seed
        self.temperature = schedule.temperature.at(0)
        self._step_loss = torch.tensor(0.0)
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        quick = MeanSquaredError() if task.type == "regression" else BinaryAccuracy()
        self.train_metrics = MetricCollection(
            {"mse" if task.type == "regression" else "accuracy": quick}, prefix="train/"
        )
        self.val_metrics = prediction_metrics(task.type, "val/")
        names = ("loss", "task_loss", *(("cycle_loss",) if self.model.reconstructs else ()))
        self.mean_losses = nn.ModuleDict(
            {
                f"{stage}/{name}": SampleMean(finite_only=stage == "train")
                for stage in ("train", "val")
                for name in names
            }
        )
        for metric in self._train_metrics():
            metric.persistent(True)  # a run that is continued within an epoch goes on from them
        self.test_metrics = nn.ModuleDict({name: prediction_metrics(task.type, "") for name in test_sets})
        self.test_names = tuple(test_sets)
        self.predictions: dict[str, list[Tensor]] = {name: [] for name in test_sets}
        self.cycle_errors: dict[str, UnexplainedVariance] = {}

    def forward(self, batch: Batch) -> Tensor:
        """Predictions [G]: P(y = 1), or numbers where the task is regression."""
        return self.predict(self.model(batch, temperature=self.temperature).logits)

    def predict(self, logits: Tensor) -> Tensor:
        """Predictions [G] of logits [G, C]."""
        return logits[:, 0].float() if self.task.type == "regression" else positive_probability(logits)

    @property
    def scorer(self) -> Scorer:
        """What the model says of samples, and at once of all entities if it can."""
        return Scorer(self._score, self._score_entities if hasattr(self.model, "score_entities") else None)

    @torch.inference_mode()
    def _score(self, batch: Batch) -> Tensor:
        return log_odds(self.model(batch.to(self.device), temperature=self.temperature).logits).cpu()

    @torch.inference_mode()
    def _score_entities(self, *question: Tensor) -> Tensor:
        scores: Tensor = self.model.score_entities(*(part.to(self.device) for part in question))
        return scores

    def target(self, batch: Batch) -> Tensor:
        """What is to be predicted: labels, or numbers where the task is regression: [G]."""
        return batch.target.float() if self.task.type == "regression" else batch.y

    def task_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over samples, weighted by class: squared error or cross-entropy, in float32.

        Args:
            logits: [G, 2], or [G, 1] (its sigmoid is P(y = 1); a number where the task is regression).
            target: [G].
        """
        logits = logits.float()
        if self.task.type == "regression":
            return F.mse_loss(logits[:, 0], target)
        if logits.shape[1] == 2:
            losses = F.cross_entropy(logits, target, reduction="none")
        else:
            losses = F.binary_cross_entropy_with_logits(logits[:, 0], target.float(), reduction="none")
        if self.class_weights is None:
            return losses.mean()
        weights = self.class_weights[target]
        return (losses * weights).sum() / weights.sum()

    def on_train_start(self) -> None:
        if self.global_rank:  # a checkpoint holds what all devices have gathered, and the first one goes on from it
            for metric in self._train_metrics():
                metric.reset()

    def on_train_epoch_start(self) -> None:
        for metric in self._train_metrics():
            metric.reset()  # of what a checkpoint at the end of an epoch brought back
        self.temperature = self.schedule.temperature.at(self.current_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout depends on where in the run a step is and on nothing before it, so that a continued run draws what an
        # unbroken one would.
        where = [self.seed, self.current_epoch, batch_idx, *([self.global_rank] if self.global_rank else [])]
        torch.manual_seed(int(np.random.SeedSequence(where).generate_state(1)[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._losses(batch, "train", self.train_metrics)[0]
        if self.trainer.world_size > 1:
            # Gradients are averaged over devices, whose parts of a batch may differ in size.
            total = self.trainer.strategy.reduce(torch.tensor(float(batch.num_graphs), device=loss.device), None, "sum")
            loss = loss * (batch.num_graphs * self.trainer.world_size / total)
        # Of a step over several batches, any of them.
        begins = batch_idx % self.trainer.accumulate_grad_batches == 0
        self._step_loss = loss.detach() if begins else self._step_loss + loss.detach()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self._losses(batch, "val", self.val_metrics)[1]

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip, and never let a step reach the weights that is no finite number."""
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val or math.inf)
        loss = self.trainer.strategy.reduce(self._step_loss)  # so that all devices decide the same
        scaled = self.trainer.precision == "16-mixed"  # whose overflows are usual, and skipped by the scaler
        if bool(loss.isfinite() if scaled else (loss + norm).isfinite()):
            return
        batch = self.trainer.fit_loop.batch_idx + 1
        where = f"epoch {self.current_epoch + 1}, batch {batch}, step {self.global_step + 1}"
        told = f"at {where} the loss is {loss:.4g} and the norm of its gradient {norm:.4g}"
        if not self.schedule.skip_nonfinite:
            raise DivergedError(_diverged(told, self.schedule.learning_rate))
        log.warning("%s: the step is left out", told)
        optimizer.zero_grad()

    def on_train_epoch_end(self) -> None:
        loss = self.trainer.callback_metrics["val/loss"]
        if not bool(loss.isfinite()):
            raise DivergedError(
                _diverged(f"after epoch {self.current_epoch + 1} val/loss is {loss}", self.schedule.learning_rate)
            )
        # Lightning would step this scheduler after the epoch's checkpoint is written, and a run continued from there
        # would miss the step.
        for scheduler in self._schedulers():
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(self.trainer.callback_metrics["val/loss"])

    def on_test_start(self) -> None:
        for name in self.test_names:
            self._test_metrics(name).reset()
        self.predictions = {name: [] for name in self.test_names}
        self.cycle_errors = {}
        self._shuffle = torch.Generator().manual_seed(0)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        name = self.test_names[dataloader_idx]
        output = self.model(batch, temperature=self.temperature)
        predictions, target = self.predict(output.logits), self.target(batch)
        self._test_metrics(name).update(predictions, target)
        self.predictions[name].append(predictions.cpu())
        if dataloader_idx == 0:
            for key, loss in self._loss_terms(output, target).items():
                self.log(f"test/{key}", loss, batch_size=batch.num_graphs, on_epoch=True, add_dataloader_idx=False)
            if self.model.reconstructs:
                self._measure_cycle(batch)

    def test_results(self) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
        """After a test: every metric of each test set, and the reconstruction errors of the first."""
        metrics = {
            name: {key: float(value) for key, value in self._test_metrics(name).compute().items()}
            for name in self.test_names
        }
        return metrics, {name: float(error.compute()) for name, error in self.cycle_errors.items()}

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """Inside, a training epoch's metrics are those of all devices."""
        with contextlib.ExitStack() as stack:
            for metrics in self._train_metrics():
                for metric in metrics.values() if isinstance(metrics, MetricCollection) else [metrics]:
                    stack.enter_context(metric.sync_context())
            yield

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["temperature"] = self.temperature
        if self.trainer.is_last_batch:  # what an epoch gathered goes into no other, and each device has only its part
            for name, value in checkpoint["state_dict"].items():
                if name.startswith(("train_metrics.", "mean_losses.train/")):
                    checkpoint["state_dict"][name] = torch.zeros_like(value)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.temperature = checkpoint["temperature"]

    def restore(self, checkpoint: dict[str, Any]) -> None:
        """Take the weights and the temperature of a checkpoint, and nothing else of the run that wrote it."""
        self.load_state_dict(checkpoint["state_dict"])
        self.on_load_checkpoint(checkpoint)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        schedule = self.schedule
        optimizer_class = {"adam": Adam, "adamw": AdamW}[schedule.optimizer]
        optimizer: Optimizer = optimizer_class(
            self.model.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        steps = max(4, self.total_steps)
        rising = max(2, round(schedule.warmup * steps))
        schedulers: list[Any] = []
        if schedule.lr_schedule == "one_cycle":
            peak = schedule.learning_rate
            one_cycle = OneCycleLR(optimizer, max_lr=peak, total_steps=steps, pct_start=rising / steps)
            schedulers.append({"scheduler": one_cycle, "interval": "step"})
        elif schedule.warmup > 0:
            schedulers.append({"scheduler": LinearLR(optimizer, 0.01, total_iters=rising), "interval": "step"})
        if schedule.lr_schedule == "plateau":
            plateau = schedule.plateau
            falling = ReduceLROnPlateau(
                optimizer, mode="min", factor=plateau.factor, patience=plateau.patience, min_lr=plateau.min_lr
            )
            never = sys.maxsize  # by Lightning: on_train_epoch_end does
            schedulers.append({"scheduler": falling, "monitor": "val/loss", "frequency": never})
        return [optimizer], schedulers

    def _losses(self, batch: Batch, stage: str, metrics: MetricCollection) -> tuple[Tensor, Tensor]:
        """The loss and the predictions [G] of a batch, both logged."""
        output = self.model(batch, temperature=self.temperature)
        target = self.target(batch)
        losses = self._loss_terms(output, target)
        predictions = self.predict(output.logits.detach())
        metrics.update(predictions, target)
        means = {f"{stage}/{name}": self._mean_loss(f"{stage}/{name}") for name in losses}
        for mean, loss in zip(means.values(), losses.values(), strict=True):
            mean.update(loss.detach(), batch.num_graphs)
        for logged in (means, metrics):
            self.log_dict(logged, on_step=False, on_epoch=True, batch_size=batch.num_graphs)
        return losses["loss"], predictions

    def _loss_terms(self, output: ModelOutput, target: Tensor) -> dict[str, Tensor]:
        task_loss = self.task_loss(output.logits, target) if output.task_loss is None else output.task_loss
        if output.cycle_loss is None:
            return {"task_loss": task_loss, "loss": task_loss}
        loss = task_loss + self.cycle_weight * output.cycle_loss
        return {"task_loss": task_loss, "cycle_loss": output.cycle_loss, "loss": loss}

    def _measure_cycle(self, batch: Batch) -> None:
        target, rebuilt = self.model.reconstruct(batch, temperature=self.temperature)
        _, shuffled = self.model.reconstruct(
            batch, temperature=self.temperature, shuffle_top=True, generator=self._shuffle
        )
        if not self.cycle_errors:
            types = self.model.sizes.num_entity_types
            groups = {"cycle_error": 1, "cycle_error_shuffled": 1, "cycle_error_within_types": types}
            self.cycle_errors = {
                name: UnexplainedVariance(target.shape[1], count).to(target.device) for name, count in groups.items()
            }
        self.cycle_errors["cycle_error"].update(rebuilt, target)
        self.cycle_errors["cycle_error_shuffled"].update(shuffled, target)
        self.cycle_errors["cycle_error_within_types"].update(rebuilt, target, batch.x)

    def _mean_loss(self, name: str) -> SampleMean:
        mean = self.mean_losses[name]
        assert isinstance(mean, SampleMean)
        return mean

    def _train_metrics(self) -> list[MetricCollection | SampleMean]:
        """Everything that is gathered over the batches of a training epoch."""
        return [self.train_metrics, *(self._mean_loss(name) for name in self.mean_losses if name.startswith("train/"))]

    def _test_metrics(self, name: str) -> MetricCollection:
        metrics = self.test_metrics[name]
        assert isinstance(metrics, MetricCollection)
        return metrics

    def _schedulers(self) -> list[Any]:
        found = self.lr_schedulers()
        return found if isinstance(found, list) else [] if found is None else [found]


def _diverged(what: str, learning_rate: float) -> str:
    return (
        f"{what}, no longer a finite number. schedule.learning_rate={learning_rate} may be too high: lower it, or set "
        "schedule.warmup or schedule.gradient_clip; schedule.skip_nonfinite=true leaves such steps out"
    )


def build_module(config: Config, datamodule: Any, hparams: dict[str, Any]) -> NSMModule:
    """The model of ``config`` for the domain of ``datamodule``, ready to train."""
    builder: Any = config.model  # each model's class has a build of its own, which the schemas, without torch, lack
    model = builder.build(
        num_relations=len(datamodule.relations),
        num_entity_types=len(datamodule.entity_types),
        num_levels=datamodule.num_levels,
        num_logits=config.task.logits,
        has_query="query_index" in datamodule.train_set.columns,
        num_entities=datamodule.num_entities,
        known_triples=datamodule.known_triples,
    )
    weights = config.task.class_weights
    if weights == "balanced":
        counts = torch.bincount(datamodule.train_set.column("y"), minlength=2)
        weights = (counts.sum() / (2 * counts.clamp(min=1))).tolist()
    epochs, steps = epochs_and_steps(config.schedule, datamodule)
    return NSMModule(
        model,
        task=config.task,
        schedule=config.schedule,
        total_steps=epochs * steps,
        cycle_weight=getattr(config.model, "cycle_weight", 0.0),
        seed=config.seed,
        class_weights=weights,
        test_sets=list(datamodule.test_sets),
        hparams=hparams,
    )


def epochs_and_steps(schedule: ScheduleConfig, datamodule: Any) -> tuple[int, int]:
    """Epochs at most, and optimiser steps in each of them."""
    # Not Lightning's own estimate: it starts the loader before a continued run knows its epoch.
    batches = min(len(datamodule.train_dataloader()), schedule.limit_batches or sys.maxsize)
    steps = math.ceil(batches / schedule.accumulate_batches)
    return schedule.max_epochs or math.ceil(schedule.steps / steps), steps
