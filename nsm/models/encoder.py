"""What every model begins and ends with: encoding of nodes, readout of samples.

Shape letters: N nodes, G samples, D features, C logits.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from nsm.models.rgcn import Graph


class Sizes(NamedTuple):
    """What a domain tells a model about its samples."""

    num_relations: int
    num_entity_types: int
    num_levels: int
    """Levels of abstraction that a node's ``level`` counts, from 1 (not the levels of a hierarchy)."""
    num_logits: int
    has_query: bool
    """Whether the label is about one pair of nodes."""
    num_entities: int = 0
    """Entities that a batch names by number (``subject``, ``object``), all of training; 0 if there may be others."""
    known_triples: Tensor | None = None
    """[3, E] subject, relation and object of the true training triples, where entities have numbers."""


class ModelOutput(NamedTuple):
    """What a model says of a batch."""

    logits: Tensor
    """[G, C]"""
    cycle_loss: Tensor | None = None
    """Reconstruction loss, a scalar; None for a model that does not reconstruct."""
    task_loss: Tensor | None = None
    """The model's own loss, a scalar, for one that does not learn from the labels of its samples alone."""


class Encoder(nn.Module):
    """Embed entity type, level and, where one pair of nodes is asked about, their roles and the predicate."""

    def __init__(self, channels: int, sizes: Sizes) -> None:
        super().__init__()
        self.entity_type = nn.Embedding(sizes.num_entity_types, channels)
        self.level = nn.Embedding(sizes.num_levels + 1, channels)
        self.role = nn.Embedding(2 * sizes.num_relations, channels) if sizes.has_query else None
        # Small beside what the layers add, so that features tell more than types.
        nn.init.normal_(self.entity_type.weight, std=0.3)
        nn.init.normal_(self.level.weight, std=0.3)

    def forward(self, batch: Batch) -> Tensor:
        """The batch's nodes to [N, D]."""
        x = self.entity_type(batch.x) + self.level(batch.level)
        if self.role is not None:
            subject, tail = batch.query_index
            x = x.index_add(0, subject, self.role(2 * batch.query_type))
            x = x.index_add(0, tail, self.role(2 * batch.query_type + 1))
        return x


def graph_of(batch: Batch, num_relations: int) -> Graph:
    """The batch's triples, prepared for relational layers."""
    return Graph.build(
        edge_index=batch.edge_index,
        edge_type=batch.edge_type,
        confidence=batch.edge_attr,
        batch=batch.batch,
        num_graphs=batch.num_graphs,
        num_relations=num_relations,
    )


def pool_mean_max(x: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """Mean and maximum over the nodes of each sample: [N, D] to [G, 2D]."""
    count = torch.bincount(batch, minlength=num_graphs).clamp(min=1)
    mean = x.new_zeros(num_graphs, x.shape[1]).index_add(0, batch, x) / count[:, None]
    index = batch[:, None].expand_as(x)
    maximum = x.new_zeros(num_graphs, x.shape[1]).scatter_reduce(0, index, x, "amax", include_self=False)
    return torch.cat([mean, maximum], dim=1)


class Readout(nn.Module):
    """Logits from the mean and maximum of every level and, where a pair is asked about, its two nodes."""

    def __init__(self, channels: int, sizes: Sizes, *, num_levels: int, dropout: float) -> None:
        super().__init__()
        self.has_query = sizes.has_query
        self.mlp = nn.Sequential(
            nn.LayerNorm((2 * num_levels + 2 * sizes.has_query) * channels),
            nn.Linear((2 * num_levels + 2 * sizes.has_query) * channels, channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(channels, sizes.num_logits),
        )

    def forward(self, levels: list[tuple[Tensor, Tensor]], batch: Batch) -> Tensor:
        """Features [N_l, D] and samples [N_l] of each level, from the lowest, to logits [G, C]."""
        parts = [pool_mean_max(x, sample, batch.num_graphs) for x, sample in levels]
        if self.has_query:
            parts += list(levels[0][0][batch.query_index])
        return self.mlp(torch.cat(parts, dim=1))
