"""What models too cheap to understand anything reach on triples of one's own, under the same protocol.

Each is gradient boosting on a few numbers about a candidate, fitted on training candidates; its scores get the same
thresholds as a model's. The numbers come from the whole graph, without what a sample may not see, so that no sampling
of neighbours weakens them.

Shape letters: G candidates, N nodes, R relations, F features.
"""

import numpy as np
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier

from nsm.data.protocols import triple_classification
from nsm.data.scores import Scored
from nsm.data.subgraphs import NONE, Candidates, TripleGraph

CHUNK = 256
"""Candidates whose paths are counted at once."""
CATEGORIES = 250
"""Relations told apart by boosting, which allows 255; the rarer ones count as one."""


class Shortcuts:
    """Feature tables [G, F] of candidates in one graph; the first column is the relation."""

    def __init__(self, graph: TripleGraph) -> None:
        self.graph = graph
        self._size = graph.num_relations
        self._leaving = _table(graph.subject, graph.relation, graph.num_nodes, self._size)
        self._entering = _table(graph.object, graph.relation, graph.num_nodes, self._size)
        ones = np.ones(len(graph.neighbour), dtype=np.float32)
        shape = (graph.num_nodes, graph.num_nodes)
        self._adjacent = sparse.csr_matrix((ones, graph.neighbour, graph.neighbour_ptr), shape=shape)

    def degrees(self, candidates: Candidates) -> np.ndarray:
        """How many triples leave and enter both ends: [G, 5]."""
        columns = [candidates.relation]
        for table, end in ((self._leaving, "subject"), (self._entering, "object")):
            totals = np.asarray(table.sum(axis=1)).ravel()
            for node in (candidates.subject, candidates.object):
                columns.append(totals[node] - self._hidden(candidates, node, end))
        return np.column_stack(columns).astype(np.float64)

    def counts(self, candidates: Candidates) -> np.ndarray:
        """How many triples of the relation asked about leave and enter both ends: [G, 5]."""
        columns = [candidates.relation]
        relation = np.minimum(candidates.relation, self._size - 1)
        known = candidates.relation < self._size
        for table, end in ((self._leaving, "subject"), (self._entering, "object")):
            for node in (candidates.subject, candidates.object):
                number = np.asarray(table[node, relation]).ravel() * known
                columns.append(number - self._hidden(candidates, node, end, candidates.relation))
        return np.column_stack(columns).astype(np.float64)

    def paths(self, candidates: Candidates) -> np.ndarray:
        """Other triples between the ends, and paths of two and of three steps in any direction: [G, 4]."""
        graph, found = self.graph, []
        degree = graph.degree
        for start in range(0, len(candidates.subject), CHUNK):
            subject, object_ = (part[start : start + CHUNK] for part in (candidates.subject, candidates.object))
            left, right = self._adjacent[subject], self._adjacent[object_]
            direct = np.asarray(self._adjacent[subject, object_]).ravel()
            two = np.asarray(left.multiply(right).sum(axis=1)).ravel()
            walks = np.asarray((left @ self._adjacent).multiply(right).sum(axis=1)).ravel()
            found.append(np.stack([two, walks - direct * (degree[subject] + degree[object_] - 1)], axis=1))
        between = [np.diff(graph.between(*pair), axis=0)[0] for pair in _both_ways(candidates)]
        own = [graph.find(s, candidates.relation, o) != NONE for s, o in _both_ways(candidates)]
        return np.column_stack([candidates.relation, sum(between) - sum(own), np.concatenate(found)])

    def _hidden(
        self, candidates: Candidates, node: np.ndarray, end: str, relation: np.ndarray | None = None
    ) -> np.ndarray:
        """How many of the triples that a sample may not see have this node at that end (and this relation): [G]."""
        graph = self.graph
        own = graph.find(candidates.subject, candidates.relation, candidates.object)
        hidden = np.column_stack([own, candidates.left_out])
        ends = graph.subject if end == "subject" else graph.object
        at_node = (hidden != NONE) & (ends[hidden] == node[:, None])
        if relation is not None:
            at_node &= graph.relation[hidden] == relation[:, None]
        return at_node.sum(axis=1)


def audit(
    train: tuple[Shortcuts, Candidates, np.ndarray],
    val: tuple[Shortcuts, Candidates, np.ndarray],
    test: tuple[Shortcuts, Candidates, np.ndarray],
) -> dict[str, float]:
    """Accuracy by name, on the test triples and (``_matched``) on their relation-matched subset.

    Args:
        train, val, test: where features come from, candidates and labels [G].
    """
    known = np.bincount(train[1].relation).argsort()[::-1][:CATEGORIES]
    scored = {"relation_only": [np.zeros(len(part[2])) for part in (val, test)]}
    for name, table in (("degree", "degrees"), ("count", "counts"), ("path", "paths")):
        features = [getattr(part[0], table)(part[1]) for part in (train, val, test)]
        for feature in features:
            feature[:, 0] = _category(feature[:, 0], known)
        boosting = HistGradientBoostingClassifier(max_iter=100, categorical_features=[0], random_state=0)
        boosting.fit(features[0], train[2])
        scored[name] = [boosting.decision_function(feature) for feature in features[1:]]
    found = {}
    for name, (on_val, on_test) in scored.items():
        figures = triple_classification(
            Scored(val[1].relation, val[2], on_val), Scored(test[1].relation, test[2], on_test)
        )
        found[name] = figures["accuracy"]
        if "accuracy_matched" in figures:
            found[f"{name}_matched"] = figures["accuracy_matched"]
    return found


def _category(relation: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Position of each relation among those told apart, 0 for the others: [G]."""
    place = np.zeros(int(max(relation.max(), known.max())) + 1)
    place[known] = 1 + np.arange(len(known))
    return place[relation.astype(np.int64)]


def _table(node: np.ndarray, relation: np.ndarray, num_nodes: int, num_relations: int) -> sparse.csr_matrix:
    ones = np.ones(len(node), dtype=np.int64)
    return sparse.coo_matrix((ones, (node, relation)), shape=(num_nodes, num_relations)).tocsr()


def _both_ways(candidates: Candidates) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    return (candidates.subject, candidates.object), (candidates.object, candidates.subject)
