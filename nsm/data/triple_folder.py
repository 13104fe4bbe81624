"""A folder of triples: which files it has, what they must not share, and the graph they make."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nsm.config import ConfigError
from nsm.data.subgraphs import TripleGraph
from nsm.data.triple_files import Problems, Triples, Vocabulary, drop_known, find_file, read_triples, read_types

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


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the folder that counts, by name.

    Raises:
        ConfigError: if one is missing.
    """
    paths = [find_file(folder, stem, required=stem in ("train", "test")) for stem in FILES]
    paths += [folder / name for name in TYPE_FILES if (folder / name).is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if path is not None}


def read_folder(path: Path, inference_path: Path | None, problems: Problems) -> TripleFolder:
    """Read a folder of triples and, for entities that training never sees, a second one.

    Raises:
        ConfigError: naming file, line and remedy of what cannot be used.
    """
    vocabulary = Vocabulary()
    train = _read(path, "train", vocabulary, problems)
    vocabulary.close()
    val = _disjoint(path, "valid", _read(path, "valid", vocabulary, problems), {"train": train}, problems)
    types = read_types(path)
    names = _type_names([types])
    relations = list(vocabulary.relations)
    entities = list(vocabulary.entities)
    if inference_path is None:
        inside, test_graph_triples, test_vocabulary = path, train, vocabulary
        true = {"train": train, "valid": val}
        test_types, test_entities = types, entities
    else:
        inside, test_vocabulary = inference_path, Vocabulary(relations=vocabulary.relations)
        test_graph_triples = _read(inside, "train", test_vocabulary, problems)
        test_vocabulary.close()
        true = {"train": test_graph_triples}
        if find_file(inside, "valid", required=False):
            others = _read(inside, "valid", test_vocabulary, problems)
            true["valid"] = _disjoint(inside, "valid", others, true, problems)
        test_types, test_entities = read_types(inside), list(test_vocabulary.entities)
    test = _disjoint(inside, "test", _read(inside, "test", test_vocabulary, problems), true, problems)
    true["test"] = test
    false: dict[str, Triples] = {}
    mine = {"train": train, "valid": val, **({"test": test} if inference_path is None else {})}
    if find_file(path, "valid_negatives", required=False):
        given = _read(path, "valid_negatives", vocabulary, problems)
        false["val"] = _disjoint(path, "valid_negatives", given, mine, problems)
    if find_file(inside, "test_negatives", required=False):
        given = _read(inside, "test_negatives", test_vocabulary, problems)
        others = true if inference_path is not None or "val" not in false else {**true, "valid_negatives": false["val"]}
        false["test"] = _disjoint(inside, "test_negatives", given, others, problems)
    is_a = IS_A
    while is_a in vocabulary.relations:
        is_a += "_"
    if names:
        relations.append(is_a)
    entity_types = [UNTYPED, *names, CLASS] if names else [UNTYPED]
    graph = _graph(train, entities, types, names, len(relations) - 1)
    test_graph = (
        graph
        if inference_path is None
        else _graph(test_graph_triples, test_entities, test_types, names, len(relations) - 1)
    )
    known = Triples(*(np.concatenate(columns) for columns in zip(*true.values(), strict=True)))
    return TripleFolder(
        relations=relations,
        entity_types=entity_types,
        graph=graph,
        test_graph=test_graph,
        true={"train": train.keep(train.confidence >= BELIEVED), "val": val, "test": test},
        false=false,
        known=known,
    )


def _read(folder: Path, stem: str, vocabulary: Vocabulary, problems: Problems) -> Triples:
    path = find_file(folder, stem)
    assert path is not None
    return read_triples(path, vocabulary, problems)


def _disjoint(folder: Path, stem: str, triples: Triples, others: Mapping[str, Triples], problems: Problems) -> Triples:
    path = find_file(folder, stem)
    assert path is not None
    for name, other in others.items():
        triples = drop_known(path, triples, [other], name, problems)
    if not len(triples):
        raise ConfigError(f"{path} holds no triple that the other files do not hold: nothing is left to ask about")
    return triples


def _type_names(listed: Sequence[Mapping[str, list[str]]]) -> list[str]:
    """Every type, the most frequent first."""
    counts = Counter(name for types in listed for names in types.values() for name in names)
    return sorted(counts, key=lambda name: (-counts[name], name))


def _graph(
    triples: Triples, entities: Sequence[str], types: Mapping[str, list[str]], names: Sequence[str], is_a: int
) -> TripleGraph:
    """The graph of the triples, with a class node for each type and a level-2 triple from each entity to its types.

    An entity's token is its most frequent type, so that many entities share it; its class nodes tell the others. A
    node's level is the lowest of the triples it occurs in.
    """
    class_of = {name: len(entities) + i for i, name in enumerate(names)}
    rank = {name: i for i, name in enumerate(names)}
    mine = [sorted({rank[name] for name in types.get(entity, ()) if name in rank}) for entity in entities]
    x = np.array([1 + ranks[0] if ranks else 0 for ranks in mine] + [len(names) + 1] * len(class_of), dtype=np.int64)
    typed = np.repeat(np.arange(len(entities)), [len(ranks) for ranks in mine])
    classes = len(entities) + np.array([i for ranks in mine for i in ranks], dtype=np.int64)
    level = np.full(len(x), np.iinfo(np.int64).max)
    for ends in (triples.subject, triples.object):
        np.minimum.at(level, ends, triples.level)
    level[typed] = np.minimum(level[typed], 1)
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
