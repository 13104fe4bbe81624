"""The folder of a run: what is written into it, and the table that ends a run."""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import nsm
from nsm.config import ConfigError
from nsm.data.cache import content_hash
from nsm.data.datamodule import TripleDataModule
from nsm.metrics import collapsed

HISTORY, RESULTS, LAST, BEST = "training_history.json", "final_results.json", "last.ckpt", "best_model.ckpt"
PACKAGES = ("torch", "torch-geometric", "lightning", "torchmetrics", "hydra-core", "numpy", "scikit-learn")


def prepare_folder(folder: Path) -> None:
    """Make the folder and prove that it can be written.

    Raises:
        ConfigError: if it cannot, naming it and the setting that moves it.
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


def write_json(path: Path, content: Any) -> None:
    """Write ``path`` whole or not at all; numbers that JSON lacks (NaN, infinities) become null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text)
    os.replace(beside, path)


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The epochs that a run has completed so far, from the first."""
    path = folder / HISTORY
    return json.loads(path.read_text()) if path.exists() else []


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


def collect_results(
    *,
    model: str,
    settings: dict[str, Any],
    datamodule: TripleDataModule,
    history: Sequence[Mapping[str, Any]],
    test: Mapping[str, float | None],
    parameters: int,
    seconds: float,
    device: str,
) -> dict[str, Any]:
    """What ``final_results.json`` holds: the same keys for every domain and model, None where one does not apply.

    Args:
        model: its name in ``conf/model``.
        settings: the whole configuration, as plain values.
        history: rows of ``training_history.json``.
        test: figures of the test sets.
        device: ``cpu`` or ``cuda``.
    """
    best = min(history, key=lambda row: row["val/loss"])
    classes = [float(test[key] or 0) for key in ("accuracy_class_0", "accuracy_class_1") if key in test]
    rates = [row["graphs_per_second"] for row in history[1:] or history]  # the first epoch warms up
    return {
        "status": "completed",
        "domain": datamodule.name,
        "model": model,
        "levels": settings["model"].get("levels"),
        "seed": settings["seed"],
        "epochs": history[-1]["epoch"],
        "best_epoch": best["epoch"],
        "best_val_loss": best["val/loss"],
        "val": {key.removeprefix("val/"): value for key, value in best.items() if key.startswith("val/")},
        "test": dict(test),
        "majority": datamodule.majority if classes else None,
        "shortcuts": datamodule.shortcuts if classes else {},
        "ceiling": datamodule.ceiling,
        "ceiling_do": datamodule.ceilings.get("do"),
        "collapsed": bool(classes) and collapsed(*classes),
        "parameters": parameters,
        "seconds": seconds,
        "graphs_per_second": sum(rates) / len(rates),
        "peak_memory_bytes": peak_memory_bytes(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "cost_usd": cost_usd(seconds),
        "versions": versions(),
        "git_commit": git_commit(),
        "config_hash": content_hash({key: value for key, value in settings.items() if key != "resume"}),
    }


def headline(results: Mapping[str, Any]) -> dict[str, float]:
    """The figures that TensorBoard shows beside a run's hyperparameters."""
    figures = {f"test/{key}": value for key, value in results["test"].items() if value is not None}
    return figures | {"best_val_loss": results["best_val_loss"], "seconds": results["seconds"]}


def format_table(results: Mapping[str, Any], ceilings: Mapping[str, float | None]) -> str:
    """The table that ends a run: the test accuracy beside what it is to be judged by."""
    test = results["test"]
    accuracy = test.get("accuracy")
    rows: list[tuple[str, str, str]] = []
    if accuracy is not None:
        rows.append(
            (
                "test accuracy",
                f"{accuracy:.3f}",
                f"class 0 {test['accuracy_class_0']:.3f}, class 1 {test['accuracy_class_1']:.3f}",
            )
        )
        rows.append(("  majority", f"{results['majority']:.3f}", f"{accuracy - results['majority']:+.3f}"))
        for name, score in sorted(results["shortcuts"].items(), key=lambda item: item[1]):
            against = test.get("accuracy_matched", accuracy) if name.endswith("_matched") else accuracy
            rows.append((f"  shortcut {name}", f"{score:.3f}", f"{against - score:+.3f}"))
        if results["ceiling"] is not None:
            rows.append(("  ceiling", f"{results['ceiling']:.3f}", f"{accuracy - results['ceiling']:+.3f}"))
    shown = {"accuracy", "accuracy_class_0", "accuracy_class_1"}
    for name, value in test.items():
        if value is not None and name not in shown:
            ceiling = ceilings.get(name.removeprefix("accuracy_")) if name.startswith("accuracy_") else None
            rows.append((f"test {name}", f"{value:.3f}", "" if ceiling is None else f"ceiling {ceiling:.3f}"))
    epochs = f"{results['epochs']} epochs, best {results['best_epoch']}"
    rows.append(("seconds", f"{results['seconds']:.0f}", epochs))
    width = max(len(name) for name, _, _ in rows)
    title = f"{results['domain']}, {results['model']}, seed {results['seed']}"
    return "\n".join([title, *(f"{name:<{width}}  {value:>8}  {note}".rstrip() for name, value, note in rows)])


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return None if isinstance(content, float) and (content != content or abs(content) == float("inf")) else content
