"""The graph around a candidate, against one found by walking over sets; what it may not hold; and its bounds."""

import pickle
from itertools import chain

import numpy as np
import pytest
import torch

from nsm.data.subgraph_dataset import SubgraphDataset
from nsm.data.subgraphs import NONE, Candidates, Extractor, Subgraphs, TripleGraph

NODES, CLASSES, RELATIONS = 60, 4, 5
Fact = tuple[int, int, int]


def random_graph(num_triples: int, seed: int = 0) -> TripleGraph:
    """Some nodes are hubs, some triples loops; the last nodes are classes."""
    rng = np.random.default_rng(seed)
    ends = (NODES * rng.random((2, num_triples)) ** 2).astype(int)
    facts = np.unique(np.stack([ends[0], rng.integers(0, RELATIONS, num_triples), ends[1]]), axis=1)
    facts = facts[:, rng.permutation(facts.shape[1])]
    level = np.ones(NODES, dtype=np.int64)
    level[-CLASSES:] = 2
    return TripleGraph(
        subject=facts[0],
        relation=facts[1],
        object=facts[2],
        confidence=rng.random(facts.shape[1]).astype(np.float32),
        x=rng.integers(0, 3, NODES),
        level=level,
        num_entities=NODES - CLASSES,
    )


def random_candidates(graph: TripleGraph, size: int, seed: int = 1) -> Candidates:
    """Half of them triples of the graph; each also leaves out two or fewer others."""
    rng = np.random.default_rng(seed)
    edge = rng.integers(len(graph), size=size)
    given = rng.random(size) < 0.5
    subject, object_ = (
        np.where(given, ends[edge], rng.integers(NODES, size=size)) for ends in (graph.subject, graph.object)
    )
    relation = np.where(given, graph.relation[edge], rng.integers(RELATIONS, size=size))
    left_out = np.where(rng.random((size, 2)) < 0.5, rng.integers(len(graph), size=(size, 2)), NONE)
    return Candidates(subject, relation, object_, left_out)


def facts_of(graph: TripleGraph) -> list[Fact]:
    return list(zip(graph.subject.tolist(), graph.relation.tolist(), graph.object.tolist(), strict=True))


def hidden(graph: TripleGraph, candidates: Candidates, i: int) -> set[Fact]:
    own = (int(candidates.subject[i]), int(candidates.relation[i]), int(candidates.object[i]))
    removed = {own} | {facts_of(graph)[edge] for edge in candidates.left_out[i].tolist() if edge != NONE}
    return removed | {(o, r, s) for s, r, o in removed}


def walked(graph: TripleGraph, candidates: Candidates, i: int, hops: int) -> tuple[set[int], set[Fact]]:
    """Nodes and triples of a sample without bounds, by walking over what it may see."""
    visible = set(facts_of(graph)) - hidden(graph, candidates, i)
    ends = {int(candidates.subject[i]), int(candidates.object[i])}
    nodes = set(ends)
    for _ in range(hops):
        nodes |= set(chain.from_iterable((s, o) for s, _, o in visible if s in nodes or o in nodes))
    return nodes, {fact for fact in visible if fact[0] in nodes and fact[2] in nodes}


