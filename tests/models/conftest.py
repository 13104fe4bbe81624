"""Small random graphs that every model test shares."""

import numpy as np
import pytest
from torch_geometric.data import Batch

from nsm.data.triples import TripleDataset, TripleWriter

NUM_RELATIONS, NUM_TYPES, NUM_LEVELS = 7, 4, 3
SIZES = {
    "num_relations": NUM_RELATIONS,
    "num_entity_types": NUM_TYPES,
    "num_levels": NUM_LEVELS,
    "num_logits": 2,
    "has_query": True,
}


def random_dataset(num_graphs: int, seed: int = 0, connected: bool = True) -> TripleDataset:
    """Random samples of 6 to 20 nodes, about twice as many triples, each with a pair that is asked about."""
    rng, writer = np.random.default_rng(seed), TripleWriter()
    for number in range(num_graphs):
        nodes = int(rng.integers(6, 21))
        tree = np.stack([np.arange(1, nodes), rng.integers(0, np.arange(1, nodes))]) if connected else np.zeros((2, 0))
        edges = np.concatenate([tree, rng.integers(0, nodes, (2, nodes // 2 if not connected else nodes))], axis=1)
        writer.add(
            x=rng.integers(0, NUM_TYPES, nodes),
            level=rng.integers(1, NUM_LEVELS + 1, nodes),
            edge_index=edges.astype(int),
            edge_type=rng.integers(0, NUM_RELATIONS, edges.shape[1]),
            edge_attr=rng.random(edges.shape[1]),
            query_index=rng.choice(nodes, 2, replace=False),
            query_type=int(rng.integers(NUM_RELATIONS)),
            y=number % 2,
            instance=number,
        )
    return writer.dataset()


@pytest.fixture
def dataset() -> TripleDataset:
    return random_dataset(8)


@pytest.fixture
def batch(dataset: TripleDataset) -> Batch:
    return dataset.__getitems__(list(range(len(dataset))))
