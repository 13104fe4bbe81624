"""Runs that are the same but for their seed, and names that tell them apart.

Runs are the same if their settings are, however these came to be set. A name holds what all runs of a group were given
and not all groups of the domain have; what it leaves out has its default, which may be that of a schedule it names.
"""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nsm.reporting.records import DATA, Run

T = TypeVar("T")


@dataclass
class Group:
    """Runs of one domain, model, number of levels and settings."""

    domain: str
    model: str
    levels: int | None
    settings: Mapping[str, str]
    """By dotted name, as :func:`shown`; empty where they cannot be read."""
    runs: list[Run]
    name: dict[str, str] = field(default_factory=dict)
    """Settings and choices that tell it apart."""

    def value(self, key: str) -> str | None:
        """Of a setting, or of a choice that all its runs were given alike; None where there is none."""
        if key in self.settings:
            return self.settings[key]
        given = {run.given.get(key) for run in self.runs}
        return given.pop() if len(given) == 1 else None

    @property
    def given(self) -> set[str]:
        """What all its runs were given: what one of them has without being given it is a default."""
        return {key for key in self.given_to_some if all(key in run.given for run in self.runs)}

    @property
    def given_to_some(self) -> set[str]:
        """What any of its runs was given, as far as it has a value."""
        return {key for run in self.runs for key in run.given if self.value(key) is not None}


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs in groups. Those whose settings cannot be read are grouped by what they were given."""
    settings: dict[int, dict[str, str]] = {}
    for members in _parts(runs, lambda run: (run.domain, run.model)):
        settings |= _completed([run for run in members if run.settings])
    groups = []
    for members in _parts(runs, lambda run: (run.domain, run.model, run.levels)):
        kind = members[0].domain, members[0].model, members[0].levels
        readable = [run for run in members if run.settings]
        here = [
            Group(*kind, settings[id(part[0])], part)
            for part in _parts(readable, lambda run: frozenset(settings[id(run)].items()))
        ]
        for part in _parts([run for run in members if not run.settings], lambda run: frozenset(run.given.items())):
            alike = [other for other in here if any(run.given == part[0].given for run in other.runs)]
            if len(alike) == 1:
                alike[0].runs += part
            else:
                here.append(Group(*kind, {}, part))
        groups += here
    return groups


def name(groups: Sequence[Group]) -> dict[str, str]:
    """Name the groups of one domain.

    Returns:
        What was given, and what all the groups have that could: their names leave it out.
    """
    of_model: dict[str, set[str]] = defaultdict(set)
    for each in groups:
        of_model[each.model] |= each.settings.keys()
    settings = set().union(*of_model.values())
    common = {}
    for key in sorted(set().union(*(each.given for each in groups)) if len(groups) > 1 else ()):
        values = {each.value(key) for each in groups if key in of_model[each.model] or key not in settings}
        if len(values) == 1 and (value := values.pop()) is not None:
            common[key] = value
    for members in _parts(groups, lambda each: each.model):
        for each in members:
            varied = {key for key in each.given_to_some if len({other.value(key) for other in members}) > 1}
            each.name = _values(each, (varied | each.given) - common.keys())
    for same in _parts(groups, lambda each: (each.model, each.levels, tuple(each.name.items()))):
        keys = {key for each in same for key in each.settings}
        differing = {key for key in keys if len({each.value(key) for each in same}) > 1}
        for each in same:
            each.name = _values(each, each.name.keys() | differing)
    return common


def shown(value: Any) -> str:
    """A value as one would give it; the same, however it was given."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), default=str).replace('"', "")


def _completed(runs: Sequence[Run]) -> dict[int, dict[str, str]]:
    """The settings of each run by its ``id``; what those of another version of the code lack has its default there.

    The default is what the run has that is most like it, of those that were not given it.
    """
    own = {id(run): {key: _shown(key, value) for key, value in run.settings.items()} for run in runs}
    keys = set().union(*own.values())
    different = {(frozenset(own[id(run)].items()), frozenset(run.given)): run for run in runs}.values()
    found: dict[int, dict[str, str]] = {}
    for run in runs:
        mine = own[id(run)]
        found[id(run)] = dict(mine)
        if len(mine) == len(keys):
            continue
        by_likeness = sorted(different, key=lambda other: len(mine.items() & own[id(other)].items()), reverse=True)
        for key in keys - mine.keys():
            defaults = (
                own[id(other)][key] for other in by_likeness if key in other.settings and key not in other.given
            )
            if (default := next(defaults, None)) is not None:
                found[id(run)][key] = default
    return found


def _shown(key: str, value: Any) -> str:
    return os.path.normpath(value) if key in DATA and isinstance(value, str) else shown(value)


def _values(group: Group, keys: Iterable[str]) -> dict[str, str]:
    return {key: value for key in sorted(keys) if (value := group.value(key)) is not None}


def _parts(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """The items in lists of those with the same key, in the order of their first."""
    parts: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return list(parts.values())
