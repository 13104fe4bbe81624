"""What loggers get: names, rates, pictures, results; and what they refuse."""

import csv
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.text import Annotation
from omegaconf import DictConfig
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nsm import config
from nsm.config import ConfigError, LoggerConfig, read_config
from nsm.drawings import sample_graph, selection_of
from nsm.module import build_module
from nsm.train import build_datamodule, train
from tests.browser import browser, image_folder

pytestmark = pytest.mark.usefixtures("process_state")


def test_several_loggers_get_the_same(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    train(composed("logger=[tensorboard,csv]"), tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    rows = list(csv.DictReader((tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()))
    accuracies = [float(row["val/accuracy"]) for row in rows if row["val/accuracy"]]
    assert accuracies == pytest.approx([event.value for event in board.Scalars("val/accuracy")])
    history = json.loads((tmp_path / "training_history.json").read_text())
    for name, key in (("train/lr", "lr"), ("train/temperature", "temperature"), ("val/accuracy", "val/accuracy")):
        assert [event.value for event in board.Scalars(name)] == pytest.approx([row[key] for row in history])
    test = json.loads((tmp_path / "final_results.json").read_text())["test"]
    assert {name.split("/")[0] for name in board.Tags()["scalars"]} == {"train", "val", "test"}
    assert float(rows[-1]["test/accuracy"]) == pytest.approx(test["accuracy"])


def test_without_a_logger_a_run_still_writes_its_own_files(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    train(composed("logger=[]"), tmp_path)
    assert (tmp_path / "final_results.json").exists()
    assert not (tmp_path / "tensorboard").exists()


def test_progress_tells_where_training_is(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    train(composed("schedule.max_epochs=3"), tmp_path)
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["epoch"], progress["max_epochs"]) == (3, 3)
    assert progress["batch"] == progress["batches"] > 1
    assert 0 < progress["peak_memory_bytes"] < progress["total_memory_bytes"]


@pytest.mark.parametrize(("every", "epochs"), [(1, [1, 2, 3]), (2, [2])])
def test_pictures_are_drawn_as_often_as_asked(
    composed: Callable[..., DictConfig], tmp_path: Path, every: int, epochs: list[int]
) -> None:
    few = ("model=nsm", "model.node_features=8", "schedule.max_epochs=3", f"logger.figures_every_epochs={every}")
    train(composed(*few), tmp_path)
    board = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0}).Reload()
    for name in ("val/confusion", "val/calibration", "val/graph"):
        assert [event.step for event in board.Images(name)] == epochs


def test_a_drawn_selection_is_what_pooling_did(composed: Callable[..., DictConfig]) -> None:
    composed_config = composed("model=nsm", "model.node_features=8")
    read = read_config(composed_config)
    datamodule = build_datamodule(composed_config, read)
    module = build_module(read, datamodule, {}).eval()
    for position in range(10):
        sample = datamodule.val_set.__getitems__([position])
        selection = selection_of(module, sample)
        assert selection is not None
        triples = set(
            zip(sample.edge_index[0].tolist(), sample.edge_type.tolist(), sample.edge_index[1].tolist(), strict=True)
        )
        assert selection.merged <= triples
        cluster = {node: {node} for node in range(5)}
        for subject, _, object_ in selection.merged:
            joined = cluster[subject] | cluster[object_]
            for node in joined:
                cluster[node] = joined
        for members in cluster.values():
            assert len(members & selection.kept) == 1, "each cluster grows from one node that is kept"
        assert selection.keepers == {
            node: next(iter(members & selection.kept))
            for node, members in cluster.items()
            if node not in selection.kept
        }
    figure = sample_graph(sample, datamodule.relations, datamodule.entity_types, "a sample", selection=selection)
    drawn = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(text for text in drawn if text in datamodule.relations) == ["near", "near", "next", "next"]
    assert f"WHY keeps {len(selection.kept)} of 5 nodes" in drawn[-1]
    arrows = [text.arrow_patch for text in figure.axes[0].texts if isinstance(text, Annotation)]
    dashed = [arrow for arrow in arrows if arrow is not None and arrow.get_linestyle() not in ("-", "solid")]
    assert len(arrows) - len(dashed) == sample.num_edges
    assert len(dashed) == len(selection.keepers) == 5 - len(selection.kept)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert len({float(handle.get_sizes()[0]) for handle in legend.legend_handles}) == 1


def test_a_logger_that_is_not_installed_is_refused_before_anything_is_written(
    command: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"error: logger='mlflow' cannot be used: .*pip install -e '\.\[mlflow\]'"):
        command("logger=[tensorboard,mlflow]", f"hydra.run.dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="logger='wandb' cannot be used"):
        LoggerConfig(wandb=True).check_present()
    LoggerConfig(tensorboard=True, csv=True).check_present()


@pytest.mark.parametrize(("key", "value"), [("wandb_mode", "sometimes"), ("figures_every_epochs", -1)])
def test_wrong_values_are_refused(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"logger.{key}="):
        LoggerConfig(**{key: value})


TRAIN = """
import sys
from hydra import compose, initialize_config_dir
import tests.toy
from nsm.train import CONF, train
from pathlib import Path
with initialize_config_dir(CONF, version_base="1.3"):
    train(compose("train", overrides=sys.argv[2:]), Path(sys.argv[1]))
"""
ASK_MLFLOW = """
import json, mlflow
client = mlflow.MlflowClient(next(word.partition("=")[2] for word in sys.argv if word.startswith("logger.mlflow_uri")))
run, = client.search_runs([client.get_experiment_by_name("toys").experiment_id])
print("ANSWER", json.dumps([run.info.status, run.data.metrics, run.data.params]))
"""


def run_apart(code: str, folder: Path, *overrides: str) -> str:
    """A run in a process of its own: these packages start threads and warn of what is not ours."""
    command = [sys.executable, "-c", code, str(folder), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_wandb_and_mlflow_keep_a_run_here(overrides: list[str], tmp_path: Path) -> None:
    """Both at once: W&B offline, MLflow in a file."""
    for name in ("wandb", "mlflow"):
        pytest.importorskip(name, reason=f"the extra {name} is not installed")
    store = f"logger.mlflow_uri=sqlite:///{tmp_path / 'mlflow.db'}"
    both = ("logger=[wandb,mlflow]", store, "logger.project=toys")
    told = run_apart(TRAIN + ASK_MLFLOW, tmp_path / "run", *overrides, *both)
    (kept,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"val/accuracy" in kept.read_bytes()
    assert b"test/accuracy" in kept.read_bytes()
    status, metrics, params = json.loads(told.split("ANSWER")[1].splitlines()[0])
    test = json.loads((tmp_path / "run" / "final_results.json").read_text())["test"]
    assert status == "FINISHED"
    assert metrics["test/accuracy"] == pytest.approx(test["accuracy"])
    assert params["schedule.max_epochs"] == "2"


@pytest.mark.slow
def test_tensorboard_in_a_browser(composed: Callable[..., DictConfig], tmp_path: Path) -> None:
    """Curves, pictures, and the table that compares a sweep by what varied in it."""
    folder = image_folder(tmp_path)
    other = ("model=nsm", "model.node_features=8")  # which has many settings of its own
    sweep = [(f"schedule.learning_rate={rate}", f"seed={seed}") for seed, rate in enumerate((0.001, 0.01))]
    for number, given in enumerate([*sweep, other]):
        settings = composed(*given, "logger.figures_every_epochs=1")
        train(settings, tmp_path / "outputs" / str(number), ["domain=toy", "hardware=cpu", *given])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    served = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "outputs"), "--port", str(port)]
    with browser() as opened, subprocess.Popen(served, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            await_answer(address, server)
            page = opened.new_page(viewport={"width": 1400, "height": 1000})
            shown = ("val/accuracy", "train/lr", "val/graph")
            page.goto(f"{address}/?tagFilter={'%7C'.join(shown).replace('/', '%2F')}#timeseries")
            for name in shown:
                page.get_by_text(name, exact=True).first.wait_for(timeout=60_000)
            page.wait_for_timeout(2000)  # until what is named is drawn
            page.screenshot(path=folder / "tensorboard.png")
            page.goto(f"{address}/#hparams")
            page.reload()
            page.get_by_text("test/accuracy").first.wait_for(timeout=60_000)
            heads = page.locator("vaadin-grid-cell-content:visible").all_inner_texts()  # of TensorBoard's table
            page.screenshot(path=folder / "hparams.png")
        finally:
            server.terminate()
            server.wait(timeout=30)
    assert (folder / "tensorboard.png").stat().st_size > 30_000
    assert heads[2:5] == ["model", "schedule.learning_rate", "seed"]


def await_answer(address: str, server: "subprocess.Popen[bytes]") -> None:
    """Wait until the server answers."""
    for _ in range(240):
        assert server.poll() is None, "TensorBoard ended"
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.25)
    raise AssertionError("TensorBoard does not answer")
