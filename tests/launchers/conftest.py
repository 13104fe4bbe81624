"""A stand-in for Modal, and Hydra apps that are launched on it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fake_modal import FakeModal, Settings, why_not

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeModal]:
    """A stand-in for the clients of this process, shared by a module's tests; it must have known every request."""
    if reason := why_not():
        pytest.skip(reason)
    settings = Settings(idle_seconds=0.2, container_environment={"OMP_NUM_THREADS": "1"})
    with FakeModal(settings) as server, server.in_process_client():
        yield server
    assert not server.errors
    assert not server.unimplemented


@pytest.fixture
def run(server: FakeModal, tmp_path: Path) -> Run:
    """Run Python in a process of its own, as a user would: ``run("my_app.py", "--multirun", …)``."""

    def run_python(*arguments: str, cwd: Path = tmp_path, code: int = 0) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *arguments]
        environment = {**os.environ, **server.client_environment, "COLUMNS": "80"}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done

    return run_python
