"""The models that the hierarchy has to beat, through the same pipeline.

Shape letters: N nodes, E triples, G samples, D features, C logits.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch_geometric.data import Batch

from nsm.config import ModelConfig, check
from nsm.models.encoder import Encoder, ModelOutput, Readout, Sizes, graph_of, pool_mean_max
from nsm.models.rgcn import RelationalStack


@dataclass
class FlatConfig(ModelConfig):
    """R-GCN without a hierarchy."""

    layers: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.layers >= 1, "model.layers", self.layers, "at least 1 layer")

    def build(self, **sizes: Any) -> "Flat":
        return Flat(self, Sizes(**sizes))


class Flat(nn.Module):
    """Relational layers, then mean and maximum over the nodes."""

    reconstructs = False

    def __init__(self, config: FlatConfig, sizes: Sizes) -> None:
        super().__init__()
        self.num_relations = sizes.num_relations
        self.encoder = Encoder(config.node_features, sizes)
        self.layers = RelationalStack(
            config.node_features,
            sizes.num_relations,
            config.num_bases,
            num_layers=config.layers,
            dropout=config.dropout,
            query_channels=config.query_features if sizes.has_query else 0,
        )
        self.readout = Readout(config.node_features, sizes, num_levels=1, dropout=config.dropout)

    def forward(self, batch: Batch, *, temperature: float = 1.0) -> ModelOutput:
        """Logits [G, C]; the temperature has nothing to act on."""
        x, graph = self.encoder(batch), graph_of(batch, self.num_relations)
        x = self.layers(x, graph, batch.query_type if self.encoder.role is not None else None)
        return ModelOutput(self.readout([(x, batch.batch)], batch))


@dataclass
class BagConfig(ModelConfig):
    """A bag of triples."""

    def build(self, **sizes: Any) -> "Bag":
        return Bag(self, Sizes(**sizes))


class Bag(nn.Module):
    """Each triple alone, encoded by an MLP; mean and maximum over a sample's triples: it can count, and not join."""

    reconstructs = False

    def __init__(self, config: BagConfig, sizes: Sizes) -> None:
        super().__init__()
        channels = config.node_features
        self.encoder = Encoder(channels, sizes)
        self.relation = nn.Embedding(sizes.num_relations, channels)
        self.triple = nn.Sequential(
            nn.Linear(3 * channels + 1, 4 * channels),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(4 * channels, channels),
        )
        self.out = nn.Sequential(nn.Linear(2 * channels, channels), nn.ReLU(), nn.Linear(channels, sizes.num_logits))

    def forward(self, batch: Batch, *, temperature: float = 1.0) -> ModelOutput:
        """Logits [G, C]; the temperature has nothing to act on."""
        head, tail = batch.edge_index
        x = self.encoder(batch)
        parts = [x[head], self.relation(batch.edge_type), x[tail], batch.edge_attr[:, None]]
        triples = self.triple(torch.cat(parts, dim=1))
        return ModelOutput(self.out(pool_mean_max(triples, batch.batch[head], batch.num_graphs)))
