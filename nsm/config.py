"""The schemas of every configuration group, and the checks of their values.

Hydra's ConfigStore refuses unknown keys and wrong types; ``__post_init__`` checks values.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


class ConfigError(ValueError):
    """A configuration value that cannot be used; the message names key, value and what is allowed."""


def check(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raise :class:`ConfigError` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key}={value!r} cannot be used: {allowed}")


@dataclass
class DomainConfig:
    """What every domain has; a domain's own file adds its fields and the class that ``_target_`` names."""

    _target_: str = MISSING
    seed: int = 0
    batch_size: int = 64
    """Graphs in a training batch."""
    eval_batch_size: int = 256
    """Graphs in a validation or test batch."""
    num_workers: int = 0
    pin_memory: bool = False
    cache_dir: str = "data"
    """Folder for generated data, keyed by a hash of everything that decides it."""
    control: str = "none"
    """``none`` for the real task; ``shuffled_labels`` or ``rewired_edges`` for one in which nothing can be learned."""

    def __post_init__(self) -> None:
        check(self.seed >= 0, "seed", self.seed, "a whole number from 0")
        check(self.batch_size >= 1, "domain.batch_size", self.batch_size, "at least 1 graph")
        check(self.eval_batch_size >= 1, "domain.eval_batch_size", self.eval_batch_size, "at least 1 graph")
        check(self.num_workers >= 0, "domain.num_workers", self.num_workers, "0 (load in this process) or more")
        controls = ("none", "shuffled_labels", "rewired_edges")
        check(self.control in controls, "domain.control", self.control, f"one of {', '.join(controls)}")


@dataclass
class ModelConfig:
    """What every model has; a model's own file adds its fields and ``build``."""

    node_features: int = 64
    """Features of a node at every level."""
    num_bases: int = 8
    """Bases that the relations' weights are combined from."""
    dropout: float = 0.1
    query_features: int = 16
    """Size of the inner product that gates messages by the predicate asked about, where one is."""

    def __post_init__(self) -> None:
        check(self.node_features >= 2, "model.node_features", self.node_features, "at least 2")
        check(self.num_bases >= 1, "model.num_bases", self.num_bases, "at least 1")
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "a probability below 1")
        check(self.query_features >= 0, "model.query_features", self.query_features, "0 (no gate) or more")
