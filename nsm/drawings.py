"""Samples drawn as graphs, and which of their nodes WHY keeps."""

from collections.abc import Sequence
from textwrap import fill
from typing import Any, NamedTuple

import networkx as nx
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from torch_geometric.data import Batch, Data

from nsm.figures import FAINT, INK, OTHER, PALETTE, styled

LABELLED = 30
"""Triples of a sample at most for the predicates of all to be written along them, not of the thick ones alone."""


class Selection(NamedTuple):
    """What the first WHY does to one sample."""

    kept: set[int]
    """Nodes that the next level has."""
    merged: set[tuple[int, int, int]]
    """Triples (subject, relation, object) along which the others are absorbed."""
    keepers: dict[int, int]
    """Of each absorbed node: the one that is kept in its place."""


@torch.no_grad()
def selection_of(module: Any, sample: Batch) -> Selection | None:
    """What WHY does to a batch of one sample; None for a model without one."""
    if not module.model.reconstructs:
        return None
    level = module.model.ascend(sample, module.temperature)[0]
    (subject, object_), relation = level.graph.edge_index, level.graph.edge_type  # in an order of their own
    triples = torch.stack([subject, relation, object_])[:, level.contraction.edge]
    found = level.contraction
    keepers = dict(zip(found.absorbed.tolist(), found.seed[found.cluster[found.absorbed]].tolist(), strict=True))
    return Selection(set(found.seed.tolist()), set(map(tuple, triples.t().tolist())), keepers)


@styled
def sample_graph(
    sample: Data | Batch,
    relations: Sequence[str],
    entity_types: Sequence[str],
    title: str,
    *,
    selection: Selection | None = None,
) -> Figure:
    """One sample: nodes coloured by type, what is asked about ringed.

    With a selection the nodes that WHY keeps are large and those it absorbs small, with a dashed arrow to the node that
    stands for them; the triples along which it absorbs them, which may point either way, are thick.
    """
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(range(len(sample.x)))
    edges = sample.edge_index.t().tolist()
    graph.add_edges_from(edges)
    place = nx.kamada_kawai_layout(nx.Graph(graph)) if len(sample.x) > 1 else {0: (0.0, 0.0)}
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_title(title)
    kept, merged, keepers = selection or (set(range(len(sample.x))), set(), {})
    for (subject, object_), relation in zip(edges, sample.edge_type.tolist(), strict=True):
        thick = (subject, relation, object_) in merged
        arrow = {"arrowstyle": "-|>", "color": OTHER if thick else FAINT, "linewidth": 2.4 if thick else 0.8}
        arrow |= {"shrinkA": 6, "shrinkB": 7, "connectionstyle": "arc3,rad=0.06"}
        axes.annotate("", place[object_], place[subject], arrowprops=arrow)
        if thick or len(edges) <= LABELLED:
            x, y = ((a + b) / 2 for a, b in zip(place[subject], place[object_], strict=True))
            behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5}
            axes.text(x, y, relations[relation], fontsize=6, ha="center", va="center", color=INK, bbox=behind)
    for absorbed, keeper in keepers.items():
        arrow = {"arrowstyle": "-|>", "color": PALETTE[1], "linewidth": 1.2, "linestyle": (0, (4, 2))}
        arrow |= {"shrinkA": 4, "shrinkB": 8, "connectionstyle": "arc3,rad=-0.25"}
        axes.annotate("", place[keeper], place[absorbed], arrowprops=arrow)
    asked = set(sample.query_index.flatten().tolist()) if "query_index" in sample else set()
    _nodes(axes, sample, place, entity_types, kept, asked)
    if selection is not None:
        note = f"WHY keeps {len(kept)} of {len(sample.x)} nodes (large); "
        note += "each small one is absorbed by the one its dashed arrow leads to, along the thick triples"
        axes.text(0, 0, fill(note, 90), transform=axes.transAxes, fontsize=8, va="top")
    for handle in axes.legend(loc="upper left", bbox_to_anchor=(1, 1)).legend_handles:
        assert isinstance(handle, PathCollection)
        handle.set_sizes([60])  # of a type, whatever becomes of its nodes
        handle.set(edgecolors="white", linewidths=0.5)
    axes.margins(0.08)
    return figure


def _nodes(axes: Axes, sample: Any, place: Any, entity_types: Sequence[str], kept: set[int], asked: set[int]) -> None:
    types = sample.x.tolist()
    present = sorted(set(types))
    for rank, token in enumerate(present):
        nodes = [node for node, of_type in enumerate(types) if of_type == token]
        axes.scatter(
            [place[node][0] for node in nodes],
            [place[node][1] for node in nodes],
            [150 if node in kept else 30 for node in nodes],
            color=PALETTE[rank] if rank < len(PALETTE) else OTHER,
            edgecolors=[INK if node in asked else "white" for node in nodes],
            linewidths=[2 if node in asked else 0.5 for node in nodes],
            label=entity_types[token],
            zorder=3,
        )
