"""The dashboard notebook: every workflow is executed, cell by cell, in a real kernel."""

import json
import os
import re
import shutil
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from nsm import dashboard, figures
from nsm.config import ConfigError
from nsm.dashboard import machine, plan, tables, training
from tests.conftest import TEST_CONF, run_command, toy_overrides
from tests.fake_modal import wait_for

nbformat = pytest.importorskip("nbformat", reason="the notebook's packages are not installed")
nbclient = pytest.importorskip("nbclient", reason="the notebook's packages are not installed")
jupyter_client = pytest.importorskip("jupyter_client", reason="the notebook's packages are not installed")

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "dashboard.ipynb"
CELLS = (
    *("environment", "configuration", "data", "model", "training", "checkpoints", "load", "evaluation"),
    *("comparison", "export", "gpu", "tensorboard", "sweep"),
)
SMALL = [
    *(f"hydra.searchpath=[file://{TEST_CONF}]", "experiment=small", "hardware=cpu", "hardware.threads=1"),
    *("logger.figures_every_epochs=0", "schedule.max_epochs=2", "schedule.probe_steps=2"),
]
Execute = Callable[..., Any]


class Kernel(NamedTuple):
    """A running kernel."""

    manager: Any
    client: Any
    home: Path

    def run(self, cells: Sequence[Any]) -> Any:
        """A notebook of these cells, executed."""
        notebook = nbformat.v4.new_notebook(cells=list(cells))
        runner = nbclient.NotebookClient(notebook, km=self.manager, timeout=300)
        runner.kc = self.client
        runner.execute()
        return notebook


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """A kernel for all workflows, which works in a folder of its own."""
    home = tmp_path_factory.mktemp("home")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    manager = jupyter_client.KernelManager(kernel_name="python3")
    manager.start_kernel(env=os.environ | {"NSM_HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=120)
    yield Kernel(manager, client, home)
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    client.context.term()
    manager.context.term()


@pytest.fixture(scope="module")
def execute(kernel: Kernel) -> Execute:
    """Run the notebook, or some of its cells, with other values in its cell of parameters."""

    def run(*cells: str, **parameters: Any) -> Any:
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        code = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
        code["parameters"].source += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
        chosen = [code[name] for name in ("parameters", *(cells or CELLS))]
        return kernel.run(chosen)

    return run


def told(notebook: Any, cell: str) -> str:
    """Everything that a cell shows, as text."""
    (found,) = (entry for entry in notebook.cells if entry.id == cell)
    shown = [{"text/plain": output.get("text", ""), **output.get("data", {})} for output in found.outputs]
    return "\n".join(str(form) for output in shown for kind, form in output.items() if kind.startswith("text/"))


def drawn_of(notebook: Any, cell: str) -> list[str]:
    """The charts of a cell."""
    return re.findall("<svg.*?</svg>", told(notebook, cell), re.DOTALL)


def pictures(notebook: Any, cell: str) -> int:
    """How many pictures a cell shows."""
    (found,) = (entry for entry in notebook.cells if entry.id == cell)
    return sum("image/png" in output.get("data", {}) for output in found.outputs)


def test_notebook_is_stripped_and_thin() -> None:
    content = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["id"] for cell in code] == ["parameters", *CELLS]
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert len("".join(cell["source"]).splitlines()) <= 6
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))


@pytest.mark.slow
def test_quick_validation(execute: Execute, kernel: Kernel) -> None:
    """Every cell, from top to bottom."""
    done = execute(OVERRIDES=["domain=causal", *SMALL, "schedule=validation", "schedule.max_epochs=2"])
    (run,) = (kernel.home / "outputs" / "causal").iterdir()
    results = json.loads((run / "final_results.json").read_text())
    assert (results["status"], results["epochs"]) == ("completed", 2)
    assert "torch" in told(done, "environment")
    assert "GPU" in told(done, "environment")
    assert f"into outputs/causal/{run.name}" in told(done, "configuration")
    assert "| train | 420 | 420 |" in told(done, "data")
    assert pictures(done, "data") == 2
    assert f"nsm: {results['parameters']:,} parameters" in told(done, "model")
    assert "2 of 2" in told(done, "training")
    assert pictures(done, "training") == 1
    for name in ("epochs", "batches", "memory"):
        assert f"<td>{name}</td><td><progress" in told(done, "training")
    assert re.search(r"best_model.ckpt \| [12] \| 0\.\d+ \| 0\.\d+ .* \| \d\.\d MiB", told(done, "checkpoints"))
    assert "best_model.ckpt of epoch" in told(done, "load")
    assert f"{results['test']['accuracy']:.3f}" in told(done, "evaluation")
    assert pictures(done, "evaluation") >= 3
    assert "1 run: 1 completed" in told(done, "comparison")
    with zipfile.ZipFile(kernel.home / "outputs" / "exports" / f"causal_{run.name}.zip") as archive:
        assert {"report.html", "runs.csv", "run/best_model.ckpt", "run/final_results.json"} <= {*archive.namelist()}
    assert "GPU" in told(done, "gpu")
    assert re.search(r"<iframe[^>]*src=\"http://localhost:\d+/", told(done, "tensorboard"))
    assert "no sweep planned" in told(done, "sweep")


