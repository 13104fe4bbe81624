"""What a model's predictions on one set are worth: figures with intervals, calibration, breakdowns, worst mistakes."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import classification_report, confusion_matrix
from torch import Tensor

from nsm.data.datamodule import TripleDataModule
from nsm.data.triples import Triple, TripleDataset, triples_of
from nsm.intervals import (
    NUM_BINS,
    Interval,
    accuracy_figures,
    bin_of,
    bootstrap,
    classification_figures,
    half_samples,
    regression_figures,
)

RESAMPLES, HALVES = 1000, 200


def score_set(
    datamodule: TripleDataModule, dataset: TripleDataset, prediction: Tensor, answer: Tensor, task: str
) -> dict[str, Any]:
    """Everything that the predictions and answers [G] on one set say, as plain values."""
    numbers, instance = prediction.double().numpy(), dataset.column("instance").numpy()
    scored: dict[str, Any] = {"samples": len(dataset), "instances": len(np.unique(instance))}
    if task == "regression":
        target = dataset.column("target").double().numpy()
        figures = partial(regression_figures, numbers, target)
        return {**scored, "metrics": _plain(bootstrap(figures, instance, resamples=RESAMPLES))}
    y = dataset.column("y").numpy()
    answered = answer.numpy().astype(np.int64)
    figures = partial(classification_figures, numbers, answered, y)
    return {
        **scored,
        "metrics": _plain(bootstrap(figures, instance, resamples=RESAMPLES)),
        "confusion": confusion_counts(answered, y),
        "report": classification_report(y, answered, labels=[0, 1], output_dict=True, zero_division=0.0),
        "calibration": calibration_bins(numbers, y),
        "breakdowns": {
            name: [
                {"group": group, "samples": samples, "accuracy": interval._asdict()}
                for group, samples, interval in _by_group(answered == y, codes.numpy(), names, instance)
            ]
            for name, (codes, names) in datamodule.breakdowns(dataset).items()
            if len(codes.unique()) > 1
        },
    }


def confusion_counts(answer: NDArray[np.int64], y: NDArray[np.int64]) -> list[list[int]]:
    """Samples by true class (rows) and answer (columns)."""
    counts: list[list[int]] = confusion_matrix(y, answer, labels=[0, 1]).tolist()
    return counts


def calibration_bins(probability: NDArray[np.float64], y: NDArray[np.int64]) -> list[dict[str, Any]]:
    """For equally wide bins of P(y = 1): bounds, how many samples, their mean probability and share of class 1."""
    bins, edges = bin_of(probability), np.linspace(0, 1, NUM_BINS + 1)
    rows = []
    for number in range(NUM_BINS):
        inside = bins == number
        rows.append(
            {
                "low": float(edges[number]),
                "high": float(edges[number + 1]),
                "count": int(inside.sum()),
                "probability": float(probability[inside].mean()) if inside.any() else None,
                "frequency": float(y[inside].mean()) if inside.any() else None,
            }
        )
    return rows


def domain_figures(datamodule: TripleDataModule, probabilities: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The domain's own figures of its test sets, with intervals from random halves of their instances."""
    sets = datamodule.test_sets

    def figures(rows: Mapping[str, NDArray[np.int64]]) -> Mapping[str, float]:
        view = copy.copy(datamodule)
        parts = {name: sets[name].index_select(positions.tolist()) for name, positions in rows.items()}
        view.test_set, view.extra_sets = parts["test"], {name: parts[name] for name in parts if name != "test"}
        return view.metrics({name: probabilities[name][positions] for name, positions in rows.items()})

    instances = {name: dataset.column("instance").numpy() for name, dataset in sets.items()}
    return _plain(half_samples(figures, instances, resamples=HALVES))


def worst_mistakes(
    datamodule: TripleDataModule, dataset: TripleDataset, probability: Tensor, answer: Tensor, count: int
) -> list[dict[str, Any]]:
    """Of the wrong answers, those whose true class was given the least probability, readable, at most ``count``.

    What lies nearest to the pair of nodes that is asked about stands first among the triples.
    """
    y = dataset.column("y")
    given = probability.where(y == 1, 1 - probability)
    wrong = (answer != (y == 1)).nonzero().flatten()
    groupings = datamodule.breakdowns(dataset)
    mistakes = []
    for position in wrong[given[wrong].argsort(stable=True)][:count].tolist():
        sample, names = dataset[position], datamodule.names(dataset, position)
        triples = triples_of(sample, datamodule.relations, names)
        question, steps = None, dict.fromkeys(names, 0)
        if "query_index" in sample:
            subject, object_ = (names[node] for node in sample.query_index[:, 0])
            relation = datamodule.relations[int(sample.query_type)]
            question = datamodule.question.format(subject=subject, relation=relation, object=object_)
            steps = _steps_from((subject, object_), triples)
        mistakes.append(
            {
                "position": position,
                "instance": int(sample.instance),
                "y": int(y[position]),
                "probability": float(probability[position]),
                "groups": {name: names[codes[position]] for name, (codes, names) in groupings.items()},
                "question": question,
                "triples": [
                    f"{t.subject} {t.predicate} {t.object}" + ("" if t.confidence == 1 else f" ({t.confidence:.2f})")
                    for t in sorted(
                        triples,
                        key=lambda t: (steps[t.subject] + steps[t.object], t.level, t.predicate, t.subject),
                    )
                ],
            }
        )
    return mistakes


def _steps_from(ends: Iterable[str], triples: Sequence[Triple]) -> dict[str, int]:
    """Triples between each node and the nearer of the ends; all that there are, where none leads to a node."""
    steps = dict.fromkeys((node for triple in triples for node in (triple.subject, triple.object)), len(triples))
    steps |= dict.fromkeys(ends, 0)
    for distance in range(1, len(triples)):
        reached = {
            there
            for triple in triples
            for here, there in ((triple.subject, triple.object), (triple.object, triple.subject))
            if steps[here] == distance - 1 and steps[there] > distance
        }
        if not reached:
            break
        steps |= dict.fromkeys(reached, distance)
    return steps


def _by_group(
    right: NDArray[np.bool_], codes: NDArray[np.int64], names: tuple[str, ...], instance: NDArray[np.int64]
) -> list[tuple[str, int, Interval]]:
    """Group, samples and accuracy of every group that occurs."""
    found = []
    for code in np.unique(codes).tolist():
        inside = codes == code
        interval = bootstrap(partial(accuracy_figures, right[inside]), instance[inside], resamples=RESAMPLES)
        found.append((names[code], int(inside.sum()), interval["accuracy"]))
    return found


def _plain(figures: Mapping[str, Interval]) -> dict[str, dict[str, Any]]:
    return {name: interval._asdict() for name, interval in figures.items()}
