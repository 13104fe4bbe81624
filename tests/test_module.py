"""Losses by hand, and what the optimiser and its schedules do in a real fit."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from omegaconf import DictConfig

from nsm import train as training
from nsm.config import Config, PlateauConfig, ScheduleConfig, TaskConfig, TemperatureConfig, read_config
from nsm.module import NSMModule, build_module, epochs_and_steps
from tests.toy import Tiny, ToyDataModule


def make(task: TaskConfig | None = None, **settings: Any) -> NSMModule:
    schedule = settings.pop("schedule", ScheduleConfig())
    return NSMModule(Tiny(4, 0.0, 2, 2), task=task or TaskConfig(), schedule=schedule, total_steps=1, **settings)


@pytest.fixture
def built(composed: Callable[..., DictConfig], process_state: None) -> Callable[..., tuple[Config, Any, NSMModule]]:
    """Configuration, data and module of a toy run."""

    def build(*overrides: str) -> tuple[Config, Any, NSMModule]:
        configuration = composed(*overrides)
        config = read_config(configuration)
        training.prepare_process(config)
        datamodule = training.build_datamodule(configuration, config)
        return config, datamodule, build_module(config, datamodule, {})

    return build


def fit(module: NSMModule, datamodule: Any, **settings: Any) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0, **quiet, **settings)
    trainer.fit(module, datamodule=datamodule)
    return trainer


def test_task_loss_by_hand() -> None:
    logits, y = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.5, 0.5]]), torch.tensor([1, 0, 0])
    losses = torch.tensor([1 / (1 + torch.e**-1), 1 / (1 + torch.e**-2), 0.5]).log().neg()
    torch.testing.assert_close(make().task_loss(logits, y), losses.mean())
    weighted = make(class_weights=[1.0, 3.0]).task_loss(logits, y)
    torch.testing.assert_close(weighted, (3 * losses[0] + losses[1] + losses[2]) / 5)
    one_logit = (logits[:, 1] - logits[:, 0])[:, None]
    torch.testing.assert_close(make().task_loss(one_logit, y), losses.mean())
    torch.testing.assert_close(make(class_weights=[1.0, 3.0]).task_loss(one_logit, y), weighted)
    regression = make(TaskConfig("regression")).task_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 5.0]))
    assert float(regression) == pytest.approx((1 + 4) / 2)


def test_balanced_weights_are_inverse_frequencies(built: Callable[..., Any]) -> None:
    _, datamodule, module = built("task.class_weights=balanced")
    y = datamodule.train_set.column("y")
    expected = [len(y) / (2 * int((y == label).sum())) for label in (0, 1)]
    assert module.class_weights.tolist() == pytest.approx(expected)
    assert built("task.class_weights=[1,4]")[2].class_weights.tolist() == [1, 4]
    assert built()[2].class_weights is None


def test_cycle_loss_is_weighted_into_the_loss(built: Callable[..., Any]) -> None:
    overrides = ("model=nsm", "model.node_features=8", "model.dropout=0", "model.cycle_weight=0.25")
    _, datamodule, module = built(*overrides)
    trainer = fit(module, datamodule, max_epochs=1, limit_train_batches=1, limit_val_batches=2)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    for stage in ("train", "val"):
        assert logged[f"{stage}/cycle_loss"] > 0
        weighted = logged[f"{stage}/task_loss"] + 0.25 * logged[f"{stage}/cycle_loss"]
        assert logged[f"{stage}/loss"] == pytest.approx(weighted, rel=1e-5)


def test_logged_loss_weighs_each_sample_once(built: Callable[..., Any]) -> None:
    _, datamodule, module = built("domain.eval_batch_size=20")  # 30 samples: batches of 20 and 10
    trainer = fit(module, datamodule, max_epochs=1, limit_train_batches=1)
    everything = datamodule.val_set.__getitems__(list(range(len(datamodule.val_set))))
    loss = module.eval().task_loss(module.model(everything).logits, everything.y).detach()
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["schedule.max_epochs=3"], (3, 7)),
        (["schedule.max_epochs=null", "schedule.steps=15"], (3, 7)),
        (["schedule.max_epochs=null", "schedule.steps=14"], (2, 7)),
        (["schedule.max_epochs=null", "schedule.steps=1"], (1, 7)),
        (["schedule.max_epochs=null", "schedule.steps=15", "schedule.accumulate_batches=3"], (5, 3)),
        (["schedule.max_epochs=null", "schedule.steps=15", "schedule.limit_batches=2"], (8, 2)),
    ],
)
def test_epochs_are_as_many_as_the_steps_take(
    built: Callable[..., Any], given: list[str], expected: tuple[int, int]
) -> None:
    config, datamodule, module = built("schedule.batch_size=20", "schedule.limit_batches=null", *given)
    assert epochs_and_steps(config.schedule, datamodule) == expected
    epochs, steps = expected
    trainer = fit(
        module,
        datamodule,
        max_epochs=epochs,
        accumulate_grad_batches=config.schedule.accumulate_batches,
        limit_train_batches=config.schedule.limit_batches,
    )
    assert trainer.global_step == epochs * steps


def test_accumulated_batches_step_as_one(built: Callable[..., Any]) -> None:
    """140 samples: one batch of all of them, or accumulated seven of 20, give the same gradient."""
    weights = []
    for batch_size, batches in ((140, 1), (20, 7)):
        overrides = (f"schedule.batch_size={batch_size}", f"schedule.accumulate_batches={batches}", "model.dropout=0")
        config, datamodule, module = built(*overrides)
        trainer = fit(module, datamodule, max_epochs=1, accumulate_grad_batches=config.schedule.accumulate_batches)
        assert trainer.global_step == 1
        weights.append(torch.cat([parameter.detach().flatten() for parameter in module.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("patience", "expected"), [(0, [1, 1, 0.1, 0.01, 1e-3]), (1, [1, 1, 1, 0.1, 0.1]), (9, [1] * 5)]
)
def test_plateau_lowers_the_learning_rate_when_validation_stalls(
    built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, patience: int, expected: list[float]
) -> None:
    """A learning rate too small to change the loss stalls from the second epoch."""
    tiny, rates = 1e-12, []
    _, datamodule, module = built(f"schedule.learning_rate={tiny}")
    module.schedule.plateau = PlateauConfig(factor=0.1, patience=patience, min_lr=0)
    monkeypatch.setattr(
        NSMModule,
        "on_train_start",
        lambda self: setattr(self.lr_schedulers(), "eps", 0),  # PyTorch ignores changes below 1e-8 otherwise
    )
    monkeypatch.setattr(
        NSMModule,
        "on_train_epoch_start",
        lambda self: rates.append(self.trainer.optimizers[0].param_groups[0]["lr"] / tiny),
    )
    fit(module, datamodule, max_epochs=5)
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize(
    ("lr_schedule", "first", "peak", "last"), [("constant", 1.0, 1.0, 1.0), ("one_cycle", 0.04, 1.0, 4e-6)]
)
def test_learning_rate_schedules(
    built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, lr_schedule: str, first: float, peak: float, last: float
) -> None:
    rates = learning_rates(built, monkeypatch, f"schedule.lr_schedule={lr_schedule}")
    assert (rates[0], max(rates), rates[-1]) == pytest.approx((first, peak, last), rel=1e-3)


@pytest.mark.parametrize("lr_schedule", ["constant", "plateau", "one_cycle"])
def test_warm_up_rises_over_its_share_of_the_steps(
    built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, lr_schedule: str
) -> None:
    rates = learning_rates(built, monkeypatch, f"schedule.lr_schedule={lr_schedule}", "schedule.warmup=0.5")
    half = len(rates) // 2
    assert rates[0] < 0.05
    assert all(earlier < later for earlier, later in pairwise(rates[:half]))
    assert rates[half] == pytest.approx(1.0, abs=0.05)


def learning_rates(built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[float]:
    """Learning rate of each of 40 steps, as a multiple of the configured one."""
    rates = []
    _, datamodule, module = built(
        "schedule.batch_size=14", "schedule.max_epochs=4", "schedule.limit_batches=null", *overrides
    )
    step = NSMModule.training_step

    def record(self: NSMModule, batch: Any, batch_idx: int) -> torch.Tensor:
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"] / self.schedule.learning_rate)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(NSMModule, "training_step", record)
    fit(module, datamodule, max_epochs=4)
    assert len(rates) == 40
    return rates


@pytest.mark.parametrize(("optimizer", "decoupled"), [("adam", False), ("adamw", True)])
def test_optimizer_is_the_one_named(built: Callable[..., Any], optimizer: str, decoupled: bool) -> None:
    _, datamodule, module = built(f"schedule.optimizer={optimizer}", "schedule.weight_decay=0.5")
    trainer = fit(module, datamodule, max_epochs=1, limit_train_batches=1)
    (found,) = trainer.optimizers
    assert found.param_groups[0]["decoupled_weight_decay"] is decoupled
    assert found.param_groups[0]["weight_decay"] == 0.5


def test_temperature_reaches_the_model_and_the_checkpoint(built: Callable[..., Any], tmp_path: Path) -> None:
    _, datamodule, module = built()
    module.schedule.temperature = TemperatureConfig(start=2.0, end=0.5, decay=0.5, warmup_epochs=0)
    seen = []
    module.model.register_forward_pre_hook(lambda _, __, named: seen.append(named["temperature"]), with_kwargs=True)
    trainer = fit(module, datamodule, max_epochs=3, limit_train_batches=1, limit_val_batches=1)
    assert seen == [2.0, 2.0, 1.0, 1.0, 0.5, 0.5]  # a training and a validation batch each epoch
    trainer.save_checkpoint(tmp_path / "state.ckpt")
    state = torch.load(tmp_path / "state.ckpt", weights_only=True)
    fresh = make()
    fresh.on_load_checkpoint(state)
    assert fresh.temperature == 0.5


def test_toy_data_is_what_the_other_tests_count_on(built: Callable[..., Any]) -> None:
    _, datamodule, _ = built()
    assert isinstance(datamodule, ToyDataModule)
    assert (len(datamodule.train_set), len(datamodule.val_set)) == (140, 30)