@pytest.mark.slow
def test_checkpoints_without_training(execute: Execute, kernel: Kernel) -> None:
    """Of the newest run; nothing is trained."""
    before = sorted(kernel.home.rglob("training_history.json"))
    done = execute(WORKFLOW="checkpoints", CHECKPOINT="last")
    assert "looks at | outputs/causal/" in told(done, "configuration")
    assert "| last.ckpt | 2 |" in told(done, "checkpoints")
    assert "last.ckpt of epoch 2" in told(done, "evaluation")
    assert told(done, "training") == ""
    assert sorted(kernel.home.rglob("training_history.json")) == before


@pytest.mark.slow
def test_full_run_is_interrupted_and_continued(execute: Execute, kernel: Kernel) -> None:
    """As a user would: the stop button while it trains, then the same cell again."""
    known = set(kernel.home.rglob("progress.json"))

    def trains() -> bool:
        new = {*kernel.home.rglob("progress.json")} - known
        return any(json.loads(path.read_text())["epoch"] > 1 for path in new)

    def interrupt() -> None:
        wait_for(trains, timeout=120)
        os.killpg(kernel.manager.provisioner.process.pid, signal.SIGINT)  # what the stop button does

    pressed = threading.Thread(target=interrupt)
    pressed.start()
    overrides = [
        "domain=causal",
        *SMALL,
        "schedule=production",
        "schedule.max_epochs=8",
        "schedule.early_stopping_patience=9",
    ]
    done = execute("environment", "configuration", "training", WORKFLOW="full", OVERRIDES=overrides)
    pressed.join()
    assert "interrupted; run this cell again to continue" in told(done, "training")
    (run,) = {path.parent for path in kernel.home.rglob("progress.json")} - {path.parent for path in known}
    epochs = len(json.loads((run / "training_history.json").read_text()))
    assert 1 <= epochs < 8
    kernel.run([nbformat.v4.new_code_cell("dashboard.train(plan)")])
    history = json.loads((run / "training_history.json").read_text())
    assert [row["epoch"] for row in history] == [*range(1, 9)]
    assert json.loads((run / "final_results.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_all_three_domains_and_their_comparison(execute: Execute, kernel: Kernel) -> None:
    done = execute(WORKFLOW="domains", OVERRIDES=[*SMALL, "schedule.max_epochs=1"], OUTPUTS="three")
    assert {path.name for path in (kernel.home / "three").iterdir() if path.is_dir()} == {*plan.DOMAINS, "exports"}
    assert pictures(done, "training") == 3
    assert "3 runs: 3 completed" in told(done, "comparison")
    for domain in plan.DOMAINS:
        assert re.search(rf"^{domain} +nsm, 2 levels", told(done, "comparison"), re.MULTILINE)
    assert "<svg" in told(done, "comparison")


@pytest.mark.slow
def test_hyperparameter_exploration(execute: Execute, kernel: Kernel) -> None:
    overrides = ["domain=causal", *SMALL, "schedule.max_epochs=1"]
    done = execute(WORKFLOW="explore", OVERRIDES=overrides, SWEEP=["model.pool_ratio=0.3,0.7"], OUTPUTS="explored")
    assert "| sweep | " in told(done, "configuration")
    assert "2 runs: 2 completed" in told(done, "sweep")
    assert re.search(r"^causal .* pool_ratio=0.3$", told(done, "sweep"), re.MULTILINE)
    assert "pool_ratio" in drawn_of(done, "sweep")[-1], "test accuracy against what varied"
    assert len([*(kernel.home / "explored" / "sweeps").rglob("final_results.json")]) == 2


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process_state: None) -> Path:
    """A folder to work in, without a kernel."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workflow": "fast"}, "WORKFLOW='fast' cannot be used: it must be one of quick, full"),
        ({"workflow": "explore"}, r"SWEEP=\[\] cannot be used: it must be what to explore"),
        ({"run": "outputs/a"}, "only the workflow checkpoints looks at an earlier run"),
        ({"overrides": ["model.levls=3"]}, "there is no setting model.levls: did you mean levels?"),
        ({"overrides": ["seed=-1"]}, "seed=-1 cannot be used"),
        ({"overrides": ["hardware=a100"]}, "put hardware=a100 into SWEEP"),
        ({"workflow": "explore", "sweep": ["model.levels=2,99"]}, "model.levels=99"),
        ({"workflow": "checkpoints"}, "no run with a checkpoint beneath outputs: train one first"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_starts(here: Path, arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dashboard.configure(**arguments)
    assert not [*here.rglob("*.json")]


def test_quick_takes_the_schedule_that_is_asked_for(here: Path) -> None:
    assert dashboard.configure(overrides=["hardware=cpu"]).runs[0].config.schedule.max_epochs == 10
    named = dashboard.configure(overrides=["hardware=cpu", "schedule=smoke"])
    assert named.runs[0].config.schedule.max_epochs == 2
    swept = dashboard.configure("explore", ["hardware=cpu", "seed=3"], sweep=["seed=1,2"])
    assert swept.sweep == ("hardware=cpu", "seed=1,2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the toy domain."""
    folder = tmp_path_factory.mktemp("toy")
    run_command(toy_overrides(folder), f"hydra.run.dir={folder / 'run'}")
    return folder / "run"


def test_damaged_and_missing_checkpoints_are_told(finished: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "last.ckpt").write_bytes((finished / "last.ckpt").read_bytes()[:100])
    (here / "best_model.ckpt").write_bytes((finished / "best_model.ckpt").read_bytes())
    rows = {row[0]: row for row in dashboard.checkpoints(here).rows}
    assert rows["last.ckpt"][1].startswith("damaged")
    assert rows["last.ckpt"][5] == "100 B"
    assert rows["best_model.ckpt"][1] in (1, 2)
    assert dashboard.checkpoints(here / "empty").note.endswith("has no checkpoint yet")
    with pytest.raises(ConfigError, match=r'epoch_3 is not in .*: it has best_model.*; CHECKPOINT = "best_model.ckpt"'):
        dashboard.load(finished, "epoch_3")
    failed = here / "failed"
    shutil.copytree(finished / ".hydra", failed / ".hydra")
    (failed / "error.ckpt").write_bytes((finished / "last.ckpt").read_bytes())
    monkeypatch.chdir(failed)  # where no other best_model.ckpt is
    with pytest.raises(ConfigError, match=r'checkpoint=best is not in .*failed: .*; CHECKPOINT = "error.ckpt"'):
        dashboard.load(failed)
    assert dashboard.load(failed, "error.ckpt").epoch == 2
    with pytest.raises(ConfigError, match="run=nowhere is no folder"):
        dashboard.evaluate(Path("nowhere"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo starting; echo 'error: the loss is nan'; exit 1", r"exited with 1\nstarting\nerror: the loss is nan"),
        ("seq 60; exit 1", r"exited with 1\n… 20 lines before these are in train.log\n21\n"),
        ("kill -9 $$", "killed, most likely for memory: lower schedule.batch_size"),  # as the system would
    ],
)
def test_a_run_that_fails_or_is_out_of_memory_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    """The notebook's own process goes on, whatever the run met."""
    program = here / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(training.FailedRunError, match=message):
        training.watch([], here / "run", "a run")


def test_progress_is_shown_of_the_newest_run(here: Path) -> None:
    progress = {"epoch": 2, "max_epochs": 4, "batch": 5, "batches": 10}
    progress |= {"peak_memory_bytes": 2**30, "total_memory_bytes": 2**32}
    shown = training.progress_bars("<run>", progress)
    assert "value='1.5' max='4'" in shown
    assert "value='5' max='10'" in shown
    assert "1.0 GiB at most, of 4.0 GiB" in shown
    assert "&lt;run&gt;" in shown


def test_curves_show_every_figure_of_the_history(finished: Path) -> None:
    history = json.loads((finished / "training_history.json").read_text())
    figure = figures.training_curves(history, "a run")
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes}
    assert list(panels) == ["loss", "accuracy", "cycle loss", "task loss", "learning rate", "peak memory, GiB"]
    for line, stage in zip(panels["loss"].lines, ("train", "val"), strict=True):
        assert line.get_label() == stage
        assert line.get_ydata() == pytest.approx([row[f"{stage}/loss"] for row in history])
    assert panels["learning rate"].lines[0].get_ydata() == pytest.approx([row["lr"] for row in history])
    assert [text.get_text() for text in panels["cycle loss"].texts] == ["not measured"], (
        "the tiny model has no way back"
    )


