"""The launcher's settings: what ``hydra.launcher.*`` may hold, and the checks of its values.

Prices are third-party figures of 2026-11 for modal.com, in US dollars; every sum made of them is an estimate.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import CompactHydraException


class LauncherError(CompactHydraException):
    """Something that the launcher cannot do; the message says what and which setting mends it."""


def check(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raise :class:`LauncherError`, saying what the value must be, unless ``condition`` holds."""
    refuse_unless(condition, key, value, f"it must be {allowed}")


def refuse_unless(condition: bool, key: str, value: Any, reason: str) -> None:
    """Raise :class:`LauncherError`, with a reason in words of its own, unless ``condition`` holds."""
    if not condition:
        raise LauncherError(f"hydra.launcher.{key}={value!r} cannot be used: {reason}")


def has_credentials() -> bool:
    """Whether Modal's client finds a token."""
    from modal.config import config  # here, since Hydra imports every plugin whenever any app starts

    return bool(config.get("token_id") and config.get("token_secret"))


def check_credentials(run_here: str | None = None) -> None:
    """Raise :class:`LauncherError` if Modal's client finds no token, naming what runs on this machine instead."""
    if not has_credentials():
        here = f", or run on this machine with {run_here}" if run_here else ""
        raise LauncherError(
            "Modal has no credentials here: run `modal setup` once, or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET" + here
        )


@dataclass
class RatesConfig:
    """What a container costs, in US dollars."""

    gpu_second: dict[str, float] = field(
        default_factory=lambda: {
            "T4": 0.000164,
            "L4": 0.000222,
            "A10": 0.000306,
            "L40S": 0.000542,
            "A100-40GB": 0.000583,
            "A100-80GB": 0.000694,
            "H100": 0.001097,
            "H200": 0.001261,
        }
    )
    core_second: float = 0.0000131
    gib_second: float = 0.00000222
    """Memory."""

    def __post_init__(self) -> None:
        prices = {f"gpu_second.{gpu}": price for gpu, price in self.gpu_second.items()}
        prices |= {"core_second": self.core_second, "gib_second": self.gib_second}
        for key, price in prices.items():
            check(price >= 0, f"rates.{key}", price, "dollars a second, 0 or more")


@dataclass
class ImageConfig:
    """What the containers' file system holds. The task's own package and this launcher are always added."""

    python_version: str | None = None
    """As in ``3.11``; null for the Python that launches, so that both sides agree."""
    pyproject: str | None = None
    """A pyproject.toml whose dependencies are installed."""
    constraints: str | None = None
    """A file of exact versions for everything installed."""
    packages: list[str] = field(default_factory=list)
    """Further packages to install, as pip names them."""
    pyg_wheels: str | None = None
    """Index of wheels built for the installed torch, to install torch-scatter and torch-sparse from; as in
    ``https://data.pyg.org/whl/torch-2.12.0+cu126.html``. None is published for torch 2.13, so null."""
    apt: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables of the build and of every job."""
    local_packages: list[str] = field(default_factory=list)
    """Importable packages that travel with each launch, beside the task's own."""
    local_dirs: dict[str, str] = field(default_factory=dict)
    """Folders here, and where they appear in the container."""
    builder: str | None = None
    """``package.module:function``, called with the ``modal.Image`` before local files are added; returns another."""

    def __post_init__(self) -> None:
        version = self.python_version
        plain = version is None or re.fullmatch(r"3\.\d+(\.\d+)?", version) is not None
        check(plain, "image.python_version", version, "a version like 3.11, or null for the one that launches")
        check(self.builder is None or ":" in self.builder, "image.builder", self.builder, "package.module:function")


@dataclass
class RetriesConfig:
    """What happens after a job failed, crashed or ran into its time limit; a preempted one always goes on."""

    max_retries: int = 2
    backoff: float = 2.0
    """Factor between one delay and the next. Modal waits a minute at most, so from 60 s on it has no effect."""
    first_delay: float = 60.0
    """Seconds."""
    not_after: list[str] = field(default_factory=list)
    """Classes of errors, as ``package.module.Name``, that no other attempt can mend and whose message says it all."""

    def __post_init__(self) -> None:
        check(0 <= self.max_retries <= 10, "retries.max_retries", self.max_retries, "0 to 10")
        check(1 <= self.backoff <= 10, "retries.backoff", self.backoff, "a factor from 1 to 10")
        check(0 <= self.first_delay <= 60, "retries.first_delay", self.first_delay, "0 to 60 seconds")


SYNCS = ("all", "light", "none")


