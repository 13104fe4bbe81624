"""Checkpoint files: sealed, checked, and readable by what comes after."""

import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from nsm import checkpoints, storage
from nsm.failures import RunError
from nsm.storage import DamagedError
from nsm.train import train
from tests.test_resume import read

STORED = Path(__file__).parent / "stored"
STATE = {**{key: {} for key in checkpoints.STATE}, "global_step": 3, "state_dict": {"weight": torch.arange(6.0)}}


class Bomb:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoints.save(STATE, path)
    loaded = checkpoints.load(path)
    assert loaded.keys() == STATE.keys()
    assert torch.equal(loaded["state_dict"]["weight"], torch.arange(6.0))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_checkpoint_is_still_one_of_pytorch_and_a_zip_archive(tmp_path: Path) -> None:
    checkpoints.save(STATE, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True).keys() == STATE.keys()
    with zipfile.ZipFile(tmp_path / "last.ckpt") as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"nsm checkpoint 1 sha256:")


def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoints.save(STATE, path)
    content = path.read_bytes()
    for position in [*range(0, len(content), 13), *range(len(content) - 150, len(content))]:
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises((DamagedError, RunError), match=r"last\.ckpt"):
            checkpoints.load(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path, sign = tmp_path / "last.ckpt", tmp_path / "exploded"
    torch.save({**STATE, "bomb": Bomb(sign)}, path)
    plain = path.read_bytes()
    checkpoints.save({**STATE, "bomb": Bomb(sign)}, path)
    for content in (plain, path.read_bytes(), pickle.dumps(Bomb(sign))):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=r"last\.ckpt"):
            checkpoints.load(path)
    assert not sign.exists()


def test_a_newer_format_is_refused_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT", 2)
        checkpoints.save(STATE, tmp_path / "last.ckpt")
    with pytest.raises(RunError, match=r"newer version of NSM \(format 2, here 1\)"):
        checkpoints.newest(tmp_path)


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("version", range(1, checkpoints.FORMAT + 1))
def test_a_run_of_an_older_version_is_continued(
    composed: Callable[..., DictConfig], tmp_path: Path, version: int
) -> None:
    """Stored: a run that was killed within its second epoch, by the code that had this format first."""
    folder = tmp_path / "run"
    shutil.copytree(STORED / f"checkpoints_{version}", folder)
    before = checkpoints.load(folder / "last.ckpt")["callbacks"]
    train(composed(), folder)
    history = read(folder, "training_history.json")
    assert [row["epoch"] for row in history] == [1, 2]
    assert history[:1] == before["History"]["rows"]
    assert checkpoints.load(folder / "last.ckpt")["callbacks"].keys() == before.keys()
    assert read(folder, "final_results.json")["status"] == "completed"


def test_a_power_cut_between_writing_and_renaming_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerCutError(BaseException):
        pass

    def cut(*_: Any) -> None:
        raise PowerCutError

    path = tmp_path / "last.ckpt"
    checkpoints.save(STATE, path)
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", cut)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a process that is gone removes nothing
        with pytest.raises(PowerCutError):
            checkpoints.save({**STATE, "global_step": 4}, path)
    assert path.read_bytes() == before
    (left,) = [file for file in tmp_path.iterdir() if file != path]
    assert left.name.startswith(".last.ckpt.")
    storage.remove_unfinished(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
