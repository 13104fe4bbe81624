"""The structure-only probe finds what structure gives away, and nothing else."""

import numpy as np
import torch

from nsm.data.triples import TripleDataset, TripleWriter
from nsm.models.hierarchy import NSM, NSMConfig
from nsm.probe import structure_only_error


def chains(num_graphs: int, types_follow_structure: bool) -> TripleDataset:
    """Chains of eight nodes whose types either alternate with the relation before them or are drawn at random."""
    rng, writer = np.random.default_rng(0), TripleWriter()
    for number in range(num_graphs):
        relations = rng.integers(0, 2, 7)
        types = np.concatenate([[0], relations]) if types_follow_structure else rng.integers(0, 2, 8)
        writer.add(
            x=types,
            level=np.ones(8),
            edge_index=[np.arange(7), np.arange(1, 8)],
            edge_type=relations,
            edge_attr=np.ones(7),
            y=number % 2,
            instance=number,
        )
    return writer.dataset()


def untrained(node_features: int = 32) -> NSM:
    torch.manual_seed(0)
    config = NSMConfig(node_features=node_features, num_bases=2, layers=1, dropout=0.0)
    return config.build(num_relations=2, num_entity_types=2, num_levels=1, num_logits=2, has_query=False).eval()


def error_on(model: NSM, dataset: TripleDataset, steps: int) -> float:
    batches = [dataset.__getitems__(list(range(start, start + 32))) for start in range(0, len(dataset), 32)]
    return structure_only_error(model, batches[:-2], batches[-2:], temperature=1.0, steps=steps)


def test_finds_what_structure_gives_away_and_not_what_it_hides() -> None:
    given_away, hidden = (error_on(untrained(), chains(256, follow), steps=300) for follow in (True, False))
    assert given_away < 0.15
    assert hidden > 3 * given_away


def test_leaves_the_model_and_the_random_state_alone() -> None:
    model = untrained(8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    error_on(model, chains(96, True), steps=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
