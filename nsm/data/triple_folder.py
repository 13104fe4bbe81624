"""A folder of triples: which files it has, what they must not share, and the graph they make."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nsm.config import ConfigError
from nsm.data.subgraphs import TripleGraph
from nsm.data.triple_files import (
    HEADER_HINT,
    Triples,
    Vocabulary,
    find_file,
    read_triples,
    read_types,
    required_file,
)
from nsm.data.triple_lines import Problems

FILES = ("train", "valid", "test", "valid_negatives", "test_negatives")
TYPE_FILES = ("entity2types.json", "entity2types.tsv")
IS_A = "is_a"
UNTYPED, CLASS = "entity", "class"
BELIEVED = 0.5
"""Confidence from which on a training triple is also one to learn from; the others only stand in the graph."""


class TripleFolder(NamedTuple):
    """Everything read, names as numbers."""

    relations: list[str]
    entity_types: list[str]
    graph: TripleGraph
    """Of the training triples."""
    test_graph: TripleGraph
    """Which the test triples lie in: the same, or that of the inference folder."""
    true: Mapping[str, Triples]
    """The triples of ``train``, ``val`` and ``test``."""
    false: Mapping[str, Triples]
    """Those that were given as false, of ``val`` and ``test``."""
    known: Triples
    """Every triple known to be true of the entities of ``test_graph``."""
    names: list[str]
    """Of the nodes of ``graph``: entities, then types."""
    test_names: list[str]
    """Of the nodes of ``test_graph``."""
    odd: list[str]
    """What can be used but is hardly meant, in words."""

    def summary(self, false: Mapping[str, int]) -> str:
        """What was read, in a line.

        Args:
            false: false candidates of each split, given or made.
        """
        doubted = int((self.graph.confidence < BELIEVED).sum())
        aside = f" ({doubted:,} not believed: confidence below {BELIEVED:g})" if doubted else ""
        num_relations = len(self.relations) - (len(self.entity_types) > 1)
        read = (
            f"train {len(self.true['train']) + doubted:,} triples{aside}, {self.graph.num_entities:,} entities, "
            f"{num_relations:,} relations, {_types(self.graph)}"
        )
        asked = {}
        for name in ("val", "test"):
            kind = "given as false" if name in self.false else "corrupted"
            asked[name] = f"{len(self.true[name]):,} true, {false[name]:,} {kind}"
        graph = self.test_graph
        if graph is not self.graph:
            num_triples = int((graph.object < graph.num_entities).sum())
            asked["test"] += f", in another graph of {num_triples:,} triples, {graph.num_entities:,} entities, "
            asked["test"] += _types(graph)
        return f"{read}; validation {asked['val']}; test {asked['test']}"


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the folder that counts, by name."""
    found = [path for stem in FILES if (path := find_file(folder, stem))]
    found += [folder / name for name in TYPE_FILES if (folder / name).is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def read_folder(path: Path, inference_path: Path | None, problems: Problems) -> TripleFolder:
    """Read a folder of triples and, for entities that training never sees, a second one.

    Raises:
        ConfigError: naming file, line and remedy of what cannot be used.
    """
    training = _Reader(path, Vocabulary(), problems)
    train = training.read("train")
    training.vocabulary.close()
    val = training.read("valid")
    types = read_types(path)
    if inference_path is None:
        asked = training
    else:
        # Published inductive sets ask about entities without a triple in the inference graph: those stand there alone.
        known_relations = Vocabulary(relations=training.vocabulary.relations)
        asked = _Reader(inference_path, known_relations, problems, "domain.inference_path: ")
        asked.read("train")
        asked.read_optional("valid")
    test = asked.read("test")
    known = Triples.concatenate(list(asked.triples.values()))
    given = {"val": training.read_optional("valid_negatives"), "test": asked.read_optional("test_negatives")}
    believed = train.keep(train.confidence >= BELIEVED)
    if not len(believed):
        raise ConfigError(f"{path}: no training triple has a confidence of {BELIEVED} or more: nothing to learn from")
    names = _type_names(types)
    relations = list(training.vocabulary.relations)
    is_a = IS_A
    while is_a in training.vocabulary.relations:
        is_a += "_"
    graph = test_graph = _graph(train, training.entities, types, names, len(relations))
    if asked is not training:
        # Types of new entities may stand in either folder.
        test_types = types | read_types(asked.folder)
        test_graph = _graph(asked.triples["train"], asked.entities, test_types, names, len(relations))
    return TripleFolder(
        relations=[*relations, is_a] if names else relations,
        entity_types=[UNTYPED, *names, CLASS] if names else [UNTYPED],
        graph=graph,
        test_graph=test_graph,
        true={"train": believed, "val": val, "test": test},
        false={name: triples for name, triples in given.items() if triples is not None},
        known=known,
        names=[*training.entities, *names],
        test_names=[*asked.entities, *names],
        odd=list(_oddities(training, asked, given, types, (graph, test_graph))),
    )


class _Reader:
    """Reads files of a folder in turn; no triple may stand in two of them.

    Args:
        where: which folder this is, before what is said of its files.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, problems: Problems, where: str = "") -> None:
        self.folder, self.vocabulary, self.problems, self.where = folder, vocabulary, problems, where
        self.triples: dict[str, Triples] = {}

    @property
    def entities(self) -> list[str]:
        return list(self.vocabulary.entities)

    def read_optional(self, stem: str) -> Triples | None:
        return self.read(stem) if find_file(self.folder, stem) else None

    def read(self, stem: str) -> Triples:
        path = required_file(self.folder, stem)
        told = len(self.problems.warnings)
        self.triples[stem] = read_triples(path, self.vocabulary, self.problems, self.triples)
        self.problems.warnings[told:] = [self.where + said for said in self.problems.warnings[told:]]
        return self.triples[stem]


def _oddities(
    training: _Reader,
    asked: _Reader,
    given: Mapping[str, Triples | None],
    types: Mapping[str, list[str]],
    graphs: Sequence[TripleGraph],
) -> Iterator[str]:
    """What no line is to blame for, but is hardly meant."""
    entities, relations = training.vocabulary.entities, training.vocabulary.relations
    train = training.triples["train"]
    if (header := _header(training)) is not None and not types.keys() & header:
        yield (
            f"{required_file(training.folder, 'train').name}, line {train.line[0]}, was read as a triple but may be a "
            f"header: none of {', '.join(header)} occurs anywhere else{HEADER_HINT}"
        )
    both = [name for name in relations if name in entities]
    if 2 * len(both) > len(relations):
        yield (
            f"{len(both):,} of {len(relations):,} relations are entities too, {both[0]!r} for one: are the columns "
            "subject, predicate and object, in this order? If not, a first line that names them gives it"
        )
    if (given["val"] is None) != (given["test"] is None):
        has, lacks = ("test", "valid") if given["val"] is None else ("valid", "test")
        yield (
            f"false triples are given for {has} and not for {lacks}, where corruptions take their place: thresholds "
            f"are chosen on another kind of false triple than they are used on; {lacks}_negatives would mend that"
        )
    if asked is not training:
        theirs = asked.triples["train"]
        same = asked.entities[: len(entities)] == list(entities) and np.array_equal(theirs.spo, train.spo)
        if same:
            yield (
                "domain.inference_path holds the same train as domain.path: nothing in it is new; leave it out to be "
                "asked about these entities, or name another folder"
            )
    where = ("train", "the graph of domain.inference_path")
    for graph, name in zip(graphs, where[: 1 + (asked is not training)], strict=False):
        if types and not _num_typed(graph):
            found = next(iter(types))
            yield f"entity2types has no type of any entity of {name}: it speaks of {found!r} and others"


def _header(training: _Reader) -> list[str] | None:
    """The names of the first triple of ``train``, if none of the three occurs anywhere else."""
    triples = list(training.triples.values())
    subject, relation, object_ = (int(column[0]) for column in triples[0].spo)
    ends = np.concatenate([end for part in triples for end in (part.subject, part.object)])
    relations = np.concatenate([part.relation for part in triples])
    times = [(ends == subject).sum(), (relations == relation).sum(), (ends == object_).sum()]
    entities = training.entities
    names = [entities[subject], list(training.vocabulary.relations)[relation], entities[object_]]
    return names if max(times) == 1 and len(triples[0]) > 1 else None


def _num_typed(graph: TripleGraph) -> int:
    return int((graph.x[: graph.num_entities] > 0).sum())


def _types(graph: TripleGraph) -> str:
    typed = _num_typed(graph)
    return f"types of {typed:,} entities" if typed else "no types"


def _type_names(types: Mapping[str, list[str]]) -> list[str]:
    """Every type, the most frequent first."""
    counts = Counter(name for names in types.values() for name in names)
    return sorted(counts, key=lambda name: (-counts[name], name))


def _graph(
    triples: Triples, entities: Sequence[str], types: Mapping[str, list[str]], names: Sequence[str], is_a: int
) -> TripleGraph:
    """The graph of the triples, with a class node for each type and a level-2 triple from each entity to its types.

    An entity's token is its most frequent type, so that many entities share it; its class nodes tell the others. A
    node's level is the lowest of the triples it occurs in, 1 for one in none.
    """
    rank = {name: i for i, name in enumerate(names)}
    mine = [sorted({rank[name] for name in types.get(entity, ()) if name in rank}) for entity in entities]
    x = np.array([1 + ranks[0] if ranks else 0 for ranks in mine] + [len(names) + 1] * len(names), dtype=np.int64)
    typed = np.repeat(np.arange(len(entities)), [len(ranks) for ranks in mine])
    classes = len(entities) + np.array([i for ranks in mine for i in ranks], dtype=np.int64)
    level = np.full(len(x), np.iinfo(np.int64).max)
    for ends in (triples.subject, triples.object):
        np.minimum.at(level, ends, triples.level)
    level[typed] = 1
    level[level == np.iinfo(np.int64).max] = 1
    level[len(entities) :] = 2
    return TripleGraph(
        subject=np.concatenate([triples.subject, typed]),
        relation=np.concatenate([triples.relation, np.full(len(typed), is_a)]),
        object=np.concatenate([triples.object, classes]),
        confidence=np.concatenate([triples.confidence, np.ones(len(typed), dtype=np.float32)]),
        x=x,
        level=level,
        num_entities=len(entities),
    )
