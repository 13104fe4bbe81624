"""False triples by the closed-world assumption: what is not known to be true counts as false.

One end of a true triple is swapped. A *hard* corruption takes the new end from another triple of the same relation, so
that it fits the relation (Socher et al., 2013, "Reasoning With Neural Tensor Networks", whose negatives are of that
kind); any other takes it from all entities (Bordes et al., 2013, "Translating Embeddings").
"""

from typing import NamedTuple

import numpy as np

from nsm.data.subgraphs import NONE, TripleGraph, ranges

ROUNDS = 50
"""Times that a corruption is drawn anew while it comes out true."""


class Corrupted(NamedTuple):
    """False triples; those for which none was found are missing."""

    origin: np.ndarray
    """[K] position of the true triple that each was made from."""
    subject: np.ndarray
    relation: np.ndarray
    object: np.ndarray
    donor: np.ndarray
    """[K] number in the graph of the triple that gave the new end, or ``NONE``."""


class KnownTriples:
    """Triples that are true, to look up, in one space of entities."""

    def __init__(self, subject: np.ndarray, relation: np.ndarray, object: np.ndarray, num_entities: int) -> None:
        self.num_entities, self.num_relations = num_entities, int(relation.max(initial=0)) + 1
        self._keys = np.sort(self._key(subject, relation, object))
        self._from_object = np.sort(self._key(object, relation, subject))

    def contains(self, subject: np.ndarray, relation: np.ndarray, object: np.ndarray) -> np.ndarray:
        """Whether each triple is known to be true: [K]."""
        key = self._key(subject, relation, object)
        position = np.searchsorted(self._keys, key)
        position[position == len(self._keys)] = 0
        return (self._keys[position] == key) & (relation < self.num_relations)

    def answers(self, given: np.ndarray, relation: np.ndarray, at_object: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Every entity that is known to be right as the other end: number of the question, and the entity.

        Args:
            given: [Q] the end that is known. at_object: [Q] whether the object is asked for.
        """
        start = self._key(given, relation, np.zeros_like(given))
        rows, entities = [], []
        for keys, asked in ((self._keys, at_object), (self._from_object, ~at_object)):
            number = np.flatnonzero(asked & (relation < self.num_relations))
            first = start[number]
            found, place = ranges(np.searchsorted(keys, first), np.searchsorted(keys, first + self.num_entities))
            rows.append(number[found])
            entities.append(keys[place] - first[found])
        return np.concatenate(rows), np.concatenate(entities)

    def _key(self, subject: np.ndarray, relation: np.ndarray, object: np.ndarray) -> np.ndarray:
        return (subject * self.num_relations + relation) * self.num_entities + object


def corrupt(
    subject: np.ndarray,
    relation: np.ndarray,
    object: np.ndarray,
    *,
    graph: TripleGraph,
    known: KnownTriples,
    hard: float,
    rng: np.random.Generator,
) -> Corrupted:
    """One false triple for each true one, as far as one can be found.

    Args:
        graph: which gives the ends of hard corruptions.
        known: what a corruption may not be.
        hard: share of hard corruptions.
    """
    size = len(subject)
    by_relation = np.argsort(graph.relation, kind="stable")
    first = np.searchsorted(graph.relation[by_relation], np.arange(graph.num_relations + 1))
    parts = [subject.copy(), object.copy()]
    donor = np.full(size, NONE)
    at_object, is_hard = rng.random(size) < 0.5, rng.random(size) < hard
    left = np.arange(size)
    for round_ in range(ROUNDS):
        if not len(left):
            break
        if round_ == ROUNDS // 2:  # where every fitting end makes a true triple, any end will do
            is_hard[left] = False
        r = np.minimum(relation[left], graph.num_relations - 1)
        count = first[r + 1] - first[r]
        fits = is_hard[left] & (count > 0) & (relation[left] == r)
        edge = by_relation[np.minimum(first[r] + (rng.random(len(left)) * count).astype(np.int64), len(graph) - 1)]
        anywhere = rng.integers(graph.num_entities, size=len(left))
        tail = at_object[left]
        new = np.where(fits, np.where(tail, graph.object[edge], graph.subject[edge]), anywhere)
        parts[0][left] = np.where(tail, subject[left], new)
        parts[1][left] = np.where(tail, new, object[left])
        donor[left] = np.where(fits, edge, NONE)
        true = known.contains(parts[0][left], relation[left], parts[1][left])
        left = left[true | (parts[0][left] == parts[1][left])]
    found = np.setdiff1d(np.arange(size), left)
    return Corrupted(found, parts[0][found], relation[found], parts[1][found], donor[found])
