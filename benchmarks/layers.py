"""NSM's relational layer against those of PyG, on the same messages with the same weights.

Shape letters: N nodes, E triples, R relations, B bases, D features.
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.nn import FastRGCNConv, RGCNConv

from benchmarks.stopwatch import now
from nsm.models.rgcn import Graph, RelationalConv

OURS, OURS_ANEW = "NSM, graph prepared", "NSM, graph prepared anew"
CHANNELS = 64
TOLERANCE = 1e-4
"""Allowed difference, as a share of the largest value: float32 sums in another order."""
SELDOM = {FastRGCNConv.__name__: 5}
"""Only one round in so many: this one takes a weight matrix for every message, which is slow where there are many."""


class Shape(NamedTuple):
    """N, E, R and B; both directions of a triple send a message, so that there are 2E messages of 2R types."""

    nodes: int
    triples: int
    relations: int
    bases: int


SHAPES = (Shape(2048, 4000, 16, 8), Shape(4000, 12000, 66, 12))
QUICK_SHAPES = (Shape(64, 150, 3, 2),)
Contestant = Callable[[], dict[str, Tensor]]
"""Forward and backward of a layer: its output and the gradients of the input and of each weight, by name."""


def contestants(shape: Shape, device: str) -> dict[str, Contestant]:
    """The layers, on one graph of certain triples (PyG's have no confidences)."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"device": device}
    edge_index = torch.randint(shape.nodes, (2, shape.triples), **options)
    edge_type = torch.randint(shape.relations, (shape.triples,), **options)
    confidence = torch.ones(shape.triples, **options)
    batch = torch.zeros(shape.nodes, dtype=torch.long, **options)
    x = torch.randn(shape.nodes, CHANNELS, **options, requires_grad=True)
    direction = torch.randn(shape.nodes, CHANNELS, **options)
    both_ways = torch.cat([edge_index, edge_index.flip(0)], dim=1)
    types = torch.cat([edge_type, edge_type + shape.relations])

    def build() -> Graph:
        return Graph.build(
            edge_index=edge_index,
            edge_type=edge_type,
            confidence=confidence,
            batch=batch,
            num_graphs=1,
            num_relations=shape.relations,
        )

    def both(out: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(out, [x, *weights.values()], direction)
        return {"output": out.detach(), **dict(zip(("input", *weights), gradients, strict=True))}

    ours, graph = RelationalConv(CHANNELS, shape.relations, shape.bases).to(device), build()

    def run_ours(graph: Graph) -> dict[str, Tensor]:
        weights = {"bases": ours.bases, "coefficients": ours.coefficients, "bias": ours.root.bias}
        found = both(ours(x, graph), weights | {"root": ours.root.weight})
        return found | {"root": found["root"].t()}

    def pyg(layer: Any) -> Contestant:
        with torch.no_grad():
            layer.weight.copy_(ours.bases)
            layer.comp.copy_(ours.coefficients)
            layer.root.copy_(ours.root.weight.t())
            layer.bias.copy_(ours.root.bias)
        weights = {"bases": layer.weight, "coefficients": layer.comp, "bias": layer.bias, "root": layer.root}
        return lambda: both(layer(x, both_ways, types), weights)

    return {
        OURS: lambda: run_ours(graph),
        OURS_ANEW: lambda: run_ours(build()),
        **{
            kind.__name__: pyg(kind(CHANNELS, CHANNELS, 2 * shape.relations, num_bases=shape.bases).to(device))
            for kind in (RGCNConv, FastRGCNConv)
        },
    }


def check_equal(layers: dict[str, Contestant]) -> None:
    """Prove that all layers compute the same output and gradients.

    Raises:
        ValueError: naming the layer and the quantity in which it differs from the first.
    """
    (_, first), *others = layers.items()
    expected = first()
    for name, layer in others:
        for quantity, value in layer().items():
            error = float((value - expected[quantity]).abs().max() / expected[quantity].abs().max())
            if not error <= TOLERANCE:
                raise ValueError(
                    f"{name} computes something else, and its time says nothing: {quantity} differs by {error:.1e} of "
                    "its largest value"
                )


def race(layers: dict[str, Contestant], *, rounds: int, device: str) -> list[dict[str, float]]:
    """Seconds of each layer in each round; all meet in one round, so that what disturbs it disturbs all of them."""
    found = []
    for number in range(rounds):
        seconds = {}
        entered = [name for name in layers if number % SELDOM.get(name, 1) == 0]
        for name in entered if number % 2 else reversed(entered):
            layers[name]()  # what ran before leaves memory and caches as it liked
            start = now(device)
            layers[name]()
            seconds[name] = now(device) - start
        found.append(seconds)
    return found


def measure_layers(shape: Shape, *, rounds: int, device: str) -> dict[str, Any]:
    """Each layer's time, and how many times as long as NSM's it takes.

    Returns:
        ``shape``, and under ``layers`` for each layer ``ms``, the median over rounds, and ``ratios``: median and
        quartiles over rounds of its time divided by that of each of NSM's two, by name.
    """
    layers = contestants(shape, device)
    check_equal(layers)
    found = race(layers, rounds=rounds, device=device)
    measured = {}
    for name in layers:
        entered = [seconds for seconds in found if name in seconds]
        measured[name] = {
            "ms": 1e3 * statistics.median(seconds[name] for seconds in entered),
            "ratios": {
                ours: spread([seconds[name] / seconds[ours] for seconds in entered])
                for ours in (OURS, OURS_ANEW)
                if name not in (OURS, ours)
            },
        }
    return {"shape": shape._asdict(), "layers": measured}


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {"median": median, "low": low, "high": high}
