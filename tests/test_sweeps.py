"""Multiruns on this machine: a job that fails spares the others, and the same command does what is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from nsm.module import NSMModule
from nsm.train import train
from tests.same import differences

pytestmark = pytest.mark.usefixtures("process_state")
SWEEP = ("--multirun", "seed=0,1", "schedule.learning_rate=0.01,1e30", "schedule.gradient_clip=null")


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def jobs(outputs: Path) -> list[Path]:
    """The folders of a sweep's jobs, in their order."""
    return sorted((outputs / "toy").iterdir(), key=lambda path: int(path.name.rpartition("_")[2]))


def kept(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What a run that is left alone keeps, with when it was written."""
    files = [path for pattern in ("*.ckpt", "*.json") for path in folder.glob(pattern)]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("launcher", ["basic", pytest.param("joblib", marks=pytest.mark.slow)])
def test_a_job_that_fails_spares_the_others(
    command: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str], launcher: str
) -> None:
    place = [f"hydra.sweep.dir={tmp_path / 'outputs'}", f"hydra/launcher={launcher}"]
    place += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    with pytest.raises(SystemExit, match=r"error: jobs 1, 3 of 4 failed"):
        command(*SWEEP, *place)
    states = [read(folder, "final_results.json")["status"] for folder in jobs(tmp_path / "outputs")]
    assert states == ["completed", "failed", "completed", "failed"]
    told = capsys.readouterr().out
    end = "2 of 4 runs are complete; the same command does what is missing, but jobs 1, 3 would fail again"
    assert end in told
    assert f"job 1, {jobs(tmp_path / 'outputs')[1]}: failed: DivergedError: at epoch 1, batch" in told
    for failed, after in ((1, 2), (3, None)):
        lines = (jobs(tmp_path / "outputs")[failed] / "train.log").read_text().splitlines()
        assert f"[ERROR] - job {failed} failed: DivergedError: at epoch 1, batch" in lines[-1]
        if launcher == "basic" and after is not None:
            assert told.index(f"job {failed} failed") < told.index(f"#{after} : "), "as soon as it happens"


def test_a_killed_sweep_is_continued_by_the_same_command(
    command: Callable[..., None],
    composed: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class KilledError(BaseException):
        pass

    def killed(self: NSMModule, *_: Any) -> None:
        if self.current_epoch == 1 and self.seed == 1:
            raise KilledError

    sweep = ("--multirun", "seed=0,1,2", f"hydra.sweep.dir={tmp_path / 'outputs'}")
    with monkeypatch.context() as patch:
        patch.setattr(NSMModule, "on_train_epoch_start", killed)
        with pytest.raises(KilledError):
            command(*sweep)
    first, second = jobs(tmp_path / "outputs")
    before = kept(first)
    assert "1 of 3 runs are complete" in capsys.readouterr().out

    command(*sweep)
    assert jobs(tmp_path / "outputs")[:2] == [first, second]
    assert kept(first) == before
    train(composed("seed=1"), tmp_path / "whole")
    assert differences(tmp_path / "whole", second) == []
    assert "3 of 3 runs are complete; resume=never runs it anew" in capsys.readouterr().out

    every = [kept(folder) for folder in jobs(tmp_path / "outputs")]
    with monkeypatch.context() as patch:
        patch.delattr(NSMModule, "training_step")
        command(*sweep)
    assert [kept(folder) for folder in jobs(tmp_path / "outputs")] == every

    command(*sweep, "resume=never")
    assert len(jobs(tmp_path / "outputs")) == 6


def test_another_sweep_begins_anew(
    command: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other configurations, or other code."""
    place = f"hydra.sweep.dir={tmp_path / 'outputs'}"
    for seeds in ("seed=0,1", "seed=0", "seed=1,0"):
        command("--multirun", seeds, place)
    assert len(jobs(tmp_path / "outputs")) == 5
    monkeypatch.setattr("nsm.sweeps._code", lambda: "other")
    command("--multirun", "seed=0", place)
    assert len(jobs(tmp_path / "outputs")) == 6
