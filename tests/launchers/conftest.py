"""A stand-in for Modal, and Hydra apps that are launched on it."""

import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import TaskFunction

from tests.fake_modal import FakeModal, Settings, why_not

Run = Callable[..., "subprocess.CompletedProcess[str]"]
Multirun = Callable[..., Sequence[JobReturn]]
Plugins.instance()  # here, since Hydra imports all plugins again for every test that finds no such instance


@contextmanager
def refused(match: str) -> Iterator["pytest.ExceptionInfo[HydraException]"]:
    """A ``LauncherError`` is raised; Hydra runs a plugin's modules twice, so more than one class has that name."""
    with pytest.raises(HydraException, match=match) as error:
        yield error
    assert error.typename == "LauncherError"


@pytest.fixture(scope="session")
def isolation() -> None:
    """Containers that share no file with this machine."""
    if reason := why_not():
        pytest.skip(f"containers cannot be isolated here: {reason}")


@pytest.fixture(scope="module")
def server(isolation: None) -> Iterator[FakeModal]:
    """A stand-in for the clients of this process, shared by a module's tests; it must have known every request."""
    settings = Settings(idle_seconds=0.2, container_environment={"OMP_NUM_THREADS": "1"})
    with FakeModal(settings) as server, server.in_process_client():
        yield server
    assert not server.errors
    assert not server.unimplemented


@pytest.fixture
def modal(isolation: None) -> Iterator[FakeModal]:
    """A stand-in of a test's own, for clients in processes of their own."""
    with FakeModal() as server:
        yield server
    assert not server.unimplemented
    assert not server.errors


@pytest.fixture
def run(server: FakeModal, tmp_path: Path) -> Run:
    """Run Python in a process of its own, as a user would: ``run("my_app.py", "--multirun", …)``."""

    def run_python(*arguments: str, cwd: Path = tmp_path, code: int = 0) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, **server.client_environment}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
        return done

    return run_python


@pytest.fixture
def multirun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Multirun]:
    """Launch jobs from this process, in ``tmp_path``: ``multirun(task, "hydra.launcher.gpu=null", "+x=1,2")``."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def launch(task: TaskFunction, *overrides: str, config_dir: Path | None = None) -> Sequence[JobReturn]:
        hydra = Hydra.create_main_hydra_file_or_module(
            calling_file=str(tmp_path / "app.py"),
            calling_module=None,
            config_path=config_dir and str(config_dir),
            job_name="app",
        )
        try:
            batches = hydra.multirun(
                config_name=config_dir and "config",
                task_function=task,
                overrides=["hydra/launcher=nsm_modal", *overrides],
                with_log_configuration=False,
            )
        finally:
            GlobalHydra.instance().clear()
        return batches[0]

    yield launch
    root.handlers, root.level = handlers, level
    HydraConfig.instance().cfg = None


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package with a task, in a folder of its own."""
    folder = tmp_path / "source" / "shop"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "jobs.py").write_text(SHOP)
    monkeypatch.syspath_prepend(folder.parent)
    yield importlib.import_module("shop.jobs")
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


SHOP = """
from pathlib import Path

from hydra.core.hydra_config import HydraConfig


def sell(config):
    folder = Path(HydraConfig.get().runtime.output_dir)
    print("sold", config.get("x"), "from", folder)
    (folder / "folder.txt").write_text(str(folder))
    (folder / "last.ckpt").write_text("weights")
    if config.get("x") == 13:
        raise ValueError("no thirteenth")
    return 2.0 * config.get("x", 0)


def expected_seconds(config):
    return 100.0 * config.x


def name_of(config):
    return str(config.x)


def add_tool(image):
    return image.run_commands("install-tool --fast")
"""
