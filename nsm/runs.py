"""The folder of a run: what is written into it, and the table that ends a run."""

import contextlib
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import nsm
from nsm import locks, storage
from nsm.config import ConfigError
from nsm.data.cache import content_hash
from nsm.data.datamodule import TripleDataModule
from nsm.files import HISTORY as HISTORY
from nsm.files import RESULTS as RESULTS
from nsm.metrics import collapsed

log = logging.getLogger(__name__)
BY_CLASS = ("accuracy_class_0", "accuracy_class_1")
BESIDE = {"error": "standard error", "chance": "chance"}
"""Endings of figures that stand beside another one, and what they are called there."""
MATCHED = "_matched"
"""How shortcuts on the relation-matched subset end."""
PACKAGES = ("torch", "torch-geometric", "lightning", "torchmetrics", "hydra-core", "numpy", "scikit-learn")


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make the folder of a run, and be the only process that writes into it.

    Raises:
        ConfigError: if it cannot be written, naming it and the setting that moves it.
        RunError: if another process writes into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"hydra.run.dir={folder} cannot be written ({error.strerror or error}): choose another folder with "
            "hydra.run.dir=, or hydra.sweep.dir= in a multirun"
        ) from error
    with locks.writing(folder):
        storage.remove_unfinished(folder)
        yield


def forget(folder: Path) -> None:
    """Remove what a run wrote into ``folder`` before, because it is to start anew."""
    for path in [*folder.glob("*.ckpt"), folder / HISTORY, folder / RESULTS]:
        path.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write ``path`` whole or not at all; numbers that JSON lacks (NaN, infinities) become null."""
    storage.write_whole(path, (json.dumps(_finite(content), indent=2, allow_nan=False) + "\n").encode())


def read_results(folder: Path) -> dict[str, Any] | None:
    """What ``final_results.json`` holds; None where there is none, or none that can be read."""
    path = folder / RESULTS
    if not path.exists():
        return None
    try:
        results = storage.read_json(path)
    except storage.DamagedError as error:
        log.warning("%s", error)
        return None
    if not isinstance(results, dict) or "status" not in results:
        log.warning("%s holds no results", path)
        return None
    return results


def is_complete(results: Mapping[str, Any]) -> bool:
    """Whether a run that wrote ``results`` ran to its end; what a completed run always writes is there then."""
    val, test = results.get("val"), results.get("test")
    measured = isinstance(test, dict) and isinstance(val, dict) and isinstance(val.get("task_loss"), float)
    return results["status"] == "completed" and measured


def peak_memory_bytes() -> int:
    """Largest memory held so far: by PyTorch on the GPU if one is in use, else by this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """Of Python and of every package that decides a result."""
    own = {"python": platform.python_version(), "nsm": nsm.__version__}
    return own | {package: version(package) for package in PACKAGES}


