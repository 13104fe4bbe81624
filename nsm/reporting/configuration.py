"""A configuration: runs that differ in their seed alone, and what they reach together."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean

import numpy as np

from nsm.reporting.records import Run, number

SCORES = ("accuracy", "r2")
"""What a configuration is ranked by: the first of these that its runs have."""


@dataclass(frozen=True)
class Spread:
    """A figure over several runs."""

    mean: float
    deviation: float | None
    """Standard deviation over the runs; None for a single one."""
    count: int


@dataclass
class Configuration:
    """Runs of one domain, model and choice of hyperparameters."""

    domain: str
    model: str
    levels: int | None
    changed: Mapping[str, str]
    """Settings and choices by which it differs from the domain's other configurations."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Short names of settings."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """All of its runs, the seed left out; empty where they cannot be read."""
    runs: list[Run] = field(default_factory=list)
    """Completed runs, one a seed."""
    repeated: list[Run] = field(default_factory=list)
    """Completed runs of a seed that a newer run has too; they count nowhere."""
    unsuccessful: list[Run] = field(default_factory=list)
    members: Sequence["Configuration"] = ()
    """Of an average of scores: those that it averages."""

    @property
    def name(self) -> str:
        """Model, levels and what is changed."""
        return ", ".join([self.kind, *([self.choices] if self.changed else [])])

    @property
    def kind(self) -> str:
        """Model and levels."""
        return f"{self.model}, {self.levels} levels" if self.levels else self.model

    @property
    def choices(self) -> str:
        """What is changed, or averaged, in words."""
        if self.members:
            return "scores averaged of " + " and ".join(member.name for member in self.members)
        return ", ".join(self.pairs)

    @property
    def pairs(self) -> list[str]:
        """What is changed, each as ``name=value``."""
        return [f"{self.labels.get(key, key)}={value}" for key, value in self.changed.items()]

    @property
    def outcomes(self) -> str:
        """What became of the runs without a result: ``2 failed, 1 interrupted``."""
        counts = Counter(run.status for run in self.unsuccessful)
        return ", ".join(f"{count} {status}" for status, count in counts.most_common())

    @property
    def seeds(self) -> list[int]:
        return sorted(run.seed for run in self.runs if run.seed is not None)

    @cached_property
    def score_name(self) -> str | None:
        """The test figure that it is ranked by."""
        return next((name for name in SCORES if self.spread(f"test.{name}")), None)

    @property
    def score(self) -> Spread | None:
        return self.spread(f"test.{self.score_name}") if self.score_name else None

    def spread(self, name: str) -> Spread | None:
        """A figure over the runs that have it."""
        return spread([run.figure(name) for run in self.runs])

    @cached_property
    def best_shortcut(self) -> tuple[str, Spread] | None:
        """The cheap model that is best on average."""
        names = sorted({name for run in self.runs for name in run.figures("shortcuts")})
        spreads = {name: self.spread(f"shortcuts.{name}") for name in names}
        known = {name: figure for name, figure in spreads.items() if figure}
        return max(known.items(), key=lambda item: item[1].mean, default=None)

    @cached_property
    def margins(self) -> list[float]:
        """For each run with shortcuts: its accuracy less that of the best shortcut on the same split."""
        pairs = [(run.figure("test.accuracy"), run.best_shortcut) for run in self.runs]
        return [accuracy - best[1] for accuracy, best in pairs if accuracy is not None and best is not None]

    @property
    def weaker_class(self) -> tuple[int, Spread] | None:
        """The class that is recognised less often, and how often."""
        shares = {label: self.spread(f"test.accuracy_class_{label}") for label in (0, 1)}
        known = {label: share for label, share in shares.items() if share}
        return min(known.items(), key=lambda item: item[1].mean, default=None)

    def gain_over(self, other: "Configuration") -> Spread | None:
        """Score less that of another configuration, over the seeds that both have."""
        name = f"test.{self.score_name}"
        theirs = {run.seed: run.figure(name) for run in other.runs}
        pairs = [(run.figure(name), theirs.get(run.seed)) for run in self.runs]
        return spread([here - there for here, there in pairs if here is not None and there is not None])

    @property
    def to_ceiling(self) -> Spread | None:
        """Score less ceiling, run by run: negative below it."""
        pairs = [(run.figure("test.accuracy"), run.figure("ceiling")) for run in self.runs]
        return spread([score - ceiling for score, ceiling in pairs if score is not None and ceiling is not None])

    @property
    def unfinished(self) -> list[Run]:
        """Runs without a result whose seed no other run completed, and that have learned for an epoch."""
        return [run for run in self.unsuccessful if run.history and run.seed not in self.seeds]

    @property
    def so_far(self) -> Spread | None:
        """Validation accuracy of the best epochs of unfinished runs."""
        return spread([run.so_far for run in self.unfinished])

    @property
    def collapsed(self) -> int:
        """Runs that always answer the same class."""
        return sum(bool(run.results.get("collapsed")) for run in self.runs)

    @property
    def cost(self) -> float | None:
        """US$ of all its runs, as far as known, those that did not end well included."""
        everything = [*self.runs, *self.repeated, *self.unsuccessful]
        known = [cost for run in everything if (cost := run.figure("cost_usd")) is not None]
        return sum(known) if known else None

    @property
    def verdict(self) -> tuple[str, str]:
        """``good``, ``mixed``, ``bad`` or ``none``, and the reason in words, with the mean margin over the shortcut."""
        count = len(self.runs)
        if not count:
            return "none", f"no result: {self.outcomes}"
        if self.collapsed:
            return "bad", f"collapsed in {self.collapsed} of {count}"
        if self.margins:
            wins, runs = sum(margin > 0 for margin in self.margins), len(self.margins)
            margin = re.sub(r"\b0\.", ".", f"{fmean(self.margins):+.3f}")
            if not wins:
                return "bad", f"no better than a shortcut in {runs} of {runs} ({margin})"
            return "good" if wins == runs else "mixed", f"beats all shortcuts in {wins} of {runs} ({margin})"
        return "none", "nothing to compare with"


def spread(values: Sequence[float | None]) -> Spread | None:
    """Mean and standard deviation of the numbers among the values; None if there are none."""
    known = [value for value in map(number, values) if value is not None]
    if not known:
        return None
    return Spread(fmean(known), float(np.std(known, ddof=1)) if len(known) > 1 else None, len(known))