def split(found: Subgraphs) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Nodes, numbers of edges, their ends in the whole graph, and the ends asked about, of each sample."""
    parts = []
    node_start, edge_start = 0, 0
    for i, (nodes, edges) in enumerate(zip(found.num_nodes.tolist(), found.num_edges.tolist(), strict=True)):
        mine = found.nodes[node_start : node_start + nodes]
        index = found.edge_index[:, edge_start : edge_start + edges]
        assert index.size == 0 or (index.min() >= 0 and index.max() < nodes)
        parts.append((mine, found.edges[edge_start : edge_start + edges], mine[index], mine[found.query_index[:, i]]))
        node_start, edge_start = node_start + nodes, edge_start + edges
    assert node_start == len(found.nodes)
    assert edge_start == len(found.edges)
    return parts


@pytest.mark.parametrize(("hops", "num_triples"), [(1, 80), (1, 400), (2, 60), (2, 400)])
def test_without_bounds_it_is_what_walking_finds(hops: int, num_triples: int) -> None:
    graph = random_graph(num_triples)
    candidates = random_candidates(graph, 60)
    found = Extractor(graph, hops=hops, fanout=10_000, max_nodes=10_000, seed=0).extract(candidates)
    for i, (nodes, edges, ends, asked) in enumerate(split(found)):
        expected_nodes, expected_facts = walked(graph, candidates, i, hops)
        assert sorted(nodes.tolist()) == sorted(expected_nodes)
        assert {facts_of(graph)[edge] for edge in edges.tolist()} == expected_facts
        assert len(edges) == len(expected_facts)
        assert np.array_equal(ends, np.stack([graph.subject[edges], graph.object[edges]]))
        assert asked.tolist() == [candidates.subject[i], candidates.object[i]]


@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("max_nodes", [2, 7, 20])
def test_with_bounds_it_holds_no_more_and_never_what_is_hidden(hops: int, max_nodes: int) -> None:
    graph = random_graph(500)
    candidates = random_candidates(graph, 80)
    found = Extractor(graph, hops=hops, fanout=4, max_nodes=max_nodes, seed=0).extract(candidates)
    assert (found.num_nodes <= max_nodes).all()
    assert (found.num_nodes == max_nodes).any()
    for i, (nodes, edges, _, asked) in enumerate(split(found)):
        reachable, visible = walked(graph, candidates, i, hops)
        assert set(nodes.tolist()) <= reachable
        inside = {fact for fact in visible if {fact[0], fact[2]} <= set(nodes.tolist())}
        assert {facts_of(graph)[edge] for edge in edges.tolist()} == inside
        assert set(nodes.tolist()) == {end for s, _, o in inside for end in (s, o)} | set(asked.tolist())


def test_nodes_near_both_ends_and_classes_are_kept_first() -> None:
    graph = random_graph(300)
    candidates = random_candidates(graph, 60)
    found = Extractor(graph, hops=1, fanout=1000, max_nodes=12, seed=0).extract(candidates)
    cut = 0
    for i, (nodes, _, _, asked) in enumerate(split(found)):
        visible = set(facts_of(graph)) - hidden(graph, candidates, i)
        near = [{s for s, _, o in visible if o == end} | {o for s, _, o in visible if s == end} for end in asked]
        first = (near[0] & near[1]) | {node for node in near[0] | near[1] if graph.level[node] > 1}
        first -= set(asked.tolist())
        cut += len(near[0] | near[1] | set(asked.tolist())) > 12
        others = set(nodes.tolist()) - set(asked.tolist())
        assert first <= others or others <= first
    assert cut > 10


def test_a_sample_depends_on_candidate_and_seed_alone() -> None:
    graph = random_graph(500)
    candidates = random_candidates(graph, 40)
    extractor = Extractor(graph, hops=1, fanout=4, max_nodes=10, seed=0)
    together = split(extractor.extract(candidates))
    for i, expected in enumerate(together):
        alone = split(extractor.extract(Candidates(*(column[i : i + 1] for column in candidates))))[0]
        assert all(np.array_equal(a, b) for a, b in zip(alone, expected, strict=True))
    other = split(Extractor(graph, hops=1, fanout=4, max_nodes=10, seed=1).extract(candidates))
    differing = sum(set(a[0].tolist()) != set(b[0].tolist()) for a, b in zip(together, other, strict=True))
    assert differing > 10


def test_the_order_of_nodes_does_not_tell_which_are_the_ends() -> None:
    graph = random_graph(500)
    candidates = random_candidates(graph, 200)
    found = Extractor(graph, hops=1, fanout=8, max_nodes=12, seed=0).extract(candidates)
    assert found.query_index[0].mean() == pytest.approx((found.num_nodes.mean() - 1) / 2, abs=0.8)


def test_without_hops_it_is_both_ends_alone() -> None:
    graph = random_graph(100)
    candidates = random_candidates(graph, 50)
    candidates.subject[7] = candidates.object[7]
    found = Extractor(graph, hops=0, fanout=4, max_nodes=12, seed=0).extract(candidates)
    assert len(found.edges) == 0
    for i, (nodes, _, _, asked) in enumerate(split(found)):
        assert asked.tolist() == [candidates.subject[i], candidates.object[i]]
        assert sorted(nodes.tolist()) == sorted(set(asked.tolist()))


def test_look_up_of_triples() -> None:
    graph = random_graph(300)
    facts = facts_of(graph)
    asked = [*facts[:50], *((s, r, o) for s in range(9) for r in range(RELATIONS + 1) for o in range(9))]
    found = graph.find(*np.array(asked).T)
    assert found.tolist() == [facts.index(fact) if fact in facts else NONE for fact in asked]


def test_a_cached_batch_is_the_one_cut_out_anew() -> None:
    graph = random_graph(500)
    candidates = random_candidates(graph, 40)
    y = np.arange(40) % 2

    def dataset(cached_bytes: int) -> SubgraphDataset:
        return SubgraphDataset.of(
            Extractor(graph, hops=1, fanout=4, max_nodes=10, seed=0),
            **candidates._asdict(),
            cached_bytes=cached_bytes,
            y=y,
        )

    cached, little, anew = dataset(2**20), dataset(2000), dataset(0)
    rng = np.random.default_rng(0)
    for _ in range(6):
        indices = rng.integers(0, 40, size=9).tolist()
        batches = [found.__getitems__(indices).to_dict() for found in (cached, little, anew)]
        for key, value in batches[0].items():
            for other in batches[1:]:
                assert torch.equal(other[key], value) if isinstance(value, torch.Tensor) else other[key] == value, key
        assert batches[0]["y"].tolist() == [i % 2 for i in indices]
        assert batches[0]["subject"].tolist() == candidates.subject[indices].tolist()
        assert torch.equal(cached.get(indices[0]).edge_index, anew.get(indices[0]).edge_index)
    copied = pickle.loads(pickle.dumps(cached))  # as for a process that loads batches
    assert torch.equal(copied.__getitems__([3, 5]).edge_index, cached.__getitems__([3, 5]).edge_index)
    assert len(pickle.dumps(cached)) < len(pickle.dumps(anew)) + 100
    assert 0 < little._kept_bytes < 4000 + 2000
    assert anew._kept_bytes == 0
