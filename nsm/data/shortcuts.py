"""The shortcut audit: what models too cheap to understand anything reach on the same split."""

import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from nsm.data.progress import Progress
from nsm.data.triples import TripleDataset

VERSION = 1


def majority(train: TripleDataset, test: TripleDataset) -> float:
    """Test accuracy of always answering the class that is more frequent in training."""
    frequent = int(train.column("y").float().mean() >= 0.5)
    return float((test.column("y") == frequent).float().mean())


def predicate_counts(dataset: TripleDataset, num_relations: int) -> np.ndarray:
    """How often each predicate occurs: [G, R]."""
    edges = torch.diff(dataset.slices["edge_type"])
    graph = torch.repeat_interleave(torch.arange(len(edges)), edges)
    key = graph * num_relations + dataset.columns["edge_type"]
    return torch.bincount(key, minlength=len(edges) * num_relations).view(-1, num_relations).numpy()


def graph_statistics(dataset: TripleDataset, num_relations: int, num_types: int) -> np.ndarray:
    """Predicate counts, entity-type counts, sizes, mean and extreme degrees and confidences: [G, F]."""
    columns, nodes, edges = dataset.columns, torch.diff(dataset.slices["x"]), torch.diff(dataset.slices["edge_type"])
    num_graphs = len(nodes)
    node_graph = torch.repeat_interleave(torch.arange(num_graphs), nodes)
    edge_graph = torch.repeat_interleave(torch.arange(num_graphs), edges)
    offset = dataset.slices["x"][:-1].repeat_interleave(edges)
    tables = [torch.as_tensor(predicate_counts(dataset, num_relations)), nodes[:, None], edges[:, None]]
    types = torch.bincount(node_graph * num_types + columns["x"], minlength=num_graphs * num_types)
    tables.append(types.view(num_graphs, num_types))
    for end in (0, 1):
        degree = torch.bincount(columns["edge_index"][end] + offset, minlength=len(node_graph)).float()
        for reduce in ("mean", "amax"):
            tables.append(_reduce(degree, node_graph, num_graphs, reduce))
        if "query_index" in columns:
            for query_end in (0, 1):
                tables.append(degree[columns["query_index"][query_end] + dataset.slices["x"][:-1]][:, None])
    for reduce in ("mean", "amin", "amax"):
        tables.append(_reduce(columns["edge_attr"], edge_graph, num_graphs, reduce))
    return torch.cat([table.double() for table in tables], dim=1).numpy()


def audit(
    train: TripleDataset,
    test: TripleDataset,
    num_relations: int,
    num_types: int,
    local_features: Callable[[TripleDataset], dict[str, np.ndarray]],
) -> dict[str, float]:
    """Fit the cheap models on ``train``, score them on ``test``: accuracy by name.

    ``predicate_counts``: logistic regression on how often each predicate occurs. ``counts_degrees_size``: gradient
    boosting on counts, degrees, sizes and confidences. Then gradient boosting on each of the domain's local features.
    """
    y, y_test = train.column("y").numpy(), test.column("y").numpy()
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a shortcut may stop early: it is a lower bound anyway
        linear.fit(predicate_counts(train, num_relations), y)
    scores = {"predicate_counts": linear.score(predicate_counts(test, num_relations), y_test)}
    tables = {
        "counts_degrees_size": tuple(graph_statistics(part, num_relations, num_types) for part in (train, test)),
    }
    test_features = local_features(test)
    tables |= {name: (table, test_features[name]) for name, table in local_features(train).items()}
    progress = Progress("auditing shortcuts", 1 + len(tables), "cheap models")
    with threadpool_limits(1):  # on busy cores threads wait for one another: two took two to seven times as long
        for name, (features, test_table) in tables.items():
            progress.reached(len(scores))
            boosting = HistGradientBoostingClassifier(max_iter=100, random_state=0).fit(features, y)
            scores[name] = boosting.score(test_table, y_test)
    return {name: float(score) for name, score in scores.items()}


def _reduce(values: torch.Tensor, graph: torch.Tensor, num_graphs: int, reduce: str) -> torch.Tensor:
    return torch.zeros(num_graphs).scatter_reduce(0, graph, values, reduce, include_self=False)[:, None]