def git_commit() -> str | None:
    """Commit of the checkout that this code runs from, with ``-dirty`` if files differ from it.

    Outside git it is what the environment variable ``GIT_COMMIT`` says, which a launcher of remote jobs sets, or None.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GIT_COMMIT")
    return found.stdout.strip()


def cost_usd(seconds: float) -> float | None:
    """Of a run of so many seconds, at the price that the environment variable ``USD_PER_SECOND`` names, or None."""
    rate = os.environ.get("USD_PER_SECOND")
    return None if rate is None else seconds * float(rate)


def config_hash(settings: Mapping[str, Any]) -> str:
    """Sixteen hex digits that change when any setting changes, but that which says whether to continue."""
    return content_hash({key: value for key, value in settings.items() if key != "resume"})


def collect_results(
    *,
    domain: str,
    model: str,
    settings: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    seconds: float,
    device: str,
    status: str,
    error: str | None = None,
) -> dict[str, Any]:
    """What ``final_results.json`` holds of every run: the same keys always, None where one does not apply (yet).

    Args:
        domain, model: their names in ``conf``.
        settings: the whole configuration, as plain values.
        history: rows of ``training_history.json``.
        seconds: in all processes of the run.
        device: ``cpu`` or ``cuda``.
        status: ``completed``, ``failed`` or ``interrupted``.
        error: what ended the run, if it was not completed.
    """
    best = min(history, key=lambda row: row["val/loss"]) if history else {}
    rates = [row["graphs_per_second"] for row in history[1:] or history]  # the first epoch warms up
    return {
        "status": status,
        "error": error,
        "domain": domain,
        "model": model,
        "levels": settings["model"].get("levels"),
        "seed": settings["seed"],
        "epochs": len(history),
        "best_epoch": best.get("epoch"),
        "best_val_loss": best.get("val/loss"),
        "val": {key.removeprefix("val/"): value for key, value in best.items() if key.startswith("val/")},
        **dict.fromkeys(("test", "majority", "shortcuts", "ceiling", "ceiling_do", "collapsed", "parameters")),
        "seconds": seconds,
        "graphs_per_second": sum(rates) / len(rates) if rates else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "cost_usd": cost_usd(seconds),
        "versions": versions(),
        "git_commit": git_commit(),
        "config_hash": config_hash(settings),
    }


def judged(test: Mapping[str, float | None], datamodule: TripleDataModule, parameters: int) -> dict[str, Any]:
    """What a completed run adds: the figures of the test sets, and what they are to be judged by."""
    classes = [float(test[key] or 0) for key in ("accuracy_class_0", "accuracy_class_1") if key in test]
    return {
        "test": dict(test),
        "majority": datamodule.majority if classes else None,
        "shortcuts": datamodule.shortcuts if classes else {},
        "ceiling": datamodule.ceiling,
        "ceiling_do": datamodule.ceilings.get("do"),
        "collapsed": bool(classes) and collapsed(*classes),
        "parameters": parameters,
    }


def headline(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures that loggers show beside a run's hyperparameters."""
    figures = {f"test/{key}": value for key, value in results["test"].items() if value is not None}
    return figures | {"val/best_loss": results["best_val_loss"], "train/seconds": results["seconds"]}


def format_table(
    results: Mapping[str, Any], ceilings: Mapping[str, float | None], notes: Mapping[str, str] | None = None
) -> str:
    """The table that ends a run: every test figure beside what it is to be judged by.

    Args:
        ceilings: by test set. notes: what is to be said of a figure, by its name.
    """
    test, notes = results["test"], notes or {}
    rows: list[tuple[str, str, str]] = []
    for name, value in test.items():
        base, _, kind = name.rpartition("_")
        if value is None or name in BY_CLASS or (kind in BESIDE and base in test):
            continue
        beside = [f"class 0 {test[BY_CLASS[0]]:.3f}, class 1 {test[BY_CLASS[1]]:.3f}"] if name == "accuracy" else []
        beside += [
            f"{word} {_number(test[f'{name}_{key}'])}" for key, word in BESIDE.items() if f"{name}_{key}" in test
        ]
        ceiling = ceilings.get(name.removeprefix("accuracy_")) if name.startswith("accuracy_") else None
        beside += [f"ceiling {ceiling:.3f}"] if ceiling is not None else []
        beside += [notes[name]] if name in notes else []
        rows.append((f"test {name}", _number(value), ", ".join(beside)))
        for judge, score in _judges(results, name):
            gain = round(value - score, 3) + 0.0  # which is no -0.0
            rows.append((f"  {judge}", f"{score:.3f}", f"{gain:+.3f}"))
    epochs = f"{results['epochs']} epochs, best {results['best_epoch']}"
    rows.append(("seconds", f"{results['seconds']:.0f}", epochs))
    width = max(len(name) for name, _, _ in rows)
    title = f"{results['domain']}, {results['model']}, seed {results['seed']}"
    return "\n".join([title, *(f"{name:<{width}}  {value:>8}  {note}".rstrip() for name, value, note in rows)])


def _judges(results: Mapping[str, Any], figure: str) -> list[tuple[str, float]]:
    """What a test figure is to be judged by, worst first, the ceiling last."""
    shortcuts = sorted(results["shortcuts"].items(), key=lambda item: item[1])
    if figure == "accuracy_matched":
        return [
            (f"shortcut {name.removesuffix(MATCHED)}", score) for name, score in shortcuts if name.endswith(MATCHED)
        ]
    if figure != "accuracy":
        return []
    found = [("majority", results["majority"])]
    found += [(f"shortcut {name}", score) for name, score in shortcuts if not name.endswith(MATCHED)]
    return found + ([("ceiling", results["ceiling"])] if results["ceiling"] is not None else [])


def _number(value: float) -> str:
    """Three decimals; more of what three would hide, and none of a count."""
    if value >= 1000 or (value >= 1 and value == int(value)):
        return f"{value:.0f}"
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and (content != content or abs(content) == float("inf")) else content
