"""What tests of several modules share."""

import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra_plugins.nsm_modal.config import has_credentials
from omegaconf import DictConfig

from nsm import cli
from nsm.train import CONF, main
from tests import toy

TEST_CONF = Path(toy.__file__).parent / "conf"


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # What runs in the background of a script ignores it, and so would every process that a test starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--live", action="store_true", help="also run what needs an account on Modal, and costs money")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--live") and has_credentials():
        return
    lacking = "Modal's credentials (modal setup)" if config.getoption("--live") else "--live, and an account on Modal"
    for item in items:
        if "live" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=f"needs {lacking}"))


def toy_overrides(folder: Path) -> list[str]:
    """Command line of a run of seconds, on the toy domain, whose data lies under ``folder``."""
    return [
        f"hydra.searchpath=[file://{TEST_CONF}]",
        "domain=toy",
        "model=tiny",
        "schedule=smoke",
        "hardware=cpu",
        "hardware.threads=1",
        "logger.figures_every_epochs=0",
        f"domain.cache_dir={folder / 'data'}",
    ]


def run_command(overrides: Sequence[str], *arguments: str) -> None:
    """``python -m nsm.train`` with overrides and further arguments, in this process."""
    flags = [argument for argument in arguments if argument.startswith("--")]
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nsm.train", *flags, *overrides, *arguments[len(flags) :]])
        patch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            cli.run(main, CONF, "train")
        finally:
            for handler in set(root.handlers) - set(handlers):
                handler.close()
            root.handlers, root.level = handlers, level


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """Command line of a run of seconds, on the toy domain, whose every file lies under ``tmp_path``."""
    return toy_overrides(tmp_path)


@pytest.fixture
def command(overrides: list[str]) -> Callable[..., None]:
    """``python -m nsm.train`` on the toy domain with further arguments, in this process."""
    return partial(run_command, overrides)


@pytest.fixture
def composed(overrides: list[str]) -> Callable[..., DictConfig]:
    """Compose the configuration of such a run, with further overrides."""

    def compose_with(*more: str) -> DictConfig:
        with initialize_config_dir(CONF, version_base="1.3"):
            return compose("train", overrides=[*overrides, *more])

    return compose_with


@pytest.fixture
def process_state() -> Iterator[None]:
    """Undo what a run sets for the whole process."""
    lightning_log = logging.getLogger("lightning.pytorch")
    handlers, level, propagate = list(lightning_log.handlers), lightning_log.level, lightning_log.propagate
    on_interrupt = signal.getsignal(signal.SIGINT)
    threads = torch.get_num_threads()
    yield
    signal.signal(signal.SIGINT, on_interrupt)
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    lightning_log.handlers, lightning_log.propagate = handlers, propagate
    lightning_log.setLevel(level)
