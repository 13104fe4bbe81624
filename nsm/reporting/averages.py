"""What the averaged scores of several models reach, as configurations beside those of the models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean

from nsm import ensemble
from nsm.data.protocols import triple_classification
from nsm.data.scores import Scored
from nsm.reporting.configuration import Configuration
from nsm.reporting.records import Run


@dataclass(frozen=True)
class Average:
    """The mean of the scores of configurations, seed by seed; of one: its own scores."""

    members: tuple[Configuration, ...]
    scored: dict[int, dict[str, Scored]]
    """By seed: what validation and test candidates scored."""

    @cached_property
    def validation(self) -> float:
        """Mean over the seeds of the validation accuracy, with thresholds from validation."""
        return fmean(triple_classification(sets["val"], sets["val"])["accuracy"] for sets in self.scored.values())


def averages(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Of one domain's configurations that left scores: the average of the two best models, and that of all models.

    A model is represented by its best configuration. Best is best on validation: the test set chooses nothing.
    """
    alone = [each for configuration in configurations if (each := average([configuration]))]
    best: dict[str, Configuration] = {}
    for each in sorted(alone, key=lambda each: each.validation, reverse=True):
        best.setdefault(each.members[0].kind, each.members[0])
    models = list(best.values())
    made = []
    if len(models) > 1 and (pair := average(models[:2])):
        made.append(described(pair, name=" + ".join(sorted(model.kind for model in models[:2]))))
    if len(models) > 2 and (everything := average(models)):
        made.append(described(everything, name=f"all {len(models)} averaged"))
    return made


def average(members: Sequence[Configuration]) -> Average | None:
    """Over the seeds that all of them have; None where there is none, or nothing that can be averaged."""
    folders = [{run.seed: run.folder for run in member.runs if run.seed is not None} for member in members]
    scored = {}
    for seed in sorted(set.intersection(*(set(by_seed) for by_seed in folders))):
        try:
            scored[seed] = ensemble.average([by_seed[seed] for by_seed in folders])
        except (OSError, ValueError):  # no scores, damaged ones, or candidates of their own: a report goes on
            continue
    return Average(tuple(members), scored) if scored else None


def described(average: Average, *, name: str) -> Configuration:
    """An average as a configuration: its test figures, what they are judged by, and what its members cost."""
    made = Configuration(average.members[0].domain, name, levels=None, changed={}, members=average.members)
    for seed, sets in average.scored.items():
        runs = [run for member in average.members for run in member.runs if run.seed == seed]
        made.runs.append(_run(name, runs, ensemble.figures(sets)))
    return made


def _run(name: str, runs: Sequence[Run], test: dict[str, float]) -> Run:
    judges = {key: runs[0].results.get(key) for key in ("majority", "shortcuts", "ceiling")}
    costs = {key: sum(run.figure(key) or 0 for run in runs) for key in ("parameters", "seconds")}
    results = {**judges, **costs, "test": test}
    return replace(runs[0], model=name, levels=None, given={}, history=(), evaluation=None, results=results)
