"""WHY pools a level to a more abstract one, WHAT unpools it back; relation types survive both.

WHY contracts typed edges: in each round every cluster looks along its best-scoring edge; pairs that choose each other
merge, clusters whose choice lies in a more senior such pair join it, until the wanted share of nodes remains.

Shape letters: N nodes and E triples of the lower level, C clusters (nodes of the upper level), A = N - C absorbed
nodes, R relations, D features, G samples.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from nsm.models.coupling import AffineCoupling
from nsm.models.rgcn import Graph, RelationalStack


class Contraction(NamedTuple):
    """Which nodes were merged, and along which triples."""

    cluster: Tensor
    """[N] upper-level node of each node."""
    seed: Tensor
    """[C] the node that each cluster grew from."""
    absorbed: Tensor
    """[A] the nodes that are no seeds."""
    edge: Tensor
    """[A] the triple along which each was absorbed (a position in the lower level's edges)."""
    message_type: Tensor
    """[A] its relation if the absorbed node was the subject, R + relation if it was the object."""


@torch.no_grad()
def contract(graph: Graph, *, order: Tensor, seniority: Tensor, ratio: float, max_rounds: int = 16) -> Contraction:
    """Contract the best edges until ceil(ratio * N) nodes of each sample remain.

    Parallel rounds of mutual-best matching with absorption. A sample whose triples do not connect it keeps at least one
    node for each component, however small the ratio.

    Args:
        graph: the lower level.
        order: [E] strict ranks of the triples; the highest are contracted first.
        seniority: [N] strict ranks of the nodes; of a pair that merges the higher one becomes the seed.
        ratio: share of nodes that remain, in (0, 1].
    """
    device, (head, tail) = order.device, graph.edge_index
    nodes = torch.arange(graph.num_nodes, device=device)
    sizes = torch.bincount(graph.batch, minlength=graph.num_graphs)
    budget = sizes - torch.ceil(ratio * sizes - 1e-6).long()

    cluster = nodes.clone()  # the seed of each node's cluster
    merged_along = torch.full_like(nodes, -1)
    merged_head = torch.zeros_like(nodes, dtype=torch.bool)
    for _ in range(max_rounds):
        first, second = cluster[head], cluster[tail]
        open_edges = ((first != second) & (budget[graph.batch[head]] > 0)).nonzero().squeeze(1)
        if not len(open_edges):
            break
        first, second, strength = first[open_edges], second[open_edges], order[open_edges]
        best = torch.full_like(nodes, -1)
        best.scatter_reduce_(0, first, strength, "amax").scatter_reduce_(0, second, strength, "amax")
        by_first, by_second = best[first] == strength, best[second] == strength
        mutual = by_first & by_second
        senior = torch.full_like(nodes, -1)  # seniority of the pair that a cluster is in
        senior[first[mutual]] = senior[second[mutual]] = torch.maximum(seniority[first], seniority[second])[mutual]
        first_joins = by_first & ~by_second & (seniority[first] < senior[second])
        second_joins = by_second & ~by_first & (seniority[second] < senior[first])
        chosen = (mutual | first_joins | second_joins).nonzero().squeeze(1)
        # the best merges of each sample that its budget allows, pairs before joiners
        sample = graph.batch[first[chosen]]
        priority = mutual[chosen].long() * len(order) + strength[chosen]
        chosen = chosen[torch.argsort(priority, descending=True)]
        sample, by_sample = torch.sort(graph.batch[first[chosen]], stable=True)
        chosen = chosen[by_sample]
        place = torch.arange(len(sample), device=device) - torch.searchsorted(sample, sample)
        chosen = chosen[place < budget[sample]]
        in_pair = seniority[first[chosen]] < seniority[second[chosen]]
        head_gives_way = torch.where(mutual[chosen], in_pair, first_joins[chosen])
        leaving = torch.where(head_gives_way, first[chosen], second[chosen])
        staying = torch.where(head_gives_way, second[chosen], first[chosen])
        merged_along[leaving] = open_edges[chosen]
        merged_head[leaving] = head_gives_way
        parent = nodes.clone()
        parent[leaving] = staying
        cluster = parent[parent[cluster]]
        budget = budget - torch.bincount(graph.batch[leaving], minlength=graph.num_graphs)

    is_seed = cluster == nodes
    seed, absorbed = is_seed.nonzero().squeeze(1), (~is_seed).nonzero().squeeze(1)
    edge = merged_along[absorbed]
    message_type = graph.edge_type[edge] + graph.num_relations * (~merged_head[absorbed])
    upper = torch.cumsum(is_seed, 0) - 1
    return Contraction(upper[cluster], seed, absorbed, edge, message_type)


def pooled_graph(graph: Graph, contraction: Contraction) -> Graph:
    """The upper level's graph: triples keep their relation, parallel ones coalesce, those inside a cluster go."""
    num_clusters = contraction.seed.numel()
    head, tail = contraction.cluster[graph.edge_index]
    between = (head != tail).nonzero().squeeze(1)
    key = (graph.edge_type[between] * num_clusters + head[between]) * num_clusters + tail[between]
    key, slot = torch.unique(key, return_inverse=True)
    sums = graph.confidence.new_zeros(2, key.numel())
    sums.index_add_(1, slot, torch.stack([graph.confidence, graph.multiplicity])[:, between])
    pair = key % (num_clusters * num_clusters)
    return Graph.build(
        edge_index=torch.stack([pair // num_clusters, pair % num_clusters]),
        edge_type=key // (num_clusters * num_clusters),
        confidence=sums[0],
        multiplicity=sums[1],
        batch=graph.batch[contraction.seed],
        num_graphs=graph.num_graphs,
        num_relations=graph.num_relations,
    )


class Why(nn.Module):
    r"""Pool by typed edge contraction.

    .. math::
        s_{urv} = p(y_u) + q(y_v) + e_r, \qquad
        x_c = y_{seed} + \sum_{v\ absorbed} 2\sigma(s_v / \tau) \, m_{t_v}(W y_v)

    where :math:`s_v` is the score and :math:`t_v` the type (relation and direction) of the triple along which v was
    absorbed, and m scales and shifts by type. Gradients reach p, q and e through the gates; the temperature
    :math:`\tau` sharpens them. Of two nodes that merge the one of higher rank becomes the seed: a node's rank is its
    level of abstraction, and nodes that are asked about rank above all levels.

    Args:
        channels: D. num_relations: R. ratio: share of nodes that remain, in (0, 1].
        level_aware: contract triples between two abstract nodes (rank above 1) after all others.
    """

    def __init__(self, channels: int, num_relations: int, *, ratio: float, level_aware: bool) -> None:
        super().__init__()
        self.ratio = ratio
        self.level_aware = level_aware
        self.score = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, 2))  # keeps the gates from saturating
        self.relation_score = nn.Parameter(torch.zeros(num_relations))
        self.member = nn.Linear(channels, channels, bias=False)
        self.merge = MergeType(channels, num_relations)

    def forward(self, y: Tensor, graph: Graph, rank: Tensor, temperature: float) -> tuple[Tensor, Graph, Contraction]:
        """Pool features y [N, D] of nodes with ranks [N]: features [C, D] and graph of the upper level, and how."""
        head, tail = graph.edge_index
        as_subject, as_object = self.score(y).unbind(dim=-1)
        score = as_subject[head] + as_object[tail] + self.relation_score[graph.edge_type]
        abstract = (rank > 1) & self.level_aware
        contraction = contract(
            graph,
            order=_ranks(~(abstract[head] & abstract[tail]), score),
            seniority=_ranks(rank, as_subject + as_object),
            ratio=self.ratio,
        )
        gate = 2 * torch.sigmoid(score[contraction.edge] / temperature)
        members = self.merge(self.member(y[contraction.absorbed]), contraction.message_type)
        pooled = y[contraction.seed].index_add(
            0, contraction.cluster[contraction.absorbed], (gate[:, None] * members).to(y.dtype)
        )
        return pooled, pooled_graph(graph, contraction), contraction


class What(nn.Module):
    """Unpool: rebuild the lower level's features from the upper level's, the lower level's structure, nothing else.

    Seeds and absorbed nodes get their cluster's features by maps of their own, absorbed ones also the type of the
    triple they were merged along; then the triples of the lower level spread what was rebuilt.
    """

    def __init__(self, channels: int, num_relations: int, num_bases: int, *, num_layers: int) -> None:
        super().__init__()
        self.seed = nn.Linear(channels, channels)
        self.member = nn.Linear(channels, channels)
        self.merge = MergeType(channels, num_relations)
        self.layers = RelationalStack(channels, num_relations, num_bases, num_layers=num_layers)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, graph: Graph, contraction: Contraction, coupling: AffineCoupling) -> Tensor:
        """Upper level features [C, D] and the lower one's structure and coupling to lower level features [N, D]."""
        members = x[contraction.cluster[contraction.absorbed]]
        members = self.member(self.merge(members, contraction.message_type))
        out = members.new_zeros(graph.num_nodes, x.shape[1])
        out = out.index_copy(0, contraction.seed, self.seed(x).to(out.dtype))
        out = out.index_copy(0, contraction.absorbed, members)
        return coupling.inverse(self.out(self.layers(out, graph)))


class MergeType(nn.Module):
    """Scale and shift features by the type of the triple along which a node was absorbed.

    Different types are written to, and read from, different directions of the cluster's features.
    """

    def __init__(self, channels: int, num_relations: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + 0.5 * torch.randn(2 * num_relations, channels))
        self.shift = nn.Parameter(0.1 * torch.randn(2 * num_relations, channels))

    def forward(self, x: Tensor, message_type: Tensor) -> Tensor:
        """[A, D] and types [A] to [A, D]."""
        return x * self.scale.index_select(0, message_type) + self.shift.index_select(0, message_type)


@torch.no_grad()
def _ranks(first: Tensor, second: Tensor) -> Tensor:
    """Strict ranks from 0 by ``first``, ties by ``second``, then by position: [K] each to [K]."""
    by_second = torch.argsort(second, stable=True)
    by_both = by_second[torch.argsort(first.long()[by_second], stable=True)]
    ranks = torch.empty_like(by_both)
    ranks[by_both] = torch.arange(len(by_both), device=by_both.device)
    return ranks
