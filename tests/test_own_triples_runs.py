"""Whole runs on a folder of triples, with graphs and with embeddings, and the average of several."""

import csv
import json
import logging
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from nsm import cli, ensemble, evaluate
from nsm.config import ConfigError
from nsm.data.protocols import auc_pr, triple_classification
from nsm.data.scores import load_scores
from nsm.train import CONF, main, train
from tests.conftest import run_command
from tests.triple_folders import make_folder, make_scores, read

pytestmark = pytest.mark.usefixtures("process_state")
Compose = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("triples")
    make_folder(root / "seen", false=True)
    make_folder(root / "unseen", num_entities=25, seed=1, prefix="new")
    return root


@pytest.fixture
def overrides(folders: Path) -> list[str]:
    fixed = ["domain=triples", "schedule=smoke", "hardware=cpu", "hardware.threads=1", "model.node_features=8"]
    return [*fixed, f"domain.path={folders / 'seen'}", f"domain.cache_dir={folders / 'data'}"]


@pytest.fixture
def composed(overrides: list[str]) -> Compose:
    def compose_with(*more: str) -> DictConfig:
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose("train", overrides=[*overrides, *more])

    return compose_with


def test_a_run_with_graphs_of_unseen_entities(composed: Compose, folders: Path, tmp_path: Path) -> None:
    train(composed("model=nsm", f"domain.inference_path={folders / 'unseen'}"), tmp_path)
    results = json.loads((tmp_path / "final_results.json").read_text())
    test = results["test"]
    assert (results["domain"], results["model"], results["levels"]) == ("triples", "nsm", 2)
    figures = {"accuracy", "accuracy_matched", "auc_pr", "mrr", "mrr_tail", "mrr_head", "hits_at_1", "hits_at_10"}
    assert figures | {"sampled_mrr", "cycle_error_structure_only"} <= test.keys()
    assert all(0 <= test[name] <= 1 for name in figures)
    assert test["ranking_queries"] == 2 * len(read(folders / "unseen" / "test.txt"))
    assert {"relation_only", "degree", "count", "path", "path_matched"} <= results["shortcuts"].keys()
    _, scored = load_scores(tmp_path)
    again = triple_classification(scored["val"], scored["test"]) | auc_pr(scored["test"])
    assert {name: test[name] for name in again} == pytest.approx(again)


@pytest.mark.parametrize("model", ["distmult", "complex", "rotate", "transe"])
def test_an_embedding_learns_by_the_same_command(composed: Compose, tmp_path: Path, model: str) -> None:
    longer = ["schedule=production", "schedule.max_epochs=8", "schedule.batch_size=64", "schedule.learning_rate=0.1"]
    train(composed(f"model={model}", *longer, "model.node_features=32", "domain.protocols=[full_ranking]"), tmp_path)
    results = json.loads((tmp_path / "final_results.json").read_text())
    history = json.loads((tmp_path / "training_history.json").read_text())
    assert history[-1]["train/loss"] < 0.95 * history[0]["train/loss"]
    assert (results["model"], results["test"]["cycle_error"]) == (model, None)
    assert results["test"]["ranking_queries"] > 0
    assert (tmp_path / "scores.npz").exists()


