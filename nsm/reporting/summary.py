"""Runs grouped into configurations, and those ranked."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nsm.files import SCORES
from nsm.reporting import grouping
from nsm.reporting.configuration import Configuration
from nsm.reporting.grouping import Group
from nsm.reporting.records import Run


@dataclass(frozen=True)
class Summary:
    """Everything that was found."""

    runs: list[Run]
    configurations: list[Configuration]
    """By domain, the best first; those without a result last."""
    common: dict[str, dict[str, str]]
    """By domain: what was given that all its configurations have, and that their names leave out."""

    @property
    def domains(self) -> list[str]:
        return sorted({configuration.domain for configuration in self.configurations})

    def of(self, domain: str) -> list[Configuration]:
        """The domain's configurations."""
        return [configuration for configuration in self.configurations if configuration.domain == domain]


def summarise(runs: Sequence[Run]) -> Summary:
    """Group the runs by domain and configuration; add the averages of those that left scores.

    Where none of its runs came as far as training, there is nothing to say of a configuration.
    """
    by_domain: dict[str, list[Group]] = defaultdict(list)
    for group in grouping.grouped(runs):
        if any(run.begun for run in group.runs):
            by_domain[group.domain].append(group)
    common = {domain: grouping.name(groups) for domain, groups in by_domain.items()}
    labels = _labels({key for groups in by_domain.values() for group in groups for key in group.name})
    made: list[Configuration] = []
    for groups in by_domain.values():
        mine = [_configuration(group, labels) for group in groups]
        made += mine
        if any((run.folder / SCORES).exists() for configuration in mine for run in configuration.runs):
            from nsm.reporting.averages import averages  # here, since it loads PyTorch, which takes seconds

            made += averages(mine)
    return Summary(list(runs), sorted(made, key=_rank), common)


def _configuration(group: Group, labels: Mapping[str, str]) -> Configuration:
    made = Configuration(group.domain, group.model, group.levels, group.name, labels, group.settings)
    newest: dict[int | None, Run] = {}
    for run in sorted(group.runs, key=lambda run: run.written):
        if run.status != "completed":
            made.unsuccessful.append(run)
            continue
        if run.seed in newest:
            made.repeated.append(newest[run.seed])
        newest[run.seed] = run
    made.runs = sorted(newest.values(), key=lambda run: -1 if run.seed is None else run.seed)
    return made


def _labels(keys: set[str]) -> dict[str, str]:
    """Names without their group, where no two of them become the same."""
    short = {key: key.partition(".")[2] or key for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def _rank(configuration: Configuration) -> tuple[str, bool, float, str]:
    score = configuration.score
    return configuration.domain, score is None, -score.mean if score else 0.0, configuration.name
