"""What a run finds in its folder: nothing, a run to continue, or one that is complete."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nsm import checkpoints, runs
from nsm.failures import RunError
from nsm.storage import DamagedError

FREE = frozenset(
    {
        "resume",
        "domain.num_workers",
        "domain.pin_memory",
        "domain.cache_dir",
        "schedule.checkpoint_every_minutes",
    }
)
"""Settings that may differ when a run is continued: where it computes and keeps things, and how often it saves."""
FREE_GROUPS = ("hardware.", "domain_defaults.")
"""Groups of which all may; ``domain_defaults`` is only what other settings refer to."""
REMEDY = "choose another folder with hydra.run.dir=, or start anew in this one with resume=never"


class RefusedError(RunError):
    """A folder holds something that a run neither continues nor replaces."""


@dataclass(frozen=True)
class Past:
    """What a folder holds of a run."""

    checkpoint: Path | None = None
    """To continue from."""
    state: Mapping[str, Any] | None = None
    """What the checkpoint holds."""
    results: Mapping[str, Any] | None = None
    """Where the run is complete."""

    def check_fits(self, module: nn.Module) -> None:
        """Raise :class:`RefusedError` if the checkpoint holds another model than ``module``."""
        if self.state is None:
            return
        there = {name: value.shape for name, value in self.state["state_dict"].items()}
        here = {name: value.shape for name, value in module.state_dict().items()}
        if there != here:
            name = min(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
            raise RefusedError(f"{self.checkpoint} holds another model ({name} differs): {REMEDY}")


def look(folder: Path, settings: Mapping[str, Any]) -> Past:
    """What ``folder`` holds of the run that ``settings``, the whole configuration, describes.

    Raises:
        RefusedError: if it holds another run.
        RunError: if it holds one that cannot be continued because its files are damaged.
    """
    if settings["resume"] == "never":
        return Past()
    found = runs.read_results(folder)
    results = found if found is not None and runs.is_complete(found) else None
    newest = checkpoints.newest(folder)
    if newest is None:
        if results is not None and results.get("config_hash") != runs.config_hash(settings):
            raise RefusedError(f"{folder} holds a complete run of another configuration: {REMEDY}")
        return Past(results=results)
    path, state = newest
    differing = list(_differences(state["hyper_parameters"], settings))
    if differing:
        raise RefusedError(f"{folder} holds a run of another configuration ({', '.join(differing)}): {REMEDY}")
    if any(callback.get("best_model_path") for callback in state["callbacks"].values()):
        try:
            checkpoints.load(folder / checkpoints.BEST)
        except DamagedError as error:
            raise RefusedError(f"{error}, and nothing else holds the weights of the best epoch: {REMEDY}") from error
    return Past(path, state, results)


def decisive(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The settings that decide what a run computes, each by its dotted name."""
    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from decisive(value, f"{key}.")
        elif key not in FREE and not key.startswith(FREE_GROUPS):
            yield key, value


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What a checkpoint's settings have that is otherwise now; what they lack is newer than the checkpoint."""
    present = dict(decisive(now))
    for key, value in decisive(before):
        if key not in present or present[key] != value:
            yield f"{key} was {value!r}" + (f", now {present[key]!r}" if key in present else "")
