"""The Neural Symbolic Model: a hierarchy of ever more abstract graphs, and the way back.

Shape letters: N nodes, G samples, D features, C logits, L levels.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from nsm.config import ModelConfig, check
from nsm.models.coupling import AffineCoupling
from nsm.models.encoder import Encoder, ModelOutput, Readout, Sizes, graph_of
from nsm.models.pooling import Contraction, What, Why
from nsm.models.rgcn import Graph, RelationalStack


@dataclass
class NSMConfig(ModelConfig):
    """The hierarchy."""

    levels: int = 2
    """Levels of the hierarchy: one more than there are poolings."""
    pool_ratio: float = 0.5
    """Share of a level's nodes that the next level keeps."""
    cycle_weight: float = 0.01
    """Weight of the cycle loss beside the task loss."""
    layers: int = 4
    """Relational layers before the first pooling."""
    upper_layers: int = 1
    """Relational layers at each level above."""
    decoder_layers: int = 1
    """Relational layers in each WHAT."""
    coupling_layers: int = 2
    level_aware: bool = False
    """Contract triples between two abstract nodes after all others."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(2 <= self.levels <= 6, "model.levels", self.levels, "2 to 6 levels (model=flat has one)")
        check(0 < self.pool_ratio <= 1, "model.pool_ratio", self.pool_ratio, "a share of nodes above 0, at most 1")
        check(self.cycle_weight >= 0, "model.cycle_weight", self.cycle_weight, "0 or more")
        for key in ("layers", "coupling_layers"):
            check(getattr(self, key) >= 1, f"model.{key}", getattr(self, key), "at least 1 layer")
        for key in ("upper_layers", "decoder_layers"):
            check(getattr(self, key) >= 0, f"model.{key}", getattr(self, key), "0 layers or more")

    def build(self, **sizes: Any) -> "NSM":
        return NSM(self, Sizes(**sizes))


class Level(NamedTuple):
    """One level of a batch: features, graph, and how it was pooled into the next (None at the top)."""

    x: Tensor
    graph: Graph
    contraction: Contraction | None


class NSM(nn.Module):
    """WHY from level to level, a readout over all levels, and WHAT back down to level 1.

    Level l's features x_l pass a coupling f_l, WHY contracts typed edges, relational layers follow: x_{l+1}. WHAT
    undoes it with f_l's own inverse, from the upper level's features and the lower level's structure alone.
    """

    reconstructs = True

    def __init__(self, config: NSMConfig, sizes: Sizes) -> None:
        super().__init__()
        channels, poolings = config.node_features, config.levels - 1
        self.config, self.sizes = config, sizes
        self.encoder = Encoder(channels, sizes)
        self.layers = nn.ModuleList(
            RelationalStack(
                channels,
                sizes.num_relations,
                config.num_bases,
                num_layers=config.upper_layers if level else config.layers,
                dropout=config.dropout,
                query_channels=config.query_features if sizes.has_query else 0,
            )
            for level in range(config.levels)
        )
        self.couplings = nn.ModuleList(AffineCoupling(channels, config.coupling_layers) for _ in range(poolings))
        self.why = nn.ModuleList(
            Why(channels, sizes.num_relations, ratio=config.pool_ratio, level_aware=config.level_aware)
            for _ in range(poolings)
        )
        self.what = nn.ModuleList(
            What(channels, sizes.num_relations, config.num_bases, num_layers=config.decoder_layers)
            for _ in range(poolings)
        )
        self.readout = Readout(channels, sizes, num_levels=config.levels, dropout=config.dropout)

    def forward(self, batch: Batch, *, temperature: float = 1.0) -> ModelOutput:
        """Logits [G, C] and the cycle loss of a batch of samples."""
        levels = self.ascend(batch, temperature)
        logits = self.readout([(level.x, level.graph.batch) for level in levels], batch)
        rebuilt = self.descend(levels, levels[-1].x)
        losses = [standardised_error(x, level.x.detach()) for x, level in zip(rebuilt, levels[:-1], strict=True)]
        return ModelOutput(logits, torch.stack(losses).mean())

    def ascend(self, batch: Batch, temperature: float) -> list[Level]:
        """All levels of a batch, from the observed one to the most abstract."""
        x, graph, rank = self.encoder(batch), graph_of(batch, self.sizes.num_relations), batch.level
        query_type = None
        if self.encoder.role is not None:  # what is asked about outlives everything else
            query_type, (subject, tail) = batch.query_type, batch.query_index
            above = self.encoder.level.num_embeddings
            rank = rank.index_fill(0, tail, above).index_fill(0, subject, above + 1)
        levels = []
        x = self.layers[0](x, graph, query_type)
        for coupling, why, layers in zip(self.couplings, self.why, self.layers[1:], strict=True):
            pooled, pooled_graph, contraction = why(coupling(x), graph, rank, temperature)
            levels.append(Level(x, graph, contraction))
            graph, rank = pooled_graph, rank[contraction.seed]
            x = layers(pooled, graph, query_type)
        return [*levels, Level(x, graph, None)]

    def descend(self, levels: list[Level], top: Tensor) -> list[Tensor]:
        """Features of every level below the top, from level 1, rebuilt from the top's features and the structure."""
        rebuilt = [top]
        for coupling, what, level in reversed(list(zip(self.couplings, self.what, levels[:-1], strict=True))):
            rebuilt.append(what(rebuilt[-1], level.graph, level.contraction, coupling))
        return rebuilt[:0:-1]

    @torch.no_grad()
    def reconstruct(
        self,
        batch: Batch,
        *,
        temperature: float = 1.0,
        shuffle_top: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Level-1 features [N, D] and what the whole way down makes of the top level's features.

        With ``shuffle_top`` the rows of the top level are permuted over all samples of the batch first: if the error
        hardly grows, the way down does not read them.
        """
        levels = self.ascend(batch, temperature)
        top = levels[-1].x
        if shuffle_top:
            top = top[torch.randperm(len(top), generator=generator).to(top.device)]
        return levels[0].x, self.descend(levels, top)[0]


def standardised_error(rebuilt: Tensor, target: Tensor) -> Tensor:
    """Mean over dimensions of squared error by variance, of [N, D]: 0 is exact, 1 no better than the mean."""
    variance = target.float().var(dim=0, unbiased=False)
    return ((rebuilt - target).float().pow(2).mean(dim=0) / (variance + 0.01 * variance.mean() + 1e-12)).mean()
