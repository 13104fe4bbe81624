"""One writer a folder: the second is refused, the dead are succeeded."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nsm import locks
from nsm.failures import RunError

HOLD = """
import sys, time
from pathlib import Path
from nsm import locks
with locks.writing(Path(sys.argv[1])):
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Another process that writes into the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def attempt(folder: Path) -> None:
    with locks.writing(folder):
        pass


def test_a_second_process_is_refused_with_the_first_ones_host_and_id(
    holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=f"process {holder.pid} on {socket.gethostname()}"):
        attempt(tmp_path)
    holder.terminate()
    holder.wait()
    attempt(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_keeps_nobody_out(holder: subprocess.Popen[bytes], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == holder.pid
    attempt(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_children_of_a_killed_process_are_waited_for(tmp_path: Path) -> None:
    """A loader's worker has its parent's open files until it notices that it is alone."""
    program = HOLD.replace("time.sleep(60)", "import os; os.fork() or (time.sleep(1), os._exit(0)); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.kill()
    process.wait()
    process.stdout.close()
    attempt(tmp_path)


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    done = context.Event()
    with locks.writing(tmp_path):
        child = context.Process(target=done.wait)
        child.start()
    try:
        attempt(tmp_path)
    finally:
        done.set()
        child.join()


def sign(path: Path, **owner: Any) -> None:
    path.write_text(json.dumps(owner))


def test_another_hosts_lock_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a network file system that carries no locks between hosts."""
    monkeypatch.setattr(locks, "WATCH", 0.5)
    sign(tmp_path / ".lock", host="elsewhere", pid=1, beat=3)
    stop = threading.Event()

    def live() -> None:
        beat = 3
        while not stop.wait(0.05):
            beat += 1
            (tmp_path / ".new").write_text(json.dumps({"host": "elsewhere", "pid": 1, "beat": beat}))
            os.replace(tmp_path / ".new", tmp_path / ".lock")

    alive = threading.Thread(target=live)
    alive.start()
    try:
        with pytest.raises(RunError, match="process 1 on elsewhere"):
            attempt(tmp_path)
    finally:
        stop.set()
        alive.join()
    attempt(tmp_path)  # it has ended: no more signs of life


def test_a_holder_shows_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.01)
    with locks.writing(tmp_path):
        first = json.loads((tmp_path / ".lock").read_text())
        deadline = time.monotonic() + 10
        while json.loads((tmp_path / ".lock").read_text()) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert (first["host"], first["pid"]) == (socket.gethostname(), os.getpid())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"host": 3, "pid": "x"}', "\x00" * 300])
def test_a_lock_file_without_sense_keeps_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(locks, "WATCH", 0.1)
    (tmp_path / ".lock").write_text(content)
    attempt(tmp_path)