@dataclass
class ModalLauncherConfig:
    """How jobs run on Modal."""

    _target_: str = "hydra_plugins.nsm_modal.launcher.ModalLauncher"
    app_name: str = "nsm"
    tags: dict[str, str] = field(default_factory=dict)
    """Labels of the app on Modal, for its bills."""

    gpu: Any = "A100-40GB"
    """A GPU of each container, as Modal names it; a list is tried in order; null for none. Plain ``A100`` may be billed
    as the 80 GB card."""
    cpu: float = 4.0
    """Cores of each container."""
    memory: int = 8192
    """MiB reserved for each container; it may use more where its host has it."""
    timeout: int = 7200
    """Seconds an attempt may take."""
    max_containers: int | None = None
    """Jobs that run at once; null for as many as there are."""
    min_containers: int = 0
    """Containers kept warm, and billed, while a kept app exists; for development."""
    region: str | None = None
    retries: RetriesConfig = field(default_factory=RetriesConfig)

    volume: str = "nsm-checkpoints"
    volume_version: int | None = None
    """Of the volume: 2 lets hundreds of containers commit at once, and is Modal's beta; null for what it has, or for
    Modal's default if it is new."""
    mount: str = "/checkpoints"
    """Where jobs see the volume."""
    commit_seconds: float = 120.0
    """Between commits of a job's folder to the volume: so much work is repeated after a crash, at most."""
    commit_on: list[str] = field(default_factory=lambda: ["*.ckpt"])
    """Names of files whose every change is committed at once."""
    sync: str = "all"
    """What comes home of a job's folder: ``all``, ``light`` (no checkpoints: ``commit_on``) or ``none``."""

    resume: bool = True
    """Continue a launch of the same jobs: skip what is complete, wait for what runs, restart what failed. False starts
    anew."""
    sweep: str | None = None
    """Name of the sweep to continue; null for the newest with the same configurations and the same code, if any."""
    fail_fast: bool = False
    """Stop all jobs as soon as one has failed for good."""
    detach: bool = False
    """Return once the jobs are submitted; ``nsm-modal attach`` waits for them later."""
    keep_app: bool = False
    """Keep one deployed app from launch to launch: it starts sooner, and new containers start from a memory snapshot in
    which the task is imported. False deploys an app for each sweep and stops it afterwards."""

    env_passthrough: list[str] = field(default_factory=list)
    """Environment variables here that jobs get too."""
    secrets: list[str] = field(default_factory=list)
    """Names of secrets stored on Modal."""
    image: ImageConfig = field(default_factory=ImageConfig)

    rates: RatesConfig = field(default_factory=RatesConfig)
    expected_seconds: Any = None
    """How long a job will take: a number, or ``package.module:function`` of its configuration that returns one; null if
    unknown, and estimates then take the time limit."""
    budget_usd: float | None = None
    """Largest estimated cost that is launched."""
    dry_run: bool = False
    """Print what would be launched, and launch nothing."""
    run_here: str | None = None
    """What makes this app run on this machine instead, for the message to whoever has no credentials."""

    def __post_init__(self) -> None:
        # An app's name has 63 characters at most, and a sweep's name, which may follow this one, 32 and a dash.
        plain = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,29}", self.app_name) is not None
        check(plain, "app_name", self.app_name, "1 to 30 letters, digits, dots, dashes and underscores")
        gpus = self.gpus
        names = [gpu for gpu in gpus if isinstance(gpu, str) and re.fullmatch(r"[A-Za-z0-9-]+(:[1-8])?", gpu)]
        named = gpus == [None] or (gpus == names and len(names) > 0)
        check(named, "gpu", self.gpu, "a name like A100-40GB or H100:2, a list of them, or null for none")
        check(0.1 <= self.cpu <= 64, "cpu", self.cpu, "0.1 to 64 cores")
        check(128 <= self.memory <= 344064, "memory", self.memory, "128 to 344064 MiB")
        check(1 <= self.timeout <= 86400, "timeout", self.timeout, "1 to 86400 seconds (Modal's limit is a day)")
        limit = self.max_containers
        check(limit is None or limit >= 1, "max_containers", limit, "at least 1, or null for no limit")
        check(self.min_containers >= 0, "min_containers", self.min_containers, "0 or more")
        kept = self.min_containers == 0 or self.keep_app
        refuse_unless(
            kept, "min_containers", self.min_containers, "only an app that is kept has warm containers: keep_app=true"
        )
        named = re.fullmatch(r"[A-Za-z0-9_.-]{1,63}", self.volume) is not None
        check(named, "volume", self.volume, "1 to 63 letters, digits, dots, dashes and underscores")
        check(self.volume_version in (None, 1, 2), "volume_version", self.volume_version, "1, 2 or null")
        absolute = re.fullmatch(r"(/[^/]+)+/?", self.mount) is not None and not {".", ".."} & {*self.mount.split("/")}
        usable = absolute and self.mount.rstrip("/") not in ("/root", "/tmp")
        check(usable, "mount", self.mount, "an absolute path other than /, /root and /tmp, where Modal has no volumes")
        check(self.commit_seconds > 0, "commit_seconds", self.commit_seconds, "above 0")
        check(self.sync in SYNCS, "sync", self.sync, f"one of {', '.join(SYNCS)}")
        refuse_unless(
            not (self.sweep and not self.resume), "sweep", self.sweep, "it is continued, so not with resume=false"
        )
        for variable in self.env_passthrough:
            refuse_unless(
                variable in os.environ, "env_passthrough", variable, "no environment variable of that name is set"
            )
        seconds = self.expected_seconds
        known = seconds is None or (isinstance(seconds, int | float) and seconds > 0) or ":" in str(seconds)
        check(known, "expected_seconds", seconds, "a number of seconds, package.module:function, or null")
        check(self.budget_usd is None or self.budget_usd >= 0, "budget_usd", self.budget_usd, "0 or more, or null")

    @property
    def gpus(self) -> list[str | None]:
        """The cards to try, in order; None is a container without one."""
        return list(self.gpu) if isinstance(self.gpu, Sequence) and not isinstance(self.gpu, str) else [self.gpu]


def files_to_leave(sync: str, checkpoints: Sequence[str]) -> Sequence[str] | None:
    """Patterns of the files that do not come home; None for all."""
    return {"all": (), "light": tuple(checkpoints), "none": None}[sync]


ConfigStore.instance().store(group="hydra/launcher", name="nsm_modal", node=ModalLauncherConfig, provider="nsm_modal")
