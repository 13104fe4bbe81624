"""Intervals: the figures against scikit-learn's and torchmetrics', their width against what is known."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, log_loss, r2_score, roc_auc_score

from nsm.intervals import (
    Interval,
    accuracy_figures,
    bootstrap,
    classification_figures,
    half_samples,
    regression_figures,
)
from nsm.metrics import prediction_metrics

rng = np.random.default_rng(0)
SCORES, LABELS = rng.random(300).round(1), rng.integers(0, 2, 300)  # rounded, so that scores tie


def test_figures_are_those_of_the_run_when_samples_weigh_the_same() -> None:
    figures = classification_figures(SCORES, SCORES > 0.5, LABELS, np.ones((1, 300)))
    measured = prediction_metrics("classification", "")
    measured.update(torch.as_tensor(SCORES), torch.as_tensor(LABELS))
    for name, value in measured.compute().items():
        assert figures[name][0] == pytest.approx(float(value), abs=1e-6), name


def test_figures_weigh_samples_as_scikit_learn_does() -> None:
    weight = rng.multinomial(300, np.full(300, 1 / 300), size=3).astype(float)
    clipped = SCORES.clip(0.05, 0.95)
    figures = classification_figures(clipped, clipped > 0.5, LABELS, weight)
    for row, counts in enumerate(weight):
        assert figures["auroc"][row] == pytest.approx(roc_auc_score(LABELS, clipped, sample_weight=counts))
        answer = clipped > 0.5
        balanced = balanced_accuracy_score(LABELS, answer, sample_weight=counts)
        assert figures["balanced_accuracy"][row] == pytest.approx(balanced)
        assert figures["log_loss"][row] == pytest.approx(log_loss(LABELS, clipped, sample_weight=counts))
        assert figures["brier"][row] == pytest.approx(brier_score_loss(LABELS, clipped, sample_weight=counts))
        numbers = regression_figures(clipped, SCORES**2, weight)
        assert numbers["r2"][row] == pytest.approx(r2_score(SCORES**2, clipped, sample_weight=counts))


def test_interval_of_an_accuracy_is_as_wide_as_the_binomial_one() -> None:
    right = np.arange(2000) < 1600
    found = bootstrap(partial(accuracy_figures, right), np.arange(2000), resamples=4000)["accuracy"]
    half_width = 1.96 * (0.8 * 0.2 / 2000) ** 0.5
    assert found.value == 0.8
    assert (found.low, found.high) == pytest.approx((0.8 - half_width, 0.8 + half_width), abs=0.15 * half_width)


def test_samples_of_one_instance_are_drawn_together() -> None:
    """Ten copies of each sample say no more than one: the interval must not shrink."""
    right = rng.random(100) < 0.7
    alone = bootstrap(partial(accuracy_figures, right), np.arange(100), resamples=2000)["accuracy"]
    copied = partial(accuracy_figures, np.repeat(right, 10))
    together = bootstrap(copied, np.repeat(np.arange(100), 10), resamples=2000)["accuracy"]
    apart = bootstrap(copied, np.arange(1000), resamples=2000)["accuracy"]
    assert together == pytest.approx(alone)
    assert apart.high - apart.low < 0.5 * (together.high - together.low)


def test_halves_are_as_wide_as_the_bootstrap() -> None:
    values = rng.normal(size=400)
    found = half_samples(
        lambda rows: {"mean": float(values[rows["test"]].mean())}, {"test": np.arange(400)}, resamples=4000
    )["mean"]
    half_width = 1.96 * values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half_width, rel=0.1)


def test_halves_take_an_instance_from_all_sets_or_none() -> None:
    sets = {"test": np.array([0, *range(40)]), "do": np.arange(40)[::-1]}

    def figures(rows: dict[str, np.ndarray]) -> dict[str, float]:
        assert {*sets["test"][rows["test"]]} == {*sets["do"][rows["do"]]}
        return {"size": len(rows["do"])}

    assert half_samples(figures, sets, resamples=50)["size"] == Interval(40, 20, 20)


def test_what_is_not_defined_is_said_to_be_so() -> None:
    answer = SCORES[:30] > 0.5
    found = bootstrap(partial(classification_figures, SCORES[:30], answer, np.ones(30)), np.arange(30), resamples=10)
    assert found["accuracy_class_0"] == found["auroc"] == Interval(None, None, None)
    assert found["accuracy"].low is not None
    one = half_samples(lambda rows: {"mrr": 0.5}, {"test": np.zeros(3, dtype=int)}, resamples=10)
    assert one["mrr"] == Interval(0.5, None, None)


def test_few_instances_give_no_interval_however_many_samples_they_have() -> None:
    right = rng.random(3000) < 0.7
    for instances, known in ((19, False), (20, True)):
        instance = np.arange(3000) % instances
        found = bootstrap(partial(accuracy_figures, right), instance, resamples=50)["accuracy"]
        assert found.value == right.mean()
        halved = half_samples(
            lambda rows: {"mean": float(right[rows["test"]].mean())}, {"test": instance}, resamples=50
        )["mean"]
        for interval in (found, halved):
            assert (interval.low is not None, interval.high is not None) == (known, known)
