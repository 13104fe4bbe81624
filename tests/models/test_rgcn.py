"""The relational layer against a plain loop, against PyG's own, and its gate."""

import pytest
import torch
from torch_geometric.data import Batch
from torch_geometric.nn import RGCNConv

from nsm.models.encoder import graph_of
from nsm.models.rgcn import Graph, QueryGate, RelationalConv, RelationalStack

from .conftest import NUM_RELATIONS


def plain_loop(conv: RelationalConv, x: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The formula of the docstring, one message at a time, from the batch's own triples."""
    weights = torch.einsum("sb,bio->sio", conv.coefficients, conv.bases)
    messages = []
    for (head, tail), relation, confidence in zip(
        batch.edge_index.t().tolist(), batch.edge_type.tolist(), batch.edge_attr.tolist(), strict=True
    ):
        messages += [(head, tail, relation, confidence), (tail, head, relation + NUM_RELATIONS, confidence)]
    out = [conv.root(row) for row in x]
    for source, target, kind, confidence in messages:
        count = sum(t == target and k == kind for _, t, k, _ in messages)
        out[target] = out[target] + confidence / count * (x[source] @ weights[kind])
    return torch.stack(out)


def test_forward_and_gradients_equal_a_plain_loop(batch: Batch) -> None:
    torch.manual_seed(0)
    conv = RelationalConv(8, NUM_RELATIONS, 3)
    x = torch.randn(batch.num_nodes, 8, requires_grad=True)
    inputs = [x, *conv.parameters()]
    fast, slow = conv(x, graph_of(batch, NUM_RELATIONS)), plain_loop(conv, x, batch)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(fast)
    for ours, theirs in zip(
        torch.autograd.grad(fast, inputs, direction), torch.autograd.grad(slow, inputs, direction), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_equals_pyg_rgcn_when_every_triple_is_certain(batch: Batch) -> None:
    torch.manual_seed(0)
    batch.edge_attr = torch.ones_like(batch.edge_attr)
    conv = RelationalConv(8, NUM_RELATIONS, 3)
    reference = RGCNConv(8, 8, 2 * NUM_RELATIONS, num_bases=3)
    with torch.no_grad():
        reference.weight.copy_(conv.bases)
        reference.comp.copy_(conv.coefficients)
        reference.root.copy_(conv.root.weight.t())
        reference.bias.copy_(conv.root.bias)
    x = torch.randn(batch.num_nodes, 8)
    both_ways = torch.cat([batch.edge_index, batch.edge_index.flip(0)], dim=1)
    types = torch.cat([batch.edge_type, batch.edge_type + NUM_RELATIONS])
    expected = reference(x, both_ways, types)
    torch.testing.assert_close(conv(x, graph_of(batch, NUM_RELATIONS)), expected, rtol=1e-4, atol=1e-5)


def test_confidence_scales_a_message_and_does_not_cancel() -> None:
    torch.manual_seed(0)
    conv, x = RelationalConv(4, 1, 1), torch.randn(2, 4)

    def message(confidence: float) -> torch.Tensor:
        graph = Graph.build(
            edge_index=torch.tensor([[0], [1]]),
            edge_type=torch.tensor([0]),
            confidence=torch.tensor([confidence]),
            batch=torch.zeros(2, dtype=torch.long),
            num_graphs=1,
            num_relations=1,
        )
        return conv(x, graph)[1] - conv.root(x[1])

    torch.testing.assert_close(message(0.25), 0.25 * message(1.0))


def test_merged_triples_weigh_what_they_weighed_apart() -> None:
    torch.manual_seed(0)
    conv, x = RelationalConv(4, 2, 2), torch.randn(3, 4)
    common = {"batch": torch.zeros(3, dtype=torch.long), "num_graphs": 1, "num_relations": 2}
    apart = Graph.build(
        edge_index=torch.tensor([[0, 0, 2], [1, 1, 1]]),
        edge_type=torch.tensor([1, 1, 1]),
        confidence=torch.tensor([0.5, 0.9, 0.3]),
        **common,
    )
    merged = Graph.build(
        edge_index=torch.tensor([[0, 2], [1, 1]]),
        edge_type=torch.tensor([1, 1]),
        confidence=torch.tensor([1.4, 0.3]),
        multiplicity=torch.tensor([2.0, 1.0]),
        **common,
    )
    torch.testing.assert_close(conv(x, apart), conv(x, merged))


def test_a_graph_without_triples_passes_only_the_root() -> None:
    conv, x = RelationalConv(4, 3, 2), torch.randn(5, 4)
    graph = Graph.build(
        edge_index=torch.zeros(2, 0, dtype=torch.long),
        edge_type=torch.zeros(0, dtype=torch.long),
        confidence=torch.zeros(0),
        batch=torch.zeros(5, dtype=torch.long),
        num_graphs=1,
        num_relations=3,
    )
    torch.testing.assert_close(conv(x, graph), conv.root(x))


def test_gate_starts_at_one_and_acts_on_its_predicate_alone(batch: Batch) -> None:
    torch.manual_seed(0)
    graph, gate = graph_of(batch, NUM_RELATIONS), QueryGate(NUM_RELATIONS, 4)
    assert torch.equal(gate(graph, batch.query_type), torch.ones_like(graph.weight))
    asked = int(batch.query_type[0])
    gate.query.data[asked] = torch.randn(4)
    sample_asks = batch.query_type[graph.batch[graph.source]] == asked
    factors = gate(graph, batch.query_type)
    assert (factors[sample_asks] != 1).all()
    assert (factors[~sample_asks] == 1).all()
    key = graph.message_type[sample_asks]
    torch.testing.assert_close(factors[sample_asks], 2 * torch.sigmoid(gate.key[key] @ gate.query[asked]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_stays_close_to_full_precision(batch: Batch, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    stack = RelationalStack(16, NUM_RELATIONS, 3, num_layers=2)
    x, graph = torch.randn(batch.num_nodes, 16), graph_of(batch, NUM_RELATIONS)
    full = stack(x, graph)
    with torch.autocast("cpu", dtype=dtype):
        mixed = stack(x, graph)
    assert not torch.equal(full, mixed.float())
    torch.testing.assert_close(mixed.float(), full, rtol=0.1, atol=0.1)
