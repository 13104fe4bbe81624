"""NSM through the launcher: what comes home equals what the same command makes here."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import TEST_CONF
from tests.fake_modal import FakeModal, wait_for

pytestmark = pytest.mark.slow
CLOCKS = ("seconds", "graphs_per_second", "peak_memory_bytes")
SAME_ARITHMETIC = (
    "hardware.accelerator=cpu",
    "hardware.precision=32-true",
    "hardware.tf32=false",
    "hardware.pin_memory=false",
    "hardware.threads=1",
)
HERE = ("hardware=cpu", *SAME_ARITHMETIC)
MODAL = ("hardware=a100", "hydra.launcher.gpu=null", *SAME_ARITHMETIC)
SMALL = (f"hydra.searchpath=[file://{TEST_CONF}]", "experiment=small")


def start(modal: FakeModal | None, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Run NSM, with the stand-in for Modal or, without one, with this machine's own credentials."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "nsm.train", *arguments, *SMALL]
    command += [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=${hydra:runtime.choices.domain}_${hydra:job.num}"]
    command += ["domain.cache_dir=data"] if "hardware=a100" in arguments else [f"domain.cache_dir={folder}/data"]
    environment = {**os.environ, **(modal.client_environment if modal is not None else {})}
    with (folder / "printed").open("w") as printed:
        return subprocess.Popen(command, env=environment, stdout=printed, stderr=printed)


def check_ended(run: subprocess.Popen[bytes], folder: Path, timeout: float = 300) -> None:
    assert run.wait(timeout=timeout) == 0, (folder / "printed").read_text()


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def check_equal(one: Path, other: Path) -> None:
    """The same results and the same history, but for clocks."""
    results = [read(folder, "final_results.json") for folder in (one, other)]
    for key in (
        "status",
        "epochs",
        "best_epoch",
        "best_val_loss",
        "val",
        "test",
        "majority",
        "shortcuts",
        "parameters",
    ):
        assert results[0][key] == results[1][key], key
    histories = [read(folder, "training_history.json") for folder in (one, other)]
    clockless = [[{key: row[key] for key in row if key not in CLOCKS} for row in history] for history in histories]
    assert clockless[0] == clockless[1]


def test_a_sweep_of_two_domains_brings_home_what_local_runs_make(modal: FakeModal, tmp_path: Path) -> None:
    domains = ("--multirun", "domain=causal,planning")
    there, here = tmp_path / "there", tmp_path / "here"
    check_ended(start(modal, there, *domains, *MODAL), there)
    check_ended(start(modal, here, *domains, *HERE), here)
    for run in ("causal_0", "planning_1"):
        check_equal(there / run, here / run)
        results = read(there / run, "final_results.json")
        assert results["cost_usd"] > 0
        assert results["git_commit"] == read(here / run, "final_results.json")["git_commit"]
        assert {"best_model.ckpt", "last.ckpt", ".hydra", "tensorboard", "train.log"} <= set(os.listdir(there / run))
        for text in (".hydra/hydra.yaml", "train.log"):
            assert f"/checkpoints{there}" not in (there / run / text).read_text()
        assert str(there / run) in (there / run / "train.log").read_text(), "paths are those of this machine"


def test_a_preempted_run_ends_as_an_undisturbed_one(modal: FakeModal, tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    longer = ("domain=causal", "schedule.max_epochs=12")
    running = start(modal, there, *longer, *MODAL)  # a plain call: hardware=a100 makes it a sweep of one
    folder = Path("/checkpoints", *there.parts[1:], "causal_0")

    def epochs_committed() -> int:
        if "nsm-checkpoints" not in {volume.name for volume in modal.volumes.values()}:
            return 0
        history = modal.volume("nsm-checkpoints").directory / folder.relative_to("/checkpoints")
        path = history / "training_history.json"
        return len(json.loads(path.read_text())) if path.exists() else 0

    wait_for(lambda: epochs_committed() >= 2 and bool(modal.busy_containers()), timeout=120)
    modal.preempt(modal.busy_containers()[0].container_id)
    check_ended(running, there)
    assert [attempt["outcome"] for attempt in read(there / "causal_0", "modal.json")["attempts"]] == [
        "preempted",
        "completed",
    ]
    check_ended(start(modal, here, "--multirun", *longer, *HERE), here)
    check_equal(there / "causal_0", here / "causal_0")


@pytest.mark.live
def test_on_modal_itself(tmp_path: Path) -> None:
    """Costs minutes of two A100s, after the image is built; leaves nothing behind, as its volume is its own."""
    volume = f"nsm-test-{uuid4().hex[:8]}"
    sweep = ("--multirun", "domain=causal,planning", "hardware=a100", f"hydra.launcher.volume={volume}")
    try:
        for _ in range(2):
            check_ended(start(None, tmp_path, *sweep), tmp_path, timeout=3600)
    finally:
        subprocess.run([sys.executable, "-m", "modal", "volume", "delete", volume, "--yes"], check=True)
    assert "2 of 2 jobs are complete" in (tmp_path / "printed").read_text(), "the second time nothing is left to do"
    for run in ("causal_0", "planning_1"):
        results = read(tmp_path / run, "final_results.json")
        assert results["status"] == "completed"
        assert results["cost_usd"] > 0
        assert "A100" in json.dumps(results)
        assert {"best_model.ckpt", "last.ckpt", ".hydra", "tensorboard", "train.log"} <= set(os.listdir(tmp_path / run))
