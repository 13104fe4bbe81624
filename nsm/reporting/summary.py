"""Runs grouped into configurations, and those ranked."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from nsm.reporting.averages import averages
from nsm.reporting.configuration import Configuration
from nsm.reporting.records import Run

Key = tuple[str, str, int | None, tuple[tuple[str, str], ...]]
"""Domain, model, levels and changed hyperparameters."""


@dataclass(frozen=True)
class Summary:
    """Everything that was found."""

    runs: list[Run]
    configurations: list[Configuration]
    """By domain, the best first; those without a result last."""
    common: dict[str, dict[str, str]]
    """By domain: hyperparameters that all its configurations changed alike, and that their names leave out."""

    @property
    def domains(self) -> list[str]:
        return sorted({configuration.domain for configuration in self.configurations})

    def of(self, domain: str) -> list[Configuration]:
        """The domain's configurations."""
        return [configuration for configuration in self.configurations if configuration.domain == domain]


def summarise(runs: Sequence[Run]) -> Summary:
    """Group the runs by domain and configuration; add the averages of those that left scores."""
    groups: dict[Key, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.domain, run.model, run.levels, tuple(sorted(run.changed.items()))].append(run)
    made = [_configuration(key, members) for key, members in _told_apart(groups)]
    labels = _labels({key for configuration in made for key in configuration.changed})
    common = {}
    for domain in {configuration.domain for configuration in made}:
        mine = [configuration for configuration in made if configuration.domain == domain]
        shared = set.intersection(*(set(configuration.changed.items()) for configuration in mine))
        common[domain] = dict(sorted(shared)) if len(mine) > 1 else {}
        for configuration in mine:
            own = {key: value for key, value in configuration.changed.items() if key not in common[domain]}
            configuration.changed, configuration.labels = own, labels
        made += averages(mine)
    return Summary(list(runs), sorted(made, key=_rank), common)


def _told_apart(groups: Mapping[Key, Sequence[Run]]) -> Iterator[tuple[Key, list[Run]]]:
    """The groups, those divided whose runs differ in what nobody set: a default that changed between them."""
    for key, members in groups.items():
        known = [run.settings for run in members if run.settings]
        shared = set.intersection(*(set(settings) for settings in known)) if known else set()
        differing = sorted(name for name in shared if len({str(settings[name]) for settings in known}) > 1)
        parts: dict[tuple[tuple[str, str], ...], list[Run]] = defaultdict(list)
        for run in members:
            parts[tuple((name, str(run.settings[name])) for name in differing if run.settings)].append(run)
        for values, part in parts.items():
            yield (*key[:3], (*key[3], *values)), part


def _configuration(key: Key, members: Sequence[Run]) -> Configuration:
    domain, model, levels, changed = key
    made = Configuration(domain, model, levels, dict(changed))
    newest: dict[int | None, Run] = {}
    for run in sorted(members, key=lambda run: run.written):
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