def test_without_a_gpu_diagnostics_say_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    rows = dict(dashboard.gpu().rows)
    assert rows["GPU"] == "none that PyTorch can use"
    assert "nsm-modal notebook" in rows["elsewhere"]


def test_tables_are_read_by_notebooks_and_terminals() -> None:
    table = tables.Table(("a", "b"), [("x|y", 1), ("two\nlines", 2)], "note")
    assert table._repr_markdown_() == "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n| two lines | 2 |\n\nnote"
    assert repr(table).splitlines()[0] == "a  b"
    assert [tables.size(count) for count in (10, 2048, 3 << 20, 5 << 40)] == ["10 B", "2.0 KiB", "3.0 MiB", "5.0 TiB"]


def test_environment_warns_of_too_little_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "too little" not in dict(dashboard.environment().rows[:2])["disk"]
    monkeypatch.setattr(machine, "LEAST_DISK", 1 << 60)
    assert "too little: make room" in dict(dashboard.environment().rows[:2])["disk"]


def test_checklist_names_a_test_for_each_of_thirty_points() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| `(tests/\S+)::(\w+)` \|$", (ROOT / "docs" / "dashboard.md").read_text(), re.M)
    assert [int(number) for number, _, _ in rows] == list(range(1, 31))
    for _, path, name in rows:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path} has no {name}"
