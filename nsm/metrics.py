"""What is measured of predictions and of reconstructions.

Shape letters: G samples, N nodes, D features.
"""

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryCalibrationError,
    BinaryRecall,
    BinarySpecificity,
)


def positive_probability(logits: Tensor) -> Tensor:
    """P(y = 1) [G] from logits of two classes [G, 2] or of the second alone [G, 1]."""
    logits = logits.float()
    return logits.softmax(dim=1)[:, 1] if logits.shape[1] == 2 else logits[:, 0].sigmoid()


def log_odds(logits: Tensor) -> Tensor:
    """log P(y = 1) / P(y = 0) [G] from logits [G, 2] or [G, 1], which tells apart what as probabilities rounds to 1."""
    logits = logits.float()
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits[:, 0]


def collapsed(accuracy_class_0: float, accuracy_class_1: float) -> bool:
    """Whether one class is (nearly) always answered."""
    return min(accuracy_class_0, accuracy_class_1) < 0.01 and max(accuracy_class_0, accuracy_class_1) > 0.99


class SampleMean(Metric):
    """Mean over samples of what each batch gives as its mean.

    torchmetrics' ``MeanMetric`` either waits for the GPU at each update, to look for NaN, or ignores its weights.

    Args:
        finite_only: leave out batches whose mean is no finite number.
    """

    higher_is_better = False
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, *, finite_only: bool = False) -> None:
        super().__init__()
        self.finite_only = finite_only
        # In float64, so that the order in which batches and devices are added leaves no trace in float32.
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, samples: int) -> None:
        """Add a batch: the mean over its samples, and their number."""
        counted = mean.isfinite() if self.finite_only else torch.ones_like(mean, dtype=torch.bool)
        self.total += torch.where(counted, mean.double() * samples, 0.0)
        self.count += counted * samples

    def compute(self) -> Tensor:
        return (self.total / self.count).float()


class BalancedAccuracy(Metric):
    """Mean of the accuracies on each class."""

    higher_is_better = True
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.recall, self.specificity = BinaryRecall(), BinarySpecificity()

    def update(self, preds: Tensor, target: Tensor) -> None:
        self.recall.update(preds, target)
        self.specificity.update(preds, target)

    def compute(self) -> Tensor:
        return (self.recall.compute() + self.specificity.compute()) / 2

    def reset(self) -> None:
        super().reset()
        self.recall.reset()
        self.specificity.reset()


def prediction_metrics(task: str, prefix: str) -> MetricCollection:
    """Everything that is measured of a task's predictions: P(y = 1) [G] against y [G], or numbers against numbers."""
    if task == "regression":
        return MetricCollection({"mse": MeanSquaredError(), "mae": MeanAbsoluteError(), "r2": R2Score()}, prefix=prefix)
    return MetricCollection(
        {
            "accuracy": BinaryAccuracy(),
            "accuracy_class_0": BinarySpecificity(),
            "accuracy_class_1": BinaryRecall(),
            "balanced_accuracy": BalancedAccuracy(),
            "auroc": BinaryAUROC(),
            "ece": BinaryCalibrationError(n_bins=15, norm="l1"),
        },
        prefix=prefix,
    )


class UnexplainedVariance(Metric):
    r"""Share of variance that a reconstruction misses, over all nodes of a set.

    .. math:: \frac1D \sum_d \frac{\sum_n (\hat x_{nd} - x_{nd})^2}{N (\sigma_d^2 + 0.01 \, \bar{\sigma^2})}

    0 is exact and about 1 no better than the mean; the second term keeps features that hardly vary from dominating.

    Args:
        num_features: D.
        num_groups: with more than one, the variance is that within groups: 1 is then no better than each group's mean.
    """

    higher_is_better = False
    full_state_update = False
    count: Tensor
    total: Tensor
    squares: Tensor
    errors: Tensor

    def __init__(self, num_features: int, num_groups: int = 1) -> None:
        super().__init__()
        self.add_state("count", torch.zeros(num_groups, 1, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(num_groups, num_features, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("squares", "errors"):
            self.add_state(name, torch.zeros(num_features, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, reconstruction: Tensor, target: Tensor, group: Tensor | None = None) -> None:
        """Add nodes: what was made of their features [N, D], the features [N, D] and their groups [N]."""
        target, reconstruction = target.double(), reconstruction.double()
        group = torch.zeros(len(target), dtype=torch.long, device=target.device) if group is None else group
        self.count.index_add_(0, group, torch.ones_like(target[:, :1]))
        self.total.index_add_(0, group, target)
        self.squares += target.square().sum(dim=0)
        self.errors += (reconstruction - target).square().sum(dim=0)

    def compute(self) -> Tensor:
        between = (self.total.square() / self.count.clamp(min=1)).sum(dim=0)
        nodes = self.count.sum()
        variance = ((self.squares - between) / nodes).clamp(min=0)
        return (self.errors / (nodes * (variance + 0.01 * variance.mean()))).mean().float()
