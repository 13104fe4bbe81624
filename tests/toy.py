"""A domain and a model small enough for tests, added the way any other is: a class here, one YAML file in conf/."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from nsm.config import DomainConfig, ModelConfig, register_schemas
from nsm.data.datamodule import Grouping, TripleDataModule
from nsm.data.triples import TripleDataset, TripleWriter
from nsm.models.encoder import ModelOutput


@dataclass
class ToyConfig(DomainConfig):
    _target_: str = "tests.toy.ToyDataModule"
    num_samples: int = 200
    with_target: bool = True


class ToyDataModule(TripleDataModule):
    """Chains of five nodes of two types; the label says whether more than two are of the second."""

    name = "toy"
    version = 1
    config_class = ToyConfig
    relations = ("next", "near")
    entity_types = ("a", "b")
    num_levels = 2
    config: ToyConfig

    @property
    def ceilings(self) -> dict[str, float | None]:
        return {"test": 1.0, "again": 1.0}

    def generate(self, rng: np.random.Generator) -> dict[str, TripleDataset]:
        total = self.config.num_samples
        sizes = {"train": total * 7 // 10, "val": total * 3 // 20, "test": total * 3 // 20, "again": 20}
        sets, instance = {}, 0
        for name, size in sizes.items():
            writer = TripleWriter()
            for _ in range(size):
                x = rng.integers(0, 2, 5)
                target = {"target": float(x.mean())} if self.config.with_target else {}
                writer.add(
                    x=x,
                    level=[1, 1, 1, 2, 2],
                    edge_index=[[0, 1, 2, 3], [1, 2, 3, 4]],
                    edge_type=[0, 1, 0, 1],
                    edge_attr=[1.0, 0.5, 1.0, 0.5],
                    y=int(x.sum() > 2),
                    instance=instance,
                    ends=int(x[-1]),
                    **target,
                )
                instance += 1
            sets[name] = writer.dataset()
        return sets

    def metrics(self, probabilities: Mapping[str, Tensor]) -> dict[str, float]:
        return {"mean_probability_again": probabilities["again"].mean().item()}

    def breakdowns(self, dataset: TripleDataset) -> dict[str, Grouping]:
        return {"end": Grouping(dataset.column("ends"), ("ends in a", "ends in b"))}


@dataclass
class TinyConfig(ModelConfig):
    def build(self, **sizes: Any) -> "Tiny":
        return Tiny(self.node_features, self.dropout, sizes["num_entity_types"], sizes["num_logits"])


class Tiny(nn.Module):
    """A linear function of the mean embedding of a sample's nodes."""

    reconstructs = False

    def __init__(self, channels: int, dropout: float, num_types: int, num_logits: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_types, channels)
        self.out = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_logits))

    def forward(self, batch: Batch, *, temperature: float = 1.0) -> ModelOutput:
        x = self.embedding(batch.x)
        count = torch.bincount(batch.batch)[:, None]
        return ModelOutput(self.out(x.new_zeros(batch.num_graphs, x.shape[1]).index_add(0, batch.batch, x) / count))


register_schemas()
