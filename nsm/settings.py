"""Which of a run's settings decide its results, for those who compare runs without loading PyTorch."""

from collections.abc import Mapping
from typing import Any

GROUPS = ("domain.", "model.", "schedule.", "task.")
INDECISIVE = (
    *("domain.seed", "domain.cache_dir", "domain.num_workers", "domain.pin_memory", "domain.eval_batch_size"),
    *("schedule.checkpoint_every_epochs", "schedule.checkpoint_every_minutes"),
)
"""Settings of these groups that do not decide a result, or only as the seed does."""


def hyperparameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the nested settings that decide a result, by dotted name.

    What the domain merely prefers is left out: it is in what refers to it. So is its class: it has a name.
    """
    deciding = {key: value for key, value in flatten(settings).items() if key.startswith(GROUPS)}
    return {key: value for key, value in deciding.items() if key not in INDECISIVE and not key.endswith("._target_")}


def split_override(override: str) -> tuple[str, str]:
    """Key and value of an override, as the command line has it."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
