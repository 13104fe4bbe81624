"""Runs as found on disk: completed, failed, half written or damaged. Nothing here stops at a broken file."""

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nsm.files import HISTORY, PROGRESS, RESULTS, continuing
from nsm.settings import INDECISIVE, flatten, hyperparameters

MARKS = (RESULTS, HISTORY, "train.log", "error.ckpt")
"""A folder with one of these, or with Hydra's, is a run's."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DATA = ("domain.path", "domain.inference_path")
"""Folders that a domain reads: runs on other ones answer other questions."""
BEGUN = (HISTORY, PROGRESS, "error.ckpt", "last.ckpt")
"""Files that only training leaves."""
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
WHERE = re.compile(r"(seed|resume|domain|model|logger|hydra|hardware|launcher)$|(hardware|hydra|logger|launcher)[./]")
"""Overrides that say which experiment, where and how often, but not with which hyperparameters."""


@dataclass(frozen=True)
class Run:
    """One run, as far as its folder tells."""

    folder: Path
    status: str
    """``completed``, ``failed``, ``interrupted``, ``unfinished`` (running, or stopped without a word), ``broken``."""
    error: str | None
    domain: str
    """With the names of the folders that it reads, if it does."""
    model: str
    levels: int | None
    seed: int | None
    overrides: Sequence[str]
    """What was given on the command line."""
    given: Mapping[str, str]
    """Of that, what decides the result, as it was written: hyperparameters, and choices such as ``schedule=smoke``."""
    settings: Mapping[str, Any]
    """Every hyperparameter, by dotted name; empty where they cannot be read."""
    begun: bool
    """Whether it came as far as training; a wrong path, say, stops a run before."""
    results: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    evaluation: Mapping[str, Any] | None
    """What ``nsm.evaluate`` found on the test split, if it was asked."""
    written: float
    """When the folder was last written to, in seconds since 1970."""

    def figure(self, name: str) -> float | None:
        """A figure of the results: ``seconds``, ``test.accuracy``, ``shortcuts.predicate_counts``; None if unknown."""
        value: Any = self.results
        for key in name.split(".", 1):
            value = value.get(key) if isinstance(value, Mapping) else None
        return number(value)

    def figures(self, group: str) -> dict[str, float]:
        """Every known figure of ``test``, ``val`` or ``shortcuts``."""
        values = self.results.get(group)
        known = {key: number(value) for key, value in values.items()} if isinstance(values, Mapping) else {}
        return {key: value for key, value in known.items() if value is not None}

    @property
    def best_shortcut(self) -> tuple[str, float] | None:
        """Name and test accuracy of the best of the cheap models."""
        return max(self.figures("shortcuts").items(), key=lambda item: item[1], default=None)

    @property
    def epochs(self) -> int:
        """Epochs learned so far."""
        return int(number(self.results.get("epochs")) or (self.history[-1].get("epoch", 0) if self.history else 0))

    @property
    def continuing(self) -> str | None:
        """The command that goes on with it, where that can be of use: it was stopped, or has left a checkpoint."""
        if self.status == "completed" or not self.begun:
            return None
        stopped = self.status in ("interrupted", "unfinished") or (self.folder / "last.ckpt").exists()
        return continuing(self.overrides, self.folder.resolve()) if stopped else None

    @property
    def so_far(self) -> float | None:
        """Validation accuracy of the best epoch so far."""
        accuracies = [number(row.get("val/accuracy")) for row in self.history]
        losses = [number(row.get("val/loss")) for row in self.history]
        known = [pair for pair in zip(losses, accuracies, strict=True) if None not in pair]
        return min(known, default=(None, None))[1]


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run in and beneath the folders, each once, by path."""
    found = {path.resolve(): path for folder in folders for path in _run_folders(folder)}
    return [read_run(path) for _, path in sorted(found.items())]


