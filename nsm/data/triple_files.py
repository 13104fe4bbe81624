"""Triples in files: what a line may hold, and which lines cannot be used.

A line holds subject, predicate and object, then perhaps a confidence (0 to 1) and a level (from 1), separated by tabs
(``.txt``, ``.tsv``) or as CSV (``.csv``), each also compressed (``.gz``). ``#`` starts a comment line. A first line
that names the columns gives their order; CSV must have one.
"""

import json
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nsm.config import ConfigError
from nsm.data.triple_lines import DUPLICATE, Problems, rows

SUFFIXES = tuple(kind + packed for kind in (".txt", ".tsv", ".csv") for packed in ("", ".gz"))
ALIASES = {"train": ("train", "training"), "valid": ("valid", "validation", "val", "dev"), "test": ("test", "testing")}
"""Names that others give these files."""
ORDER_HINT = "are the columns subject, predicate and object, in this order (else name them in a first line)?"
HEADER_HINT = "; if it names the columns, let it call them subject, predicate and object"


@dataclass(frozen=True)
class Triples:
    """Triples of one file, names as numbers."""

    subject: np.ndarray
    """[E] int64"""
    relation: np.ndarray
    object: np.ndarray
    confidence: np.ndarray
    """[E] float32"""
    level: np.ndarray
    """[E] int64"""
    line: np.ndarray
    """[E] where each stands in its file"""

    def __len__(self) -> int:
        return len(self.subject)

    @property
    def spo(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Subjects, relations and objects."""
        return self.subject, self.relation, self.object

    def keep(self, kept: np.ndarray) -> "Triples":
        """Those that a mask or index selects."""
        return Triples(**{name: column[kept] for name, column in vars(self).items()})

    @staticmethod
    def concatenate(parts: Sequence["Triples"]) -> "Triples":
        """All of them, one part after the other."""
        return Triples(**{name: np.concatenate([vars(part)[name] for part in parts]) for name in vars(parts[0])})


class Vocabulary:
    """Names of entities and of relations as numbers, in the order in which training mentions them.

    Args:
        relations: those known beforehand, if it may not grow.
    """

    def __init__(self, relations: dict[str, int] | None = None) -> None:
        self.entities: dict[str, int] = {}
        self.relations: dict[str, int] = {} if relations is None else dict(relations)
        self.grows = True
        self.relations_grow = relations is None

    def close(self) -> None:
        """From here on every name must be known."""
        self.grows = self.relations_grow = False


def find_file(folder: Path, stem: str) -> Path | None:
    """The file of that name in ``folder``, whatever its format, if there is one.

    Raises:
        ConfigError: if there are several.
    """
    found = [folder / (stem + suffix) for suffix in SUFFIXES if (folder / (stem + suffix)).is_file()]
    if len(found) > 1:
        raise ConfigError(f"{found[0]} and {found[1].name} are both there: keep one")
    return found[0] if found else None


def required_file(folder: Path, stem: str) -> Path:
    """The same, where it has to be there.

    Raises:
        ConfigError: if there are several or none, naming what was looked for and what is there instead.
    """
    path = find_file(folder, stem)
    if path is not None:
        return path
    if folder.is_file():
        raise ConfigError(f"{folder} is a file: name its folder instead, {folder.parent}")
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}: it must hold train, valid and test")
    here = f"there is no {stem}.txt in {folder}"
    for other in sorted(folder.iterdir()):
        name, _, suffix = other.name.lower().partition(".")
        if name in ALIASES[stem]:
            here += f", but {other.name}"
            if f".{suffix}" in SUFFIXES:
                raise ConfigError(f"{here}: call that {stem}.{suffix}")
    raise ConfigError(f"{here}: it must hold train, valid and test, each with one of {', '.join(SUFFIXES)}")


def read_triples(
    path: Path, vocabulary: Vocabulary, problems: Problems, others: Mapping[str, Triples] | None = None
) -> Triples:
    """Every usable triple of a file, in order, without duplicates and those of ``others``, files read before by name.

    Raises:
        ConfigError: naming file, line and remedy, where something is wrong and ``problems`` is strict, where too many
            lines are, and where nothing can be read at all.
    """
    with problems.reading(path):
        triples = _read_lines(path, vocabulary, problems)
        if len(triples):
            triples = _without_duplicates(path, triples, vocabulary, problems)
            for name, held in (others or {}).items():
                triples = _drop_known(path, triples, held, name, problems)
    problems.end(path, len(triples))
    if not len(triples):
        raise ConfigError(f"{path} holds no triple: each line is subject, predicate and object, separated by tabs")
    return triples


def _read_lines(path: Path, vocabulary: Vocabulary, problems: Problems) -> Triples:
    columns = [array("q") for _ in range(3)]
    confidences, levels, lines = array("f"), array("q"), array("q")
    names = (vocabulary.entities, vocabulary.relations, vocabulary.entities)
    first = None
    for number, cells in rows(path, problems):
        first = first or number
        row = [cell.strip() for cell in cells]
        values = _numbers(path, number, row, problems)
        if values is None:
            continue
        known: list[Any] = [table.get(name) for table, name in zip(names, row[:3], strict=True)]
        if None in known:
            may_grow = (vocabulary.grows, vocabulary.relations_grow, vocabulary.grows)
            unknown = [i for i in range(3) if known[i] is None and not may_grow[i]]
            if unknown:
                is_header = number == first and len(unknown) == 3
                _report_unknown(path, number, row, unknown[0], vocabulary, problems, is_header)
                continue
            known = [table.setdefault(name, len(table)) for table, name in zip(names, row[:3], strict=True)]
        for column, value in zip(columns, known, strict=True):
            column.append(value)
        confidences.append(values[0])
        levels.append(int(values[1]))
        lines.append(number)
    subject, relation, object_, level, line = (
        np.frombuffer(column, dtype=np.int64) for column in (*columns, levels, lines)
    )
    confidence = np.frombuffer(confidences, dtype=np.float32)
    return Triples(subject, relation, object_, confidence, level, line)


def _report_unknown(
    path: Path,
    line: int,
    row: Sequence[str],
    column: int,
    vocabulary: Vocabulary,
    problems: Problems,
    may_be_header: bool,
) -> None:
    """A name that no line to learn from has in such a column."""
    is_relation = column == 1
    kind = "relation" if is_relation else "entity"
    remedy = "no triple to learn from mentions it: add one, or take the line out"
    if not is_relation:
        remedy += "; a graph of new entities of its own goes into domain.inference_path="
    if row[column] in (vocabulary.entities if is_relation else vocabulary.relations):
        other = "an entity" if is_relation else "a relation"
        remedy += f"; train has it as {other}: {ORDER_HINT}"
    if may_be_header:
        remedy += HEADER_HINT
    problems.report(path, line, f"unknown {kind}", f"unknown {kind} {row[column]!r}", remedy)


def _drop_known(path: Path, triples: Triples, others: Triples, where: str, problems: Problems) -> Triples:
    """``triples`` without those that ``others`` hold too, which ``where`` names."""
    everything = Triples.concatenate([triples, others])
    num_entities = int(max(everything.subject.max(initial=0), everything.object.max(initial=0))) + 1
    keys = triple_keys(everything, num_entities, int(everything.relation.max(initial=0)) + 1)
    shared = np.isin(keys[: len(triples)], keys[len(triples) :])
    for position in np.flatnonzero(shared).tolist():
        remedy = "keep it in one of them"
        if position == 0 and keys[0] == keys[len(triples)]:  # both files begin with it
            remedy += HEADER_HINT
        line = int(triples.line[position])
        problems.report(path, line, f"also in {where}", f"the triple is also in {where}", remedy)
    return triples.keep(~shared)


def triple_keys(triples: Triples, num_entities: int, num_relations: int) -> np.ndarray:
    """One number for each triple: [E]."""
    return (triples.subject * num_relations + triples.relation) * num_entities + triples.object


def read_types(folder: Path) -> dict[str, list[str]]:
    """The types of each entity in ``entity2types.json`` (lists of names) or ``.tsv`` (entity, type; a line each).

    Raises:
        ConfigError: naming file and line, where it cannot be read.
    """
    found: dict[str, list[str]] = defaultdict(list)
    if (path := folder / "entity2types.json").is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8-sig"))
        except json.JSONDecodeError as error:
            raise ConfigError(f"{path}, line {error.lineno}: not JSON ({error.msg}); mend it or take it out") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 ({error}); save it as UTF-8") from error
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: expected an object that maps each entity to a list of its types")
        for entity, types in content.items():
            listed = [types] if isinstance(types, str) else types
            if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
                raise ConfigError(f"{path}: {entity!r} has {types!r}; expected a list of names")
            found[entity] += listed
    elif (path := folder / "entity2types.tsv").is_file():
        problems = Problems(strict=True)
        with problems.reading(path):
            for number, cells in rows(path, problems):
                row = [cell.strip() for cell in cells]
                if len(row) != 2 or not all(row):
                    raise ConfigError(f"{path}, line {number}: expected an entity, a tab and a type, got {row}")
                found[row[0]].append(row[1])
        if problems.dropped:
            raise problems.error(path)
    return dict(found)


def _numbers(path: Path, line: int, row: Sequence[str], problems: Problems) -> tuple[float, float] | None:
    """Confidence and level of a row, or None if it cannot be used."""
    if not 3 <= len(row) <= 5:
        hint = "the columns are subject, predicate, object, confidence, level, the last two optional, separated by tabs"
        for separator, name in ((",", "commas"), (";", "semicolons"), (None, "spaces")):
            if len(row) == 1 and 3 <= len(row[0].split(separator)) <= 5:
                hint = f"put tabs where the {name} are"
                break
        what = f"{len(row)} column{'s' * (len(row) > 1)} instead of 3 to 5"
        problems.report(path, line, "wrong number of columns", what, hint)
        return None
    if not all(row[:3]):
        which = ("subject", "predicate", "object")[row.index("")]
        problems.report(path, line, "empty field", f"the {which} is empty", "fill it in, or take the line out")
        return None
    if len(row) == 3:
        return 1.0, 1.0
    confidence = _number(row[3]) if row[3] else 1.0
    level = _number(row[4]) if len(row) == 5 and row[4] else 1.0
    if not 0 <= confidence <= 1:
        remedy = "a confidence is a number from 0 to 1 (false triples go into valid_negatives and test_negatives)"
        problems.report(path, line, "bad confidence", f"confidence {row[3]!r}", remedy)
        return None
    if not 1 <= level <= 100 or level != round(level):
        problems.report(path, line, "bad level", f"level {row[4]!r}", "a level is a whole number from 1")
        return None
    return confidence, level


def _number(text: str) -> float:
    """The number that a cell holds, or -1, which no column allows."""
    try:
        return float(text)
    except ValueError:
        return -1.0


def _without_duplicates(path: Path, triples: Triples, vocabulary: Vocabulary, problems: Problems) -> Triples:
    keys = triple_keys(triples, max(1, len(vocabulary.entities)), max(1, len(vocabulary.relations)))
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    again = np.ones(len(triples), dtype=bool)
    again[first] = False
    for position in np.flatnonzero(again).tolist():
        what = f"the triple of line {triples.line[first[inverse[position]]]} again"
        problems.report(path, int(triples.line[position]), DUPLICATE, what, "keep one of them")
    return triples.keep(~again)
