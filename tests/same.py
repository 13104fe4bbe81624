"""Whether two runs are the same, bit for bit, apart from clocks, memory and where they lie."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nsm import checkpoints

CLOCKS = {"seconds", "training_seconds", "graphs_per_second", "peak_memory_bytes"}
PLACES = {"dirpath", "best_model_path", "kth_best_model_path", "last_model_path", "best_k_models", "cache_dir"}
HOW = {"git_commit", "config_hash", "checkpoint_every_minutes"}


def differences(one: Path, other: Path) -> list[str]:
    """Where two complete runs differ: their checkpoints (all that is in them), histories and results."""
    names = [{path.name for path in folder.glob("*.ckpt")} - {"error.ckpt"} for folder in (one, other)]
    found = [f"checkpoints: {sorted(names[0] ^ names[1])}"] if names[0] != names[1] else []
    for name in sorted(names[0] & names[1]):
        found += [f"{name}{where}" for where in _differ(*(checkpoints.load(folder / name) for folder in (one, other)))]
    for name in ("training_history.json", "final_results.json"):
        found += [
            f"{name}{where}" for where in _differ(*(json.loads((folder / name).read_text()) for folder in (one, other)))
        ]
    return found


def _differ(one: Any, other: Any, where: str = "") -> Iterator[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in one.keys() | other.keys():
            if key not in CLOCKS | PLACES | HOW:
                if key in one and key in other:
                    yield from _differ(one[key], other[key], f"{where}/{key}")
                else:
                    yield f"{where}/{key} is missing"
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, Sequence) and isinstance(other, Sequence) and not isinstance(one, str):
        if len(one) != len(other):
            yield f"{where} has {len(one)} and {len(other)}"
        for index, (left, right) in enumerate(zip(one, other, strict=False)):
            yield from _differ(left, right, f"{where}/{index}")
    elif type(one) is not type(other) or one != other:
        yield f"{where}: {one!r} and {other!r}"
