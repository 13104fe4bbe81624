"""How sure a test figure is: percentile intervals from resampled instances.

Samples of one patient, problem or world resemble each other, so whole instances are drawn (the cluster bootstrap:
Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).

Shape letters: G samples, K instances, B resamplings.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NUM_BINS = 15
"""Bins of the calibration error, as in :func:`nsm.metrics.prediction_metrics`."""
FEW = 20
"""Instances from which on an interval is given."""
CHUNK = 64
"""Resamplings that are worked on at once, which bounds the memory to CHUNK x G numbers."""


class Interval(NamedTuple):
    """A figure and the bounds between which 95 % of its resampled values lie; None where it is not defined.

    Without bounds where fewer than :data:`FEW` instances stand behind it: what so few would give looks sure and is not.
    """

    value: float | None
    low: float | None
    high: float | None


def classification_figures(probability: Array, answer: NDArray[np.int64], y: Array, weight: Array) -> dict[str, Array]:
    """Figures of P(y = 1) and answers [G] against y [G], weighted as in each row of ``weight`` [B, G]: name to [B].

    The figures and names of :func:`nsm.metrics.prediction_metrics`, and ``log_loss`` and ``brier`` (the mean squared
    error of the probability).
    """
    mean = _mean(weight)
    class_0, class_1 = mean(answer == 0, y == 0), mean(answer == 1, y == 1)
    clipped = np.clip(np.where(y == 1, probability, 1 - probability), 1e-7, 1)
    return {
        "accuracy": mean(answer == y),
        "accuracy_class_0": class_0,
        "accuracy_class_1": class_1,
        "balanced_accuracy": (class_0 + class_1) / 2,
        "auroc": _auroc(probability, y, weight),
        "ece": _calibration_error(probability, y, weight),
        "log_loss": mean(-np.log(clipped)),
        "brier": mean((probability - y) ** 2),
    }


def accuracy_figures(right: NDArray[np.bool_], weight: Array) -> dict[str, Array]:
    """Accuracy alone, of answers that are right or not [G]."""
    return {"accuracy": _mean(weight)(right)}


def regression_figures(prediction: Array, target: Array, weight: Array) -> dict[str, Array]:
    """Mean squared and absolute error and explained variance, weighted as in each row of ``weight``: name to [B]."""
    mean = _mean(weight)
    mse, centre = mean((prediction - target) ** 2), mean(target)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = 1 - mse / (mean(target**2) - centre**2)
    return {"mse": mse, "mae": mean(np.abs(prediction - target)), "r2": r2}


def bootstrap(
    figures: Callable[[Array], Mapping[str, Array]], instance: NDArray[np.int64], *, resamples: int, seed: int = 0
) -> dict[str, Interval]:
    """Figures with 95 % intervals.

    Args:
        figures: from weights of the samples [B, G] to figures by name, [B] each.
        instance: [G] which samples are drawn together.
        resamples: how often as many instances as there are, are drawn with replacement.
    """
    known, position = np.unique(instance, return_inverse=True)
    rng = np.random.default_rng(seed)
    value = {name: array[0] for name, array in figures(np.ones((1, len(position)))).items()}
    parts: dict[str, list[Array]] = {name: [] for name in value}
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = rng.multinomial(len(known), np.full(len(known), 1 / len(known)), size=rows)
        for name, array in figures(drawn[:, position].astype(np.float64)).items():
            parts[name].append(array)
    return {name: _interval(value[name], np.concatenate(arrays), len(known)) for name, arrays in parts.items()}


def half_samples(
    figures: Callable[[Mapping[str, NDArray[np.int64]]], Mapping[str, float]],
    instances: Mapping[str, NDArray[np.int64]],
    *,
    resamples: int,
    seed: int = 0,
) -> dict[str, Interval]:
    """Figures of several sets at once, with 95 % intervals from random halves of the instances.

    For figures that repeated samples would spoil, such as ranks. The figure of a random half scatters around the
    figure of all by what a bootstrap scatters (the delete-half jackknife: Shao and Wu 1989, Ann. Statist. 17:1176).

    Args:
        figures: from the positions of the samples used, by set, to figures by name.
        instances: [G] of each set; an instance that several sets share is drawn for all or none.
        resamples: number of halves.
    """
    rng = np.random.default_rng(seed)
    known = np.unique(np.concatenate(list(instances.values())))
    value = figures({name: np.arange(len(instance)) for name, instance in instances.items()})
    if len(known) < FEW:
        return {name: Interval(figure, None, None) for name, figure in value.items()}
    drawn: dict[str, list[float]] = {name: [] for name in value}
    for _ in range(resamples):
        half = rng.permutation(known)[: len(known) // 2]
        rows = {name: np.flatnonzero(np.isin(instance, half)) for name, instance in instances.items()}
        if all(len(positions) for positions in rows.values()):
            found = figures(rows)
            for name in drawn:
                drawn[name].append(found.get(name, np.nan))
    return {name: _interval(value[name], np.array(array), len(known)) for name, array in drawn.items()}


def _mean(weight: Array) -> Callable[..., Array]:
    """Weighted means of [G], over all samples or those where ``of`` holds: [B], NaN where no sample counts."""

    def mean(values: NDArray, of: NDArray | float = 1.0) -> Array:
        chosen = np.broadcast_to(np.asarray(of, dtype=np.float64), values.shape)
        with np.errstate(invalid="ignore"):
            return (weight @ (values * chosen)) / (weight @ chosen)

    return mean


def _auroc(probability: Array, y: Array, weight: Array) -> Array:
    """Probability that a random positive scores above a random negative, ties counted half: [B]."""
    order = np.argsort(probability)
    starts = np.flatnonzero(np.diff(probability[order], prepend=-np.inf))
    positive, negative = (np.add.reduceat((weight * (y == label))[:, order], starts, axis=1) for label in (1, 0))
    below = negative.cumsum(axis=1) - negative
    with np.errstate(invalid="ignore"):
        return (positive * (below + negative / 2)).sum(axis=1) / (positive.sum(axis=1) * negative.sum(axis=1))


def _calibration_error(probability: Array, y: Array, weight: Array) -> Array:
    """Expected calibration error over equally wide bins: [B]."""
    gap = (probability - y)[:, None] * np.eye(NUM_BINS)[bin_of(probability)]
    return np.abs(weight @ gap).sum(axis=1) / weight.sum(axis=1)


def bin_of(probability: Array) -> NDArray[np.int64]:
    """Which of :data:`NUM_BINS` equally wide bins a probability lies in; a bin holds its lower bound."""
    return np.clip(np.digitize(probability, np.linspace(0, 1, NUM_BINS + 1)) - 1, 0, NUM_BINS - 1)


def _interval(value: float, resampled: Array, instances: int) -> Interval:
    finite = resampled[np.isfinite(resampled)]
    sure = len(finite) and instances >= FEW
    low, high = np.percentile(finite, [2.5, 97.5]).tolist() if sure else (None, None)
    return Interval(float(value) if np.isfinite(value) else None, low, high)