@pytest.mark.parametrize("model", ["nsm", "distmult"])
def test_an_evaluation_answers_as_the_run_did_and_speaks_in_the_files_names(
    overrides: list[str], folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    folder = tmp_path / "run"
    run_command([*overrides, f"model={model}", "domain.protocols=[triple_classification]", f"hydra.run.dir={folder}"])
    capsys.readouterr()
    evaluate.main([f"run={folder}", "hardware=cpu", "hardware.threads=1"])
    told = capsys.readouterr().out
    recorded = json.loads((folder / "final_results.json").read_text())["test"]
    found = json.loads((folder / "evaluation_test.json").read_text())
    metrics = found["sets"]["test"]["metrics"]
    for name in ("accuracy", "accuracy_class_0", "accuracy_class_1"):
        assert metrics[name]["value"] == pytest.approx(recorded[name])
    assert "with a threshold for each relation, chosen on validation" in told
    graph = set(read(folders / "seen" / "train.txt"))
    asked = {label: set(read(folders / "seen" / f"{name}.txt")) for label, name in ((1, "test"), (0, "test_negatives"))}
    assert found["mistakes"]
    for mistake in found["mistakes"]:
        assert tuple(mistake["question"].split(" ")) in asked[mistake["y"]]
        triples = [tuple(line.split(" ")) for line in mistake["triples"]]
        ends = set(mistake["question"].split(" ")[::2])
        touching = [len({triple[0], triple[2]} & ends) for triple in triples]
        assert touching[:1] != [0]
        assert (1 if 0 in touching else 0) == sum(a > 0 and b == 0 for a, b in pairwise([*touching, *touching[-1:]]))
        for triple in triples:
            assert triple in graph or (triple[1] == "is_a" and triple[2] in ("odd", "even"))
    with (folder / "predictions_test.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert {(row["subject"], row["predicate"], row["object"]) for row in rows if row["y"] == "1"} == asked[1]
    assert np.mean([row["answer"] == row["y"] for row in rows]) == pytest.approx(recorded["accuracy"])


def test_embeddings_refuse_unseen_entities(composed: Compose, folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model=rotate .* take model=nsm, or domain=triples without"):
        train(composed("model=rotate", f"domain.inference_path={folders / 'unseen'}"), tmp_path)


def test_a_command_on_bad_data_ends_in_one_message(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "bad")
    with (folder / "test.txt").open("a") as file:
        file.write("e1\tnext\n")
    arguments = [*overrides, f"domain.path={folder}", f"hydra.run.dir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["nsm.train", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        with pytest.raises(SystemExit, match=r"error: .*test\.txt, line \d+: 2 columns instead of 3 to 5"):
            cli.run(main, CONF, "train")
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers, root.level = handlers, level


def test_the_average_of_two_is_better_than_each_whatever_their_scales(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_scores(tmp_path / "a", 0.7, seed=0), make_scores(tmp_path / "b", 0.7, seed=1)]
    alone = [ensemble.figures(ensemble.average([run])) for run in runs]
    together = ensemble.figures(ensemble.average(runs))
    for name in ensemble.FIGURES:
        assert together[name] > max(found[name] for found in alone) + 0.02
    ensemble.main([str(run) for run in runs])
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1].split() == ["average", *(f"{together[name]:.3f}" for name in ensemble.FIGURES)]
    assert printed[1].split()[0] == str(runs[0])


def test_runs_on_other_triples_are_not_averaged(tmp_path: Path) -> None:
    runs = [make_scores(tmp_path / "a", 1.0, seed=0), make_scores(tmp_path / "b", 1.0, seed=1, size=200)]
    with pytest.raises(SystemExit, match="was asked about other triples"):
        ensemble.main([str(run) for run in runs])
    with pytest.raises(SystemExit, match=r"nowhere.scores\.npz"):
        ensemble.main([str(runs[0]), str(tmp_path / "nowhere")])


@pytest.mark.slow
@pytest.mark.parametrize("control", ["none", "shuffled_labels"])
def test_rules_are_learned_for_unseen_entities_and_not_from_shuffled_labels(
    composed: Compose, tmp_path: Path, control: str
) -> None:
    make_folder(tmp_path / "seen", num_entities=150)
    make_folder(tmp_path / "unseen", num_entities=60, seed=1, prefix="new")
    paths = [f"domain.path={tmp_path / 'seen'}", f"domain.inference_path={tmp_path / 'unseen'}"]
    size = ["schedule=production", "schedule.max_epochs=8", "schedule.batch_size=32", "schedule.learning_rate=5e-3"]
    model = ["model=flat", "model.layers=3", "model.node_features=32", "domain.protocols=[auc_pr,full_ranking]"]
    train(composed(*paths, *size, *model, f"domain.control={control}"), tmp_path / "run")
    results = json.loads((tmp_path / "run" / "final_results.json").read_text())
    if control == "none":
        assert results["test"]["auc_pr"] > 0.8
        assert results["test"]["mrr"] > 0.4  # by chance, .08
    else:
        assert results["test"]["auc_pr"] < 0.6
        assert results["test"]["mrr"] < 0.2
        assert results["shortcuts"] == {}
