"""Whole runs on the toy domain: what they write, what they refuse, and how they go on."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from sklearn.metrics import accuracy_score, roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nsm import cli, locks
from nsm.config import read_config
from nsm.module import NSMModule, build_module
from nsm.train import CONF, build_datamodule, main, train
from tests.conftest import TEST_CONF

RESULT_KEYS = {
    "status",
    "error",
    "domain",
    "model",
    "levels",
    "seed",
    "epochs",
    "best_epoch",
    "best_val_loss",
    "val",
    "test",
    "majority",
    "shortcuts",
    "ceiling",
    "ceiling_do",
    "collapsed",
    "parameters",
    "seconds",
    "graphs_per_second",
    "peak_memory_bytes",
    "device",
    "cost_usd",
    "versions",
    "git_commit",
    "config_hash",
}
TEST_KEYS = {
    "accuracy",
    "accuracy_class_0",
    "accuracy_class_1",
    "balanced_accuracy",
    "auroc",
    "ece",
    "loss",
    "task_loss",
    "cycle_error",
    "cycle_error_shuffled",
    "cycle_error_structure_only",
    "cycle_error_within_types",
}

pytestmark = pytest.mark.usefixtures("process_state")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_a_run_writes_its_folder(
    composed: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "run"
    best = train(composed("model=nsm", "model.node_features=8", "seed=5"), folder)

    results, history = read(folder, "final_results.json"), read(folder, "training_history.json")
    assert results.keys() == RESULT_KEYS
    assert results["test"].keys() == TEST_KEYS | {"mean_probability_again"}
    assert (results["status"], results["domain"], results["model"]) == ("completed", "toy", "nsm")
    assert (results["levels"], results["seed"], results["epochs"]) == (2, 5, 2)
    assert results["shortcuts"].keys() == {"predicate_counts", "counts_degrees_size"}
    assert results["best_val_loss"] == min(row["val/loss"] for row in history)
    assert results["val"]["task_loss"] == best
    assert results["val"]["accuracy"] == history[results["best_epoch"] - 1]["val/accuracy"]
    for key in TEST_KEYS:
        if key.startswith("cycle_error"):
            assert results["test"][key] > 0
    assert results["device"] == "cpu"
    assert results["graphs_per_second"] > 0

    assert [row["epoch"] for row in history] == [1, 2]
    measured = ("loss", "task_loss", "cycle_loss", "accuracy")
    expected = {f"{stage}/{name}" for stage in ("train", "val") for name in measured}
    expected |= {"val/accuracy_class_0", "val/accuracy_class_1", "lr", "temperature", "seconds", "peak_memory_bytes"}
    for row in history:
        assert expected <= row.keys()

    written = {path.name for path in folder.iterdir()}
    checkpoints = {"best_model.ckpt", "last.ckpt", "checkpoint_epoch_1.ckpt", "checkpoint_epoch_2.ckpt"}
    assert written == checkpoints | {"final_results.json", "training_history.json", "progress.json", "tensorboard"}
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "first batch: 64 graphs; x [320] int64" in told
    assert "epoch 2/2" in told
    assert "about 0 s left" in told
    steps = ("epoch 2/2", "testing on test (30), again (20)", "structure alone explains (schedule.probe_steps=")
    assert sorted(map(told.index, steps)) == [*map(told.index, steps)], "so that no work is silent"
    assert "majority" in told


def test_tensorboard_has_curves_and_hyperparameters_with_metrics(
    composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    train(composed(), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "val/loss", "val/accuracy_class_0", "test/accuracy", "test/loss", "val/best_loss"} <= scalars
    assert {"train/lr", "train/temperature"} <= scalars
    assert {tag.split("/")[0] for tag in scalars} == {"train", "val", "test"}
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")


def test_checkpoint_loads_as_plain_values_and_predicts_the_same(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules: list[NSMModule] = []
    monkeypatch.setattr(
        "nsm.train.build_module", lambda *arguments: modules.append(build_module(*arguments)) or modules[0]
    )
    configuration = composed()
    train(configuration, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "best_model.ckpt", weights_only=True)
    assert state["hyper_parameters"]["model"]["dropout"] == configuration.model.dropout

    config = read_config(configuration)
    datamodule = build_datamodule(configuration, config)
    fresh = build_module(config, datamodule, {})
    batch = datamodule.test_set.__getitems__(list(range(len(datamodule.test_set))))
    before = fresh.eval()(batch)
    fresh.load_state_dict(state["state_dict"])
    with torch.no_grad():
        after = fresh.eval()(batch)
    trained = torch.cat(modules[0].predictions["test"])
    assert torch.equal(after, trained)
    assert not torch.equal(before.detach(), trained)


@pytest.mark.parametrize("num_logits", [1, 2])
def test_results_are_true_of_the_predictions(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_logits: int
) -> None:
    modules: list[NSMModule] = []
    monkeypatch.setattr(
        "nsm.train.build_module", lambda *arguments: modules.append(build_module(*arguments)) or modules[0]
    )
    overrides = ("task.type=link_prediction", f"task.num_logits={num_logits}", "schedule.learning_rate=0.1")
    train(composed(*overrides, "schedule.max_epochs=6", "domain.eval_batch_size=7"), tmp_path)
    test = read(tmp_path, "final_results.json")["test"]
    module = modules[0]
    assert module.model.out[1].out_features == num_logits
    probability = torch.cat(module.predictions["test"]).numpy()
    y = module.trainer.datamodule.test_set.column("y").numpy()
    loss = -np.log(np.where(y == 1, probability, 1 - probability)).mean()
    assert test["accuracy"] == pytest.approx(accuracy_score(y, probability >= 0.5))
    assert test["accuracy"] > 0.9
    assert test["auroc"] == pytest.approx(roc_auc_score(y, probability))
    assert test["loss"] == pytest.approx(loss, rel=1e-2)
    assert test["mean_probability_again"] == pytest.approx(float(torch.cat(module.predictions["again"]).mean()))


def test_regression_learns_its_target(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    overrides = ("task.type=regression", "schedule.learning_rate=0.05", "schedule.max_epochs=40")
    train(composed(*overrides, "model.dropout=0", "schedule.limit_batches=null"), tmp_path)
    results = read(tmp_path, "final_results.json")
    assert results["test"]["r2"] > 0.9
    assert results["test"]["mse"] == pytest.approx(results["test"]["loss"], rel=1e-4)
    assert "accuracy" not in results["test"]
    assert results["majority"] is None
    assert results["collapsed"] is False


def test_regression_needs_a_target(command: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"task\.type='regression' cannot be used: samples of toy have no number"):
        command("task.type=regression", "domain.with_target=false", f"hydra.run.dir={tmp_path / 'run'}")


def test_early_stopping(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    """Learning too slow to see: the first epoch stays the best, and two without improvement end the run."""
    overrides = ("schedule.learning_rate=1e-12", "schedule.weight_decay=0", "schedule.early_stopping_patience=2")
    train(composed(*overrides, "schedule.max_epochs=9"), tmp_path)
    results = read(tmp_path, "final_results.json")
    assert (results["epochs"], results["best_epoch"]) == (3, 1)


def test_divergence_ends_the_run(command: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no longer a finite number\. schedule\.learning_rate=1e\+30 "):
        command("schedule.learning_rate=1e30", "schedule.gradient_clip=null", f"hydra.run.dir={tmp_path / 'run'}")
    assert (tmp_path / "run" / "error.ckpt").exists()
    results = read(tmp_path / "run", "final_results.json")
    assert results.keys() == RESULT_KEYS
    assert (results["status"], results["test"]) == ("failed", None)
    assert "schedule.learning_rate=1e+30" in results["error"]


def test_a_constant_answer_is_told_as_collapse(
    composed: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(composed("task.class_weights=[1,1000]", "schedule.learning_rate=0.1"), tmp_path)
    assert read(tmp_path, "final_results.json")["collapsed"] is True
    assert "given class 1" in caplog.text


def test_resume_never_starts_anew(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    train(composed("schedule.max_epochs=3"), tmp_path)
    first = read(tmp_path, "training_history.json")
    train(composed("resume=never", "seed=1"), tmp_path)
    second = read(tmp_path, "training_history.json")
    assert [row["epoch"] for row in second] == [1, 2]
    assert second[0]["train/loss"] != first[0]["train/loss"]
    assert not (tmp_path / "checkpoint_epoch_3.ckpt").exists()


def test_seed_decides_the_run(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    losses = [train(composed(f"seed={seed}"), tmp_path / str(n)) for n, seed in enumerate((0, 0, 1))]
    assert losses[0] == losses[1] != losses[2]


def test_bfloat16_trains_on_the_cpu(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    exact = train(composed("model=nsm"), tmp_path / "float32")
    rounded = train(composed("model=nsm", "hardware.precision=bf16-mixed"), tmp_path / "bfloat16")
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.3)


def test_damaged_cache_is_made_anew(
    composed: Callable[..., DictConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train(composed(), tmp_path / "first")
    (stored,) = (tmp_path / "data").glob("*.pt")
    stored.write_bytes(stored.read_bytes()[:-100] + bytes(100))
    assert train(composed(), tmp_path / "second") == first
    assert f"{stored} is damaged" in caplog.text


def test_a_sweep_gives_each_run_a_folder(command: Callable[..., None], tmp_path: Path) -> None:
    command("--multirun", "seed=0,1", f"hydra.sweep.dir={tmp_path / 'outputs'}")
    folders = sorted((tmp_path / "outputs" / "toy").iterdir(), key=lambda path: path.name.rpartition("_")[2])
    assert [folder.name.rpartition("_")[2] for folder in folders] == ["0", "1"]
    assert [read(folder, "final_results.json")["seed"] for folder in folders] == [0, 1]
    for folder in folders:
        assert (folder / ".hydra" / "overrides.yaml").exists()
        assert "majority" in (folder / "train.log").read_text()


def test_configurations_of_ones_own(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    composed: Callable[..., DictConfig],
    tmp_path: Path,
) -> None:
    """``--config-dir`` counts wherever a command line is read."""

    def run(folder: Path, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["nsm.train", "--config-dir", str(folder), *overrides[1:], *arguments])
        cli.run(main, CONF, "train")

    run(TEST_CONF, "--cfg", "job")
    assert OmegaConf.create(capsys.readouterr().out) == composed()
    with pytest.raises(SystemExit, match="batch_size=0 cannot be used"):
        run(TEST_CONF, "schedule.batch_size=0")
    with pytest.raises(SystemExit, match="no such folder"):
        run(tmp_path / "nosuch")


def test_an_interrupted_run_says_how_to_go_on(
    command: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: NSMModule) -> None:
        if self.current_epoch == 1:
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(NSMModule, "on_train_epoch_start", interrupt)
        with pytest.raises(SystemExit) as stopped:
            command(f"hydra.run.dir={folder}", "seed=3")
    assert stopped.value.code == 130
    told = (folder / "train.log").read_text()
    assert f"to continue: {cli.python()} -m nsm.train" in told
    assert f"seed=3 hydra.mode=RUN hydra.run.dir={folder}" in told
    command(f"hydra.run.dir={folder}", "seed=3")
    assert [row["epoch"] for row in read(folder, "training_history.json")] == [1, 2]
    assert read(folder, "final_results.json")["status"] == "completed"


@pytest.mark.parametrize(
    ("path", "here", "told"),
    [(".venv/bin", ".", "python"), ("other", ".", ".venv/bin/python3"), ("other", "other", "{}/.venv/bin/python3")],
)
def test_commands_name_the_python_that_has_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, here: str, told: str
) -> None:
    """An environment that is active is on PATH; what ``make train`` uses is not."""
    for folder in (".venv/bin", "other"):
        program = tmp_path / folder / "python"
        program.parent.mkdir(parents=True)
        program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python3"))
    monkeypatch.chdir(tmp_path / here)
    assert cli.python() == told.format(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dropuot=0", "did you mean dropout"),
        ("domain.num_samples=many", "could not be converted"),
        ("domain=nowhere", "Available options in 'domain'"),
        ("schedule.batch_size=-1", "at least 1"),
        ("hardware.precision=16-mixed", "needs a GPU"),
    ],
)
def test_refused_before_anything_is_written(
    command: Callable[..., None], tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(SystemExit, match=message) as refused:
        command(override, f"hydra.run.dir={tmp_path / 'run'}")
    assert str(refused.value.code).startswith("error: ")
    assert "Traceback" not in str(refused.value.code)
    assert not list(tmp_path.iterdir())


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_command_leaves_a_complete_run_alone(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(f"hydra.run.dir={tmp_path / 'run'}")
    before = files_in(tmp_path)
    command(f"hydra.run.dir={tmp_path / 'run'}")
    assert "is complete already; resume=never trains it anew" in capsys.readouterr().out
    assert files_in(tmp_path) == before


def test_a_folder_of_another_run_or_process_is_left_alone(command: Callable[..., None], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command(f"hydra.run.dir={folder}")
    before = files_in(tmp_path)
    with pytest.raises(SystemExit, match=r"error: .* another configuration \(domain\.seed was 0, now 1, seed was"):
        command(f"hydra.run.dir={folder}", "seed=1")
    assert files_in(tmp_path) == before
    with locks.writing(folder), pytest.raises(SystemExit, match=f"is being written by process {os.getpid()} on"):
        command(f"hydra.run.dir={folder}", "resume=never")
    assert files_in(tmp_path) == before


@pytest.mark.parametrize("setting", ["hydra.run.dir", "domain.cache_dir"])
def test_folder_that_cannot_be_written(command: Callable[..., None], tmp_path: Path, setting: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as refused:
        command(f"hydra.run.dir={tmp_path / 'run'}", f"{setting}={tmp_path / 'file' / 'run'}")
    assert str(tmp_path / "file" / "run") in str(refused.value.code)
    assert setting in str(refused.value.code)


def test_exit_code_and_message_of_the_command() -> None:
    command = [sys.executable, "-m", "nsm.train", "model.pool_ratio=0"]
    refused = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert refused.returncode == 1
    assert refused.stderr.strip() == (
        "error: model.pool_ratio=0.0 cannot be used: it must be a share of nodes above 0, at most 1"
    )


def test_a_log_that_cannot_be_written_is_told(command: Callable[..., None], tmp_path: Path) -> None:
    """Python's logging makes a ValueError of it."""
    (tmp_path / "run" / "train.log").mkdir(parents=True)
    with pytest.raises(SystemExit, match=r"error: .*train\.log cannot be used: Is a directory"):
        command(f"hydra.run.dir={tmp_path / 'run'}")