def read_run(folder: Path) -> Run:
    """What the folder of a run holds; what cannot be read is named in ``error``."""
    problems: list[str] = []
    results = _read_json(folder / RESULTS, dict, problems) or {}
    damaged = bool(problems)
    history = [row for row in _read_json(folder / HISTORY, list, problems) or [] if isinstance(row, dict)]
    overrides = _read_yaml(folder / ".hydra" / "overrides.yaml", list, problems) or []
    pairs = dict(str(override).lstrip("+~").partition("=")[::2] for override in overrides)
    settings = _resolve(_read_yaml(folder / ".hydra" / "config.yaml", dict, problems) or {})
    choices: Any = {}
    if not results:
        hydra = _read_yaml(folder / ".hydra" / "hydra.yaml", dict, problems) or {}
        choices = OmegaConf.select(OmegaConf.create(hydra), "hydra.runtime.choices", default={})
    status = str(results.get("status") or "completed") if results else "broken" if damaged else "unfinished"
    error = results.get("error")
    if status == "unfinished" and (folder / "error.ckpt").exists():
        status, error = "failed", _last_error(folder / "train.log")
    levels = number(results.get("levels")) or number(settings.get("model.levels"))
    seed = number(results.get("seed", settings.get("seed")))
    return Run(
        folder=folder,
        status=status,
        error="; ".join([*([str(error)] if error else []), *problems]) or None,
        domain=" ".join([str(results.get("domain") or choices.get("domain") or folder.parent.name), *_data(settings)]),
        model=str(results.get("model") or choices.get("model") or "?"),
        levels=None if levels is None else int(levels),
        seed=None if seed is None else int(seed),
        overrides=[str(override) for override in overrides],
        given={
            key: value
            for key, value in pairs.items()
            if not WHERE.match(key) and key not in ("model.levels", *INDECISIVE, *DATA)
        },
        settings=hyperparameters(settings),
        begun=bool(results and status == "completed") or any((folder / name).exists() for name in BEGUN),
        results=results,
        history=history,
        evaluation=_read_json(folder / "evaluation_test.json", dict, []),
        written=_last_written(folder),
    )


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if usable else None


def age(run: Run) -> str:
    """How long ago the run's folder was last written to."""
    seconds = max(0, int(time.time() - run.written))
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def _run_folders(folder: Path) -> Iterator[Path]:
    for path, subfolders, files in os.walk(folder):
        if ".hydra" in subfolders or any(mark in files for mark in MARKS):
            subfolders.clear()  # a run holds no runs
            yield Path(path)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]


def _read_json(path: Path, kind: type, problems: list[str]) -> Any:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, kind):
            raise ValueError(f"it holds no {kind.__name__}")
        return content
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} is damaged ({error})")
        return None


def _read_yaml(path: Path, kind: type, problems: list[str]) -> Any:
    try:
        content = yaml.load(path.read_bytes(), Loader=LOADER)
        if not isinstance(content, kind):
            raise ValueError(f"it holds no {kind.__name__}")
        return content
    except FileNotFoundError:
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        problems.append(f"{path.name} is damaged ({str(error).splitlines()[0]})")
        return None


def _data(settings: dict[str, Any]) -> list[str]:
    """Names of the folders that a run's domain reads."""
    return [Path(str(settings[key])).name for key in DATA if settings.get(key)]


def _resolve(config: dict[str, Any]) -> dict[str, Any]:
    """The settings by dotted name, references followed.

    Runs refer to whole values alone, which is looked up; OmegaConf, which can more, takes twenty milliseconds a run.
    """
    flat = flatten(config)
    resolved = {key: _follow(value, flat) for key, value in flat.items()}
    if "${" not in str(resolved):
        return resolved
    try:
        whole: Any = OmegaConf.to_container(OmegaConf.create(config), resolve=True)
        return flatten(whole)
    except OmegaConfBaseException:
        return flat


def _follow(value: Any, flat: Mapping[str, Any]) -> Any:
    """What a reference leads to; the reference itself where that is more than one value, or a circle."""
    found = value
    for _ in range(10):
        reference = REFERENCE.fullmatch(found) if isinstance(found, str) else None
        if reference is None or reference[1] not in flat:
            break
        found = flat[reference[1]]
    return found


def _last_error(path: Path) -> str | None:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line.strip() for line in reversed(lines) if "rror" in line), None)


def _last_written(folder: Path) -> float:
    times = [folder.stat().st_mtime]
    times += [path.stat().st_mtime for path in (folder / mark for mark in MARKS) if path.exists()]
    return max(times)
