"""WHY contracts real edges to the wanted share and keeps relation types; WHAT fits it."""

import math
from collections import Counter

import pytest
import torch
from torch_geometric.data import Batch

from nsm.models.encoder import graph_of
from nsm.models.pooling import Why, contract, pooled_graph
from nsm.models.rgcn import Graph

from .conftest import NUM_RELATIONS, random_dataset


def contraction_of(batch: Batch, ratio: float, seed: int = 0):
    graph = graph_of(batch, NUM_RELATIONS)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(graph.edge_type.numel(), generator=generator)
    seniority = torch.randperm(graph.num_nodes, generator=generator)
    return graph, contract(graph, order=order, seniority=seniority, ratio=ratio)


@pytest.mark.parametrize("ratio", [0.05, 0.13, 0.3, 0.5, 0.8, 1.0])
def test_each_connected_sample_keeps_exactly_its_share(batch: Batch, ratio: float) -> None:
    graph, contraction = contraction_of(batch, ratio)
    kept = torch.bincount(graph.batch[contraction.seed], minlength=graph.num_graphs)
    sizes = torch.bincount(graph.batch)
    assert kept.tolist() == [math.ceil(round(ratio * size, 6)) for size in sizes.tolist()]


def test_disconnected_samples_keep_a_node_for_each_component() -> None:
    dataset = random_dataset(6, connected=False)
    batch = dataset.__getitems__(list(range(6)))
    graph, contraction = contraction_of(batch, 0.01)
    component = torch.arange(graph.num_nodes)  # plain label propagation, to compare with
    for _ in range(graph.num_nodes):
        for head, tail in graph.edge_index.t().tolist():
            component[head] = component[tail] = min(component[head], component[tail])
    assert contraction.seed.numel() == component.unique().numel()
    assert all(component[a] == component[contraction.seed[contraction.cluster[a]]] for a in range(graph.num_nodes))


@pytest.mark.parametrize("ratio", [0.13, 0.5])
def test_clusters_are_connected_by_the_triples_they_were_merged_along(batch: Batch, ratio: float) -> None:
    graph, contraction = contraction_of(batch, ratio)
    assert contraction.seed.numel() + contraction.absorbed.numel() == graph.num_nodes
    assert (contraction.cluster[contraction.seed] == torch.arange(contraction.seed.numel())).all()
    parent = {}
    for node, edge, kind in zip(
        contraction.absorbed.tolist(), contraction.edge.tolist(), contraction.message_type.tolist(), strict=True
    ):
        head, tail = graph.edge_index[:, edge].tolist()
        relation = int(graph.edge_type[edge])
        assert contraction.cluster[head] == contraction.cluster[tail] == contraction.cluster[node]
        assert kind in (relation, relation + NUM_RELATIONS)
        parent[node] = edge
    for members in contraction.cluster.unique().tolist():
        inside = {n for n in range(graph.num_nodes) if contraction.cluster[n] == members}
        edges = [tuple(graph.edge_index[:, parent[n]].tolist()) for n in inside if n in parent]
        assert len(edges) == len(inside) - 1  # a spanning tree, so the cluster is connected
        reached = {min(inside)}
        for _ in inside:
            reached |= {n for edge in edges if reached & set(edge) for n in edge}
        assert reached == inside


def test_first_contraction_is_along_the_best_edge(batch: Batch) -> None:
    graph = graph_of(batch, NUM_RELATIONS)
    order = torch.randperm(graph.edge_type.numel(), generator=torch.Generator().manual_seed(3))
    loops = graph.edge_index[0] == graph.edge_index[1]
    size = int(torch.bincount(graph.batch)[0])
    contraction = contract(graph, order=order, seniority=torch.arange(graph.num_nodes), ratio=(size - 1) / size)
    mine = graph.batch[graph.edge_index[0]] == 0
    best = int(torch.where(mine & ~loops, order, -1).argmax())
    assert contraction.edge[graph.batch[contraction.absorbed] == 0].tolist() == [best]


def test_pooled_triples_keep_relation_confidence_and_number(batch: Batch) -> None:
    graph, contraction = contraction_of(batch, 0.4)
    upper = pooled_graph(graph, contraction)
    confidence, multiplicity = Counter(), Counter()
    for (head, tail), relation, weight in zip(
        graph.edge_index.t().tolist(), graph.edge_type.tolist(), graph.confidence.tolist(), strict=True
    ):
        key = (int(contraction.cluster[head]), relation, int(contraction.cluster[tail]))
        if key[0] != key[2]:
            confidence[key] += weight
            multiplicity[key] += 1
    keys = [(h, r, t) for (h, t), r in zip(upper.edge_index.t().tolist(), upper.edge_type.tolist(), strict=True)]
    assert sorted(keys) == sorted(confidence)
    assert dict(zip(keys, upper.multiplicity.tolist(), strict=True)) == dict(multiplicity)
    assert dict(zip(keys, upper.confidence.tolist(), strict=True)) == pytest.approx(dict(confidence), rel=1e-5)
    assert upper.edge_type.unique().numel() > 1


def test_temperature_sharpens_the_gates(batch: Batch) -> None:
    torch.manual_seed(0)
    graph, y = graph_of(batch, NUM_RELATIONS), torch.randn(batch.num_nodes, 8)
    why = Why(8, NUM_RELATIONS, ratio=0.5, level_aware=False)
    warm, cold, frozen = (why(y, graph, batch.level, temperature)[0] for temperature in (1.0, 0.3, 1e-6))
    assert (warm - cold).abs().max() > 1e-3
    _, _, contraction = why(y, graph, batch.level, 1.0)
    head, tail = graph.edge_index[:, contraction.edge]
    score = why.score(y)[head, 0] + why.score(y)[tail, 1]
    members = why.merge(why.member(y[contraction.absorbed]), contraction.message_type)
    hard = y[contraction.seed].index_add(
        0, contraction.cluster[contraction.absorbed], 2.0 * (score > 0)[:, None] * members
    )
    torch.testing.assert_close(frozen, hard)


def test_level_aware_pooling_merges_abstract_nodes_last(batch: Batch) -> None:
    torch.manual_seed(0)
    graph, y = graph_of(batch, NUM_RELATIONS), torch.randn(batch.num_nodes, 8)

    def abstract_merges(level_aware: bool) -> int:
        torch.manual_seed(1)
        why = Why(8, NUM_RELATIONS, ratio=0.6, level_aware=level_aware)
        _, _, contraction = why(y, graph, batch.level, 1.0)
        return int((batch.level[graph.edge_index[:, contraction.edge]] > 1).all(dim=0).sum())

    assert abstract_merges(True) < abstract_merges(False)


@pytest.mark.parametrize("levels", [(1, 2), (2, 1)])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_of_two_nodes_the_more_abstract_one_stays(levels: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    graph = Graph.build(
        edge_index=torch.tensor([[0], [1]]),
        edge_type=torch.tensor([0]),
        confidence=torch.ones(1),
        batch=torch.zeros(2, dtype=torch.long),
        num_graphs=1,
        num_relations=NUM_RELATIONS,
    )
    why = Why(8, NUM_RELATIONS, ratio=0.5, level_aware=False)
    _, _, contraction = why(torch.randn(2, 8), graph, torch.tensor(levels), 1.0)
    assert levels[int(contraction.seed)] == 2
    assert levels[int(contraction.absorbed)] == 1
