"""Generated data on disk: made once, never trusted unchecked."""

import json
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from nsm.data import cache
from tests.test_checkpoints import Bomb

WHAT = {"domain": "numbers", "version": 1, "sizes": [3, 4]}


def make() -> dict[str, Any]:
    return {"numbers": torch.arange(12), "name": "twelve"}


def never() -> Any:
    pytest.fail("made anew")


def test_made_once(tmp_path: Path) -> None:
    cache.load_or_make(tmp_path / "data", "numbers", WHAT, make)
    loaded = cache.load_or_make(tmp_path / "data", "numbers", WHAT, never)
    assert torch.equal(loaded["numbers"], torch.arange(12))
    assert loaded["name"] == "twelve"


def made_beside(folder: Path, start: Any) -> None:
    def slowly() -> dict[str, Any]:
        with (folder / "made").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return make()

    start.wait()
    cache.load_or_make(folder, "numbers", WHAT, slowly)


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    processes = [context.Process(target=made_beside, args=(tmp_path, start)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len((tmp_path / "made").read_text().split()) == 1
    cache.load_or_make(tmp_path, "numbers", WHAT, never)


def test_another_domains_file_is_not_taken_for_this_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.load_or_make(tmp_path, "others", {**WHAT, "version": 2}, lambda: {"numbers": torch.zeros(1)})
    mine = f"numbers-{cache.content_hash(WHAT)}"
    for path in list(tmp_path.glob("others-*")):
        path.rename(tmp_path / f"{mine}{path.suffix}")
    loaded = cache.load_or_make(tmp_path, "numbers", WHAT, make)
    assert torch.equal(loaded["numbers"], torch.arange(12))
    assert "is damaged" in caplog.text


def test_code_in_a_cache_is_not_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its digest may be right: whoever can write the one file can write the other."""
    cache.load_or_make(tmp_path, "numbers", WHAT, make)
    (content,), (manifest,) = tmp_path.glob("*.pt"), tmp_path.glob("*.json")
    content.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    digest = cache.hashlib.sha256(content.read_bytes()).hexdigest()
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "sha256": digest}))
    loaded = cache.load_or_make(tmp_path, "numbers", WHAT, make)
    assert loaded["name"] == "twelve"
    assert "cannot be read" in caplog.text
    assert not (tmp_path / "exploded").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_only_be_read_is_read(tmp_path: Path) -> None:
    cache.load_or_make(tmp_path, "numbers", WHAT, make)
    for path in tmp_path.glob(".*.lock"):
        path.unlink()
    tmp_path.chmod(0o555)
    try:
        cache.load_or_make(tmp_path, "numbers", WHAT, never)
    finally:
        tmp_path.chmod(0o755)
