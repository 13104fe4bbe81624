"""Relational graph convolution with basis decomposition and confidence-weighted messages.

Shape letters: N nodes, E triples, M = 2E messages (each triple sends one along and one against its direction),
R relations, S = 2R message types (relations and their inverses), B bases, D features.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Graph(NamedTuple):
    """The graph of one level of one batch, its messages sorted by type so that one grouped product serves them all."""

    source: Tensor
    """[M] node a message comes from."""
    target: Tensor
    """[M] node it goes to."""
    message_type: Tensor
    """[M] relation, or R + relation for the message against the triple's direction; ascending."""
    offsets: Tensor
    """[S] int32, where each type's messages end."""
    weight: Tensor
    """[M] confidence divided by the number of messages of that type into that target."""
    batch: Tensor
    """[N] sample of each node, ascending."""
    num_graphs: int
    num_relations: int
    edge_index: Tensor
    """[2, E] ends of each triple, triples sorted by relation."""
    edge_type: Tensor
    """[E] relation of each triple, ascending."""
    confidence: Tensor
    """[E] sum of the confidences of the triples merged into this one."""
    multiplicity: Tensor
    """[E] how many those were."""

    @property
    def num_nodes(self) -> int:
        return self.batch.numel()

    @classmethod
    def build(
        cls,
        *,
        edge_index: Tensor,
        edge_type: Tensor,
        confidence: Tensor,
        batch: Tensor,
        num_graphs: int,
        num_relations: int,
        multiplicity: Tensor | None = None,
    ) -> "Graph":
        """Prepare what every layer of this level needs.

        Args:
            edge_index: [2, E] ends of the triples; edge_type: [E]; confidence: [E]; batch: [N].
            multiplicity: [E] triples merged into each; one by default.
        """
        edge_type, order = torch.sort(edge_type, stable=True)
        edge_index, confidence = edge_index[:, order], confidence[order]
        multiplicity = torch.ones_like(confidence) if multiplicity is None else multiplicity[order]
        message_type = torch.cat([edge_type, edge_type + num_relations])
        source, target = torch.cat([edge_index, edge_index.flip(0)], dim=1)
        num_types = 2 * num_relations
        offsets = torch.searchsorted(message_type, torch.arange(num_types, device=source.device), right=True)
        slot = target * num_types + message_type
        count = torch.zeros(batch.numel() * num_types, device=source.device, dtype=confidence.dtype)
        count.index_add_(0, slot, multiplicity.repeat(2))
        weight = confidence.repeat(2) / count.index_select(0, slot)
        return cls(
            source=source,
            target=target,
            message_type=message_type,
            offsets=offsets.int(),
            weight=weight,
            batch=batch,
            num_graphs=num_graphs,
            num_relations=num_relations,
            edge_index=edge_index,
            edge_type=edge_type,
            confidence=confidence,
            multiplicity=multiplicity,
        )


class RelationalConv(nn.Module):
    r"""Relational convolution (Schlichtkrull et al., 2018, arXiv:1703.06103), with confidences.

    .. math::
        h_i = W_0 x_i + \sum_{e: j \to i} \frac{w_e g_e}{c_{i, r_e}} W_{r_e} x_j,
        \qquad W_r = \sum_b a_{rb} V_b

    over triples and their inverses; :math:`c_{i,r}` counts the messages of type r into i, so that the confidence
    :math:`w_e` keeps its magnitude; :math:`g_e` is an optional gate.

    The messages are sorted by type, so that all products with the W_r are one grouped matrix product of M x D x D
    multiplications; transforming each node by each relation (or basis) takes N x S x D x D (or N x B x D x D).

    Args:
        channels: D.
        num_relations: R; the layer has 2R message types.
        num_bases: B.
    """

    def __init__(self, channels: int, num_relations: int, num_bases: int) -> None:
        super().__init__()
        self.bases = nn.Parameter(torch.empty(num_bases, channels, channels))
        self.coefficients = nn.Parameter(torch.empty(2 * num_relations, num_bases))
        self.root = nn.Linear(channels, channels)
        for basis in self.bases.data:
            nn.init.xavier_uniform_(basis)
        nn.init.normal_(self.coefficients, std=num_bases**-0.5)

    def forward(self, x: Tensor, graph: Graph, gate: Tensor | None = None) -> Tensor:
        """[N, D] and the level's graph, with an optional gate [M] for each message, to [N, D]."""
        num_bases, channels, _ = self.bases.shape
        weights = (self.coefficients @ self.bases.view(num_bases, -1)).view(-1, channels, channels)
        sent = x.index_select(0, graph.source)
        if torch.is_autocast_enabled(x.device.type):  # autocast does not know grouped_mm
            dtype = torch.get_autocast_dtype(x.device.type)
            sent, weights = sent.to(dtype), weights.to(dtype)
        messages = F.grouped_mm(sent, weights, offs=graph.offsets)
        scale = graph.weight if gate is None else graph.weight * gate
        out = self.root(x)
        return out.index_add(0, graph.target, (messages * scale[:, None]).to(out.dtype))


class RelationalStack(nn.Module):
    """Residual layers x + Dropout(ReLU(LayerNorm(conv(x)))), gated by the predicate that is asked about.

    Args:
        channels: D. num_relations: R. num_bases: B. num_layers: none is allowed. dropout: probability.
        query_channels: size of the inner product that gates a message by (predicate asked about, message type); 0 for
            domains whose label is about the whole graph.
    """

    def __init__(
        self,
        channels: int,
        num_relations: int,
        num_bases: int,
        *,
        num_layers: int,
        dropout: float = 0.0,
        query_channels: int = 0,
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(RelationalConv(channels, num_relations, num_bases) for _ in range(num_layers))
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(num_layers))
        self.gates = nn.ModuleList(
            QueryGate(num_relations, query_channels) for _ in range(num_layers if query_channels else 0)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, graph: Graph, query_type: Tensor | None = None) -> Tensor:
        """[N, D], the level's graph and the predicate asked about [G], if one is, to [N, D]."""
        gates = [gate(graph, query_type) for gate in self.gates] or [None] * len(self.convs)
        for conv, norm, gate in zip(self.convs, self.norms, gates, strict=True):
            x = x + self.dropout(F.relu(norm(conv(x, graph, gate))))
        return x


class QueryGate(nn.Module):
    """How much a message of each type matters for the predicate asked about: 2 sigmoid(q . k), 1 at the start."""

    def __init__(self, num_relations: int, channels: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(num_relations, channels))
        self.key = nn.Parameter(torch.randn(2 * num_relations, channels))

    def forward(self, graph: Graph, query_type: Tensor) -> Tensor:
        """[G] predicates to [M] factors between 0 and 2."""
        table = 2 * torch.sigmoid(self.query @ self.key.t())
        query = query_type.index_select(0, graph.batch.index_select(0, graph.source))
        return table.flatten().index_select(0, query * table.shape[1] + graph.message_type)
