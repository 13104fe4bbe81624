"""A folder of triples: which files it has, what they must not share, and the graph they make."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nsm.config import ConfigError
from nsm.data.subgraphs import TripleGraph
from nsm.data.triple_files import (
    Triples,
    Vocabulary,
    drop_known,
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
        asked = _Reader(inference_path, Vocabulary(relations=training.vocabulary.relations), problems)
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
    )


class _Reader:
    """Reads files of a folder in turn; no triple may stand in two of them."""

    def __init__(self, folder: Path, vocabulary: Vocabulary, problems: Problems) -> None:
        self.folder, self.vocabulary, self.problems = folder, vocabulary, problems
        self.triples: dict[str, Triples] = {}

    @property
    def entities(self) -> list[str]:
        return list(self.vocabulary.entities)

    def read_optional(self, stem: str) -> Triples | None:
        return self.read(stem) if find_file(self.folder, stem) else None

    def read(self, stem: str) -> Triples:
        path = required_file(self.folder, stem)
        triples = read_triples(path, self.vocabulary, self.problems)
        for name, others in self.triples.items():
            triples = drop_known(path, triples, others, name, self.problems)
        if not len(triples):
            raise ConfigError(f"{path} holds no triple that the other files do not hold: nothing is left to ask about")
        self.triples[stem] = triples
        return triples


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
