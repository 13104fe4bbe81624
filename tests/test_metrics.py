"""Metrics against scikit-learn and direct computation."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, r2_score, recall_score, roc_auc_score

from nsm.metrics import UnexplainedVariance, collapsed, positive_probability, prediction_metrics


def test_one_logit_and_two_give_the_same_probability() -> None:
    logit = torch.randn(50, generator=torch.Generator().manual_seed(0))
    two = torch.stack([torch.full_like(logit, 0.7), logit + 0.7], dim=1)
    torch.testing.assert_close(positive_probability(two), torch.sigmoid(logit))
    torch.testing.assert_close(positive_probability(logit[:, None]), torch.sigmoid(logit))


def test_classification_metrics_against_sklearn() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    probability = np.clip(0.3 * y + rng.random(300) * 0.7, 0, 1).astype(np.float32)
    metrics = prediction_metrics("link_prediction", "val/")
    for rows in np.array_split(np.arange(300), 7):
        metrics.update(torch.as_tensor(probability[rows]), torch.as_tensor(y[rows]))
    found = {key: float(value) for key, value in metrics.compute().items()}
    guess = probability >= 0.5
    recall = recall_score(y, guess, average=None)
    edges = np.linspace(0, 1, 16)
    bins = np.clip(np.digitize(probability, edges) - 1, 0, 14)
    ece = sum(abs(probability[bins == b].sum() - y[bins == b].sum()) for b in range(15)) / 300
    assert found == pytest.approx(
        {
            "val/accuracy": (guess == y).mean(),
            "val/accuracy_class_0": recall[0],
            "val/accuracy_class_1": recall[1],
            "val/balanced_accuracy": balanced_accuracy_score(y, guess),
            "val/auroc": roc_auc_score(y, probability),
            "val/ece": ece,
        },
        abs=1e-6,
    )
    metrics.reset()
    metrics.update(torch.tensor([0.9, 0.1]), torch.tensor([1, 0]))
    assert float(metrics.compute()["val/balanced_accuracy"]) == 1


def test_regression_metrics() -> None:
    rng = np.random.default_rng(1)
    truth = rng.normal(size=40).astype(np.float32)
    guess = truth + rng.normal(size=40).astype(np.float32)
    metrics = prediction_metrics("regression", "")
    metrics.update(torch.as_tensor(guess), torch.as_tensor(truth))
    found = {key: float(value) for key, value in metrics.compute().items()}
    expected = {"mse": ((guess - truth) ** 2).mean(), "mae": abs(guess - truth).mean(), "r2": r2_score(truth, guess)}
    assert found == pytest.approx(expected, abs=1e-5)


def test_unexplained_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator) * torch.tensor([0.1, 1, 2, 3, 4, 5.0]) + 100
    rebuilt = x + 0.3 * torch.randn(500, 6, generator=generator)
    metric = UnexplainedVariance(6)
    for rows in torch.arange(500).split([100, 399, 1]):
        metric.update(rebuilt[rows], x[rows])
    variance = x.double().var(dim=0, unbiased=False)
    expected = ((rebuilt - x).double().square().mean(0) / (variance + 0.01 * variance.mean())).mean()
    assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-5)

    exact, mean = UnexplainedVariance(6), UnexplainedVariance(6)
    exact.update(x, x)
    mean.update(x.mean(dim=0).expand_as(x), x)
    assert float(exact.compute()) == 0
    assert 0.8 < float(mean.compute()) < 1


def test_unexplained_variance_within_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(600) % 3
    x = torch.randn(600, 4, generator=generator) + 10 * group[:, None]
    means = torch.stack([x[group == g].mean(dim=0) for g in range(3)])[group]
    overall, within = UnexplainedVariance(4), UnexplainedVariance(4, num_groups=3)
    for rows in torch.arange(600).split([7, 593]):
        overall.update(means[rows], x[rows])
        within.update(means[rows], x[rows], group[rows])
    assert float(overall.compute()) < 0.05
    assert float(within.compute()) == pytest.approx(1 / 1.01, abs=1e-3)


@pytest.mark.parametrize(
    ("class_0", "class_1", "expected"),
    [(0.0, 1.0, True), (1.0, 0.0, True), (0.005, 0.995, True), (0.0, 0.9, False), (0.5, 0.5, False), (0, 0, False)],
)
def test_collapse(class_0: float, class_1: float, expected: bool) -> None:
    assert collapsed(class_0, class_1) is expected
