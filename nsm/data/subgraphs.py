"""The graph around a candidate triple, cut out of a large graph for a whole batch of candidates at once.

Neither time nor memory of a sample grows with the graph: neighbours are sampled at each hop, nodes are capped, and what
lies between the nodes kept is looked up. A sample depends on its candidate and the seed alone, not on its batch.

Shape letters: G candidates, N nodes, E triples, K keys, of the graph or of a batch, as the context says.
"""

from typing import Any, NamedTuple

import numpy as np

NONE = -1
"""In place of the number of a triple: there is none."""


class TripleGraph:
    """Triples sorted by subject, object and relation, and each node's neighbours, as compressed sparse rows.

    Args:
        subject, relation, object: [E] each, without duplicates. confidence: [E].
        x: [N] entity-type token of each node. level: [N], from 1.
        num_entities: how many nodes are entities; those after them are classes.
    """

    def __init__(
        self,
        *,
        subject: np.ndarray,
        relation: np.ndarray,
        object: np.ndarray,
        confidence: np.ndarray,
        x: np.ndarray,
        level: np.ndarray,
        num_entities: int,
    ) -> None:
        order = np.lexsort((relation, object, subject))
        self.subject, self.relation, self.object = subject[order], relation[order], object[order]
        self.confidence = confidence[order]
        self.x, self.level, self.num_entities = x, level, num_entities
        self.num_nodes = len(x)
        self.num_relations = int(relation.max(initial=0)) + 1
        self.pair = self.subject * self.num_nodes + self.object
        self.out_ptr = np.searchsorted(self.subject, np.arange(self.num_nodes + 1))
        links = np.sort(np.concatenate([self.pair, self.object * self.num_nodes + self.subject]))
        links = links[np.diff(links, prepend=-1) > 0]  # NumPy's unique, which hashes, takes four times as long
        source, self.neighbour = links // self.num_nodes, links % self.num_nodes
        self.neighbour_ptr = np.searchsorted(source, np.arange(self.num_nodes + 1))

    def __len__(self) -> int:
        return len(self.subject)

    @property
    def degree(self) -> np.ndarray:
        """Neighbours of each node: [N]."""
        return np.diff(self.neighbour_ptr)

    def find(self, subject: np.ndarray, relation: np.ndarray, object: np.ndarray) -> np.ndarray:
        """Number of each triple in the graph's order, or ``NONE``: [K]."""
        low, high = self.between(subject, object)
        rows, edges = ranges(low, high)
        found = np.full(len(subject), NONE)
        same = self.relation[edges] == relation[rows]
        found[rows[same]] = edges[same]
        return found

    def between(self, subject: np.ndarray, object: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First triple from each subject to its object, and the one after the last: [K] each."""
        key = subject * self.num_nodes + object
        return np.searchsorted(self.pair, key), np.searchsorted(self.pair, key, side="right")

    def linked(self, node: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Whether any triple joins the two, in whichever direction: [K]."""
        forth, back = self.between(node, other), self.between(other, node)
        return (forth[0] < forth[1]) | (back[0] < back[1])


class Candidates(NamedTuple):
    """Triples asked about, and what else has to be out of each one's graph."""

    subject: np.ndarray
    """[G]"""
    relation: np.ndarray
    object: np.ndarray
    left_out: np.ndarray
    """[G, 2] numbers of triples of the graph that this sample may not see, or ``NONE``."""


class Subgraphs(NamedTuple):
    """The graphs of a batch of candidates, end to end."""

    num_nodes: np.ndarray
    """[G]"""
    num_edges: np.ndarray
    nodes: np.ndarray
    """[sum of N] numbers in the whole graph."""
    edges: np.ndarray
    """[sum of E] numbers of the triples in the whole graph."""
    edge_index: np.ndarray
    """[2, sum of E] positions within each sample."""
    query_index: np.ndarray
    """[2, G] positions of subject and object within each sample."""


class Extractor:
    """Cuts out both ends of a candidate and what is near them.

    Neighbours come from at most ``hops`` steps around each end. A node with more than ``fanout`` neighbours gives that
    many, at even distances from a random start. Common neighbours of both ends are looked up in up to ``8 * fanout``
    neighbours of the end that has fewer. Of more than ``max_nodes`` nodes, both ends stay, then classes and nodes near
    both ends, then those nearest to one, others by lot. A candidate's own triple, its reverse (the same relation from
    object to subject) and the triples left out, with their reverses, are neither walked nor kept.

    Args:
        hops: 0 for both ends alone, without any triple.
        seed: of the lots.
    """

    def __init__(self, graph: TripleGraph, *, hops: int, fanout: int, max_nodes: int, seed: int) -> None:
        self.graph, self.hops, self.fanout, self.max_nodes = graph, hops, fanout, max_nodes
        self.seed = np.uint64(seed)

    def extract(self, candidates: Candidates) -> Subgraphs:
        """The graphs of all candidates, in order."""
        if self.hops == 0:
            return _ends_alone(candidates)
        graph, size = self.graph, len(candidates.subject)
        lot = mix(self.seed, candidates.subject, candidates.relation, candidates.object)
        out = _Removed(graph, candidates)
        sample, node, rank = self._near(candidates, lot, out)
        # Ends first, then by rank, then by lot: what is over the cap goes.
        chance = mix(lot[sample], node)
        order = np.lexsort((chance, rank, sample))
        start = np.searchsorted(sample[order], np.arange(size))
        kept = order[np.arange(len(order)) - start[sample[order]] < self.max_nodes]
        sample, node, chance = sample[kept], node[kept], chance[kept]
        member = np.sort(sample * graph.num_nodes + node)
        key, edges = self._inside(member, out)
        # A node whose last triple lay beyond the cap, or was left out, says nothing.
        ends = _ends(candidates, graph.num_nodes)
        used = [key * graph.num_nodes + side[edges] for side in (graph.subject, graph.object)]
        alone = ~np.isin(sample * graph.num_nodes + node, np.concatenate([*used, ends]))
        sample, node, chance = sample[~alone], node[~alone], chance[~alone]
        order = np.lexsort((chance, sample))  # so that the order tells nothing
        sample, node = sample[order], node[order]
        num_nodes = np.bincount(sample, minlength=size)
        position = np.arange(len(node)) - np.repeat(num_nodes.cumsum() - num_nodes, num_nodes)
        member = sample * graph.num_nodes + node
        by_key = np.argsort(member)
        places = [position[by_key[np.searchsorted(member[by_key], keys)]] for keys in (*used, ends)]
        return Subgraphs(
            num_nodes=num_nodes,
            num_edges=np.bincount(key, minlength=size),
            nodes=node,
            edges=edges,
            edge_index=np.stack(places[:2]),
            query_index=places[2].reshape(2, size),
        )

    def _near(
        self, candidates: Candidates, lot: np.ndarray, out: "_Removed"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nodes near the ends: sample, node and rank (lower is kept first), each pair of the former once."""
        graph, size, far = self.graph, len(lot), self.hops + 1
        sides = [np.arange(size), np.arange(size)]
        reached = [candidates.subject, candidates.object]
        # Keys of (side, sample, node), with the steps that led there; the first of equal keys has the fewest.
        span = size * graph.num_nodes
        keys = np.concatenate([side * span + sides[side] * graph.num_nodes + reached[side] for side in (0, 1)])
        steps = np.zeros(len(keys), dtype=np.int64)
        frontier = keys
        for step in range(1, self.hops + 1):
            found = self._step(frontier, lot, out, step, size)
            if step == 1:
                common = self._common(candidates, out)
                found = np.concatenate([found, common, common + span])
            found = np.setdiff1d(found, keys)
            keys = np.concatenate([keys, found])
            steps = np.concatenate([steps, np.full(len(found), step)])
            frontier = found
        member, position = np.unique(keys % span, return_inverse=True)
        distance = np.full((2, len(member)), far)
        distance[keys // span, position] = steps
        sample, node = member // graph.num_nodes, member % graph.num_nodes
        nearest, both = distance.min(axis=0), (distance < far).all(axis=0) | (graph.level[node] > 1)
        return sample, node, np.where(nearest == 0, 0, np.where(both, 1, 1 + nearest))

    def _step(self, frontier: np.ndarray, lot: np.ndarray, out: "_Removed", step: int, size: int) -> np.ndarray:
        """Keys of the neighbours of the nodes with these keys, of each at most ``fanout``."""
        graph = self.graph
        side, rest = np.divmod(frontier, size * graph.num_nodes)
        sample, node = np.divmod(rest, graph.num_nodes)
        chosen, rows = self._spread(node, self.fanout, mix(lot[sample], node, np.full_like(node, step)))
        reached = graph.neighbour[chosen]
        walked = out.keeps_link(sample[rows], node[rows], reached)
        rows, reached = rows[walked], reached[walked]
        return np.unique((side[rows] * size + sample[rows]) * graph.num_nodes + reached)

    def _common(self, candidates: Candidates, out: "_Removed") -> np.ndarray:
        """Keys, on the subject's side, of neighbours of both ends."""
        graph, degree = self.graph, self.graph.degree
        fewer = degree[candidates.subject] <= degree[candidates.object]
        near = np.where(fewer, candidates.subject, candidates.object)
        other = np.where(fewer, candidates.object, candidates.subject)
        chosen, rows = self._spread(near, 8 * self.fanout, np.zeros(len(near), dtype=np.uint64))
        reached = graph.neighbour[chosen]
        both = graph.linked(reached, other[rows])
        rows, reached = rows[both], reached[both]
        walked = out.keeps_link(rows, near[rows], reached) & out.keeps_link(rows, other[rows], reached)
        return rows[walked] * graph.num_nodes + reached[walked]

    def _spread(self, node: np.ndarray, limit: int, lot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """At most ``limit`` positions in each node's neighbours, evenly spread from a random start, and whose."""
        start, end = self.graph.neighbour_ptr[node], self.graph.neighbour_ptr[node + 1]
        degree = end - start
        rows, offset = ranges(np.zeros_like(degree), np.minimum(degree, limit))
        shift = (lot >> np.uint64(11)).astype(np.float64) * 2.0**-53
        spaced = np.floor((offset + shift[rows]) * (degree[rows] / limit)).astype(np.int64)
        return start[rows] + np.where(degree[rows] > limit, spaced, offset), rows

    def _inside(self, member: np.ndarray, out: "_Removed") -> tuple[np.ndarray, np.ndarray]:
        """Sample and number of every triple between nodes with these ascending keys of (sample, node)."""
        graph = self.graph
        sample, node = member // graph.num_nodes, member % graph.num_nodes
        few = graph.out_ptr[node + 1] - graph.out_ptr[node] <= self.max_nodes
        # Few triples leave the node: see which of them end in the sample.
        rows, edges = ranges(graph.out_ptr[node[few]], graph.out_ptr[node[few] + 1])
        samples = sample[few][rows]
        inside = _contains(member, samples * graph.num_nodes + graph.object[edges])
        found = [(samples[inside], edges[inside])]
        # Many do: look up those to each node of the sample.
        hub, hub_sample = node[~few], sample[~few]
        first = np.searchsorted(sample, np.arange(int(sample[-1]) + 2))
        rows, others = ranges(first[hub_sample], first[hub_sample + 1])
        pairs, edges = ranges(*graph.between(hub[rows], node[others]))
        found.append((hub_sample[rows[pairs]], edges))
        samples, edges = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = ~out.removes(samples, edges)
        samples, edges = samples[kept], edges[kept]
        order = np.lexsort((edges, samples))
        return samples[order], edges[order]


class _Removed:
    """What each sample of a batch may not see: its own triple, those left out, and the reverse of each."""

    def __init__(self, graph: TripleGraph, candidates: Candidates) -> None:
        self.graph = graph
        left_out = candidates.left_out
        absent = left_out == NONE
        # [G, 3] each; what is absent repeats the sample's own triple.
        self.subject, self.relation, self.object = (
            np.column_stack([own, np.where(absent, own[:, None], column[left_out])])
            for own, column in (
                (candidates.subject, graph.subject),
                (candidates.relation, graph.relation),
                (candidates.object, graph.object),
            )
        )

    def removes(self, sample: np.ndarray, edges: np.ndarray) -> np.ndarray:
        """Whether the sample may not see the triple with this number: [K]."""
        graph = self.graph
        subject, object_ = graph.subject[edges][:, None], graph.object[edges][:, None]
        ends, others = self.subject[sample], self.object[sample]
        same = ((ends == subject) & (others == object_)) | ((ends == object_) & (others == subject))
        return (same & (self.relation[sample] == graph.relation[edges][:, None])).any(axis=1)

    def keeps_link(self, sample: np.ndarray, node: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Whether a triple that the sample may see joins the two neighbours: [K]."""
        ends, others = self.subject[sample], self.object[sample]
        here, there = node[:, None], other[:, None]
        concerned = np.flatnonzero((((ends == here) & (others == there)) | ((ends == there) & (others == here))).any(1))
        keeps = np.ones(len(sample), dtype=bool)
        keeps[concerned] = False
        for pair in ((node, other), (other, node)):
            rows, edges = ranges(*self.graph.between(pair[0][concerned], pair[1][concerned]))
            seen = ~self.removes(sample[concerned][rows], edges)
            keeps[concerned[rows[seen]]] = True
        return keeps


def ranges(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All whole numbers from each start to below its end, one range after the other: which range, and the number."""
    sizes = end - start
    rows = np.repeat(np.arange(len(sizes)), sizes)
    return rows, np.arange(len(rows)) + np.repeat(start - (sizes.cumsum() - sizes), sizes)


def mix(first: Any, *others: Any) -> np.ndarray:
    """A random-looking 64-bit number for each combination (splitmix64; Steele, Lea and Flood, 2014)."""
    state = np.asarray(first, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for value in (*others, 0):
            state = state + np.uint64(0x9E3779B97F4A7C15) + np.asarray(value).astype(np.uint64)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def _contains(ascending: np.ndarray, keys: np.ndarray) -> np.ndarray:
    position = np.searchsorted(ascending, keys)
    position[position == len(ascending)] = 0
    return ascending[position] == keys


def _ends_alone(candidates: Candidates) -> Subgraphs:
    loop = candidates.subject == candidates.object
    num_nodes = np.where(loop, 1, 2)
    second = np.repeat(~loop, num_nodes) & (
        np.arange(num_nodes.sum()) != np.repeat(num_nodes.cumsum() - num_nodes, num_nodes)
    )
    sample = np.repeat(np.arange(len(loop)), num_nodes)
    return Subgraphs(
        num_nodes=num_nodes,
        num_edges=np.zeros_like(num_nodes),
        nodes=np.where(second, candidates.object[sample], candidates.subject[sample]),
        edges=np.zeros(0, dtype=np.int64),
        edge_index=np.zeros((2, 0), dtype=np.int64),
        query_index=np.stack([np.zeros_like(num_nodes), num_nodes - 1]),
    )


def _ends(candidates: Candidates, num_nodes: int) -> np.ndarray:
    """Keys of (sample, node) of all subjects, then of all objects: [2G]."""
    offset = np.arange(len(candidates.subject)) * num_nodes
    return np.concatenate([offset + candidates.subject, offset + candidates.object])
