"""``python -m nsm.evaluate`` on real runs of the toy domain: what it writes, and what it refuses."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nsm import checkpoints
from nsm.evaluate import evaluate, main
from nsm.restore import restore
from tests.conftest import TEST_CONF, run_command, toy_overrides

HERE = ["hardware=cpu", "hardware.threads=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run that has learned a little."""
    folder = tmp_path_factory.mktemp("evaluate")
    threads, log = torch.get_num_threads(), logging.getLogger("lightning.pytorch")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    learns = (
        "domain.num_samples=400",
        "schedule.learning_rate=0.0003",
        "model.dropout=0",
        f"hydra.run.dir={folder / 'run'}",
    )
    run_command(toy_overrides(folder), *learns)
    yield folder / "run"
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture
def run(finished: Path, tmp_path: Path, process_state: None) -> Path:
    """A copy of that folder."""
    return shutil.copytree(finished, tmp_path / "run")


def test_best_checkpoint_on_the_test_split_gives_the_run_s_own_figures(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([f"run={run}", *HERE])
    told = capsys.readouterr().out
    result = json.loads((run / "evaluation_test.json").read_text())
    recorded = json.loads((run / "final_results.json").read_text())
    metrics = result["sets"]["test"]["metrics"]
    for name in ("accuracy", "accuracy_class_0", "accuracy_class_1", "auroc", "ece"):
        assert metrics[name]["value"] == pytest.approx(recorded["test"][name], abs=1e-6)
        assert metrics[name]["low"] <= metrics[name]["value"] <= metrics[name]["high"]
    assert metrics["accuracy"]["low"] < metrics["accuracy"]["high"]
    assert result["shortcuts"] == recorded["shortcuts"]
    assert result["majorities"]["test"] == recorded["majority"]
    assert result["domain_figures"]["mean_probability_again"]["value"] == pytest.approx(
        recorded["test"]["mean_probability_again"]
    )
    assert result["epoch"] == recorded["best_epoch"]
    assert f"{recorded['test']['accuracy']:.3f}" in told
    for picture in ("confusion", "calibration", "breakdowns"):
        assert (run / f"evaluation_test_{picture}.png").read_bytes()[:4] == b"\x89PNG"
        assert f"evaluation_test_{picture}.png" in told


def test_details_are_true_of_the_predictions(run: Path) -> None:
    result = evaluate(run, "val", "last", HERE)
    scored = result["sets"]["val"]
    restored = restore(run, "last", HERE)
    dataset = restored.datamodule.val_set
    with torch.no_grad():
        probability = restored.module(dataset.__getitems__(list(range(len(dataset))))).numpy()
    y = dataset.column("y").numpy()
    answer = (probability > 0.5).astype(int)
    assert scored["confusion"] == [[int(((y == t) & (answer == a)).sum()) for a in (0, 1)] for t in (0, 1)]
    assert scored["report"]["1"]["recall"] == pytest.approx(scored["metrics"]["accuracy_class_1"]["value"])
    assert sum(row["count"] for row in scored["calibration"]) == len(y) == scored["samples"]
    for row in scored["calibration"]:
        inside = (probability >= row["low"]) & (probability < row["high"])
        if inside.any():
            assert row["frequency"] == pytest.approx(y[inside].mean())
    (groups,) = scored["breakdowns"].values()
    ends = dataset.column("ends").numpy()
    assert [(row["group"], row["samples"]) for row in groups] == [
        (name, int((ends == code).sum())) for code, name in enumerate(("ends in a", "ends in b"))
    ]
    assert groups[0]["accuracy"]["value"] == pytest.approx((answer == y)[ends == 0].mean())
    given = np.where(y == 1, probability, 1 - probability)
    wrong = [int(position) for position in np.argsort(given, kind="stable") if given[position] < 0.5]
    assert [mistake["position"] for mistake in result["mistakes"]] == wrong[:10]
    for mistake in result["mistakes"]:
        assert len(mistake["triples"]) == 4
        assert mistake["triples"][0].split()[1] == "near"
        assert mistake["triples"][0].endswith("(0.50)")
    assert result["domain_figures"] == result["shortcuts"] == {}


def test_regression_is_scored_by_its_numbers(command: Callable[..., None], tmp_path: Path, process_state: None) -> None:
    command("task.type=regression", f"hydra.run.dir={tmp_path / 'run'}")
    result = evaluate(tmp_path / "run", elsewhere=HERE)
    recorded = json.loads((tmp_path / "run" / "final_results.json").read_text())["test"]
    for name in ("mse", "mae", "r2"):
        assert result["sets"]["test"]["metrics"][name]["value"] == pytest.approx(recorded[name], abs=1e-5)
    assert (tmp_path / "run" / "evaluation_test_scatter.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=nowhere"], "run=nowhere is no folder"),
        (["split=test"], r"run='' cannot be used"),
        (
            ["run={parent}"],
            r"holds no run: .hydra/config.yaml is missing; there are runs beneath it, such as run=.*/run",
        ),
        (["run={run}", "split=all"], "split='all' cannot be used: it must be one of test, val, train"),
        (
            ["run={run}", "checkpoint=epoch_9"],
            r"checkpoint=epoch_9 is not in .*: it has best_model.ckpt, checkpoint_epoch_1",
        ),
        (["run={run}", "model.levels=3"], r"model.levels=3 cannot be used: run=, split="),
        (["run={run}", "nonsense"], "nonsense cannot be used"),
    ],
)
def test_what_cannot_be_used_ends_in_one_message(run: Path, words: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        main([word.format(run=run, parent=run.parent) for word in words])


def test_damaged_checkpoints_are_refused(run: Path) -> None:
    whole = (run / "best_model.ckpt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        (run / "best_model.ckpt").write_bytes(content)
        with pytest.raises(SystemExit, match=r"error: checkpoint=.*best_model.ckpt is damaged or no checkpoint"):
            main([f"run={run}", *HERE])
    torch.save({"weights": 1}, run / "best_model.ckpt")
    with pytest.raises(SystemExit, match="is damaged or no checkpoint"):
        main([f"run={run}", *HERE])
    checkpoints.save({"weights": 1}, run / "best_model.ckpt")
    with pytest.raises(SystemExit, match="is no checkpoint of a run"):
        main([f"run={run}", *HERE])
    (run / "best_model.ckpt").unlink()
    with pytest.raises(SystemExit, match=r"checkpoint=best is not in .*: it has checkpoint_epoch_1.ckpt"):
        main([f"run={run}", *HERE])


def test_a_checkpoint_of_another_configuration_is_refused(run: Path) -> None:
    state = checkpoints.load(run / "last.ckpt")
    state["hyper_parameters"]["model"]["node_features"] = 32
    state["hyper_parameters"]["domain"]["num_samples"] = 7
    checkpoints.save(state, run.parent / "other.ckpt")
    with pytest.raises(SystemExit) as refused:
        main([f"run={run}", f"checkpoint={run.parent / 'other.ckpt'}", *HERE])
    assert "domain.num_samples is 7 there and 400 here" in str(refused.value)
    assert "model.node_features is 32 there and 64 here" in str(refused.value)
    state = checkpoints.load(run / "last.ckpt")
    weights = state["state_dict"]
    del weights[next(name for name in weights if name.startswith("model."))]
    checkpoints.save(state, run / "short.ckpt")
    with pytest.raises(SystemExit, match="does not fit the model of"):
        main([f"run={run}", "checkpoint=short.ckpt", *HERE])


def test_a_configuration_that_no_longer_holds_is_refused(run: Path) -> None:
    path = run / ".hydra" / "config.yaml"
    content: Any = path.read_text()
    path.write_text(content.replace("num_samples", "num_examples"))
    with pytest.raises(SystemExit, match=r"the configuration of run=.* cannot be used: .*num_examples"):
        main([f"run={run}", *HERE])
    path.write_text("{")
    with pytest.raises(SystemExit, match=r"the configuration of run=.* cannot be used"):
        main([f"run={run}", *HERE])


def test_data_may_lie_elsewhere(run: Path, tmp_path: Path) -> None:
    """A run brought home names the folders of the machine that it ran on."""
    assert f"file://{TEST_CONF}" in (run / ".hydra" / "hydra.yaml").read_text()
    evaluate(run, elsewhere=[*HERE, f"domain.cache_dir={tmp_path / 'moved'}"])
    assert list((tmp_path / "moved").glob("toy-*.pt"))
