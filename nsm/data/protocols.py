"""How predictions about triples are scored, by the names and in the ways they were published.

Scores are log-odds or anything else that grows with plausibility; nothing here assumes that they are calibrated.

Shape letters: K triples, Q ranking queries.
"""

from collections.abc import Mapping

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from nsm.data.scores import Scored

PROTOCOLS = ("triple_classification", "auc_pr", "full_ranking", "sampled_ranking")


def triple_classification(val: Scored, test: Scored) -> dict[str, float]:
    """Is the triple true? Accuracy on ``test`` with a threshold for each relation, chosen on ``val``.

    Socher et al., 2013, "Reasoning With Neural Tensor Networks for Knowledge Base Completion"; with given hard
    negatives Safavi and Koutra, 2020, "CoDEx" (arXiv:2009.07810). A relation that ``val`` lacks gets the threshold that
    is best for all of them together.

    ``accuracy_matched`` weights the triples so that of each relation true and false ones weigh the same, as many as the
    rarer of them are, in ``val`` for the thresholds and in ``test``: the expectation over all subsets that are so
    matched. There, knowing the relation alone is worth .5. ``accuracy_matched_same_thresholds`` keeps the thresholds of
    ``accuracy``, which lean towards a relation's more frequent answer.
    """
    right = answers(val, test) == (test.y == 1)
    figures = {"accuracy": right.mean()}
    by_class = [right[test.y == label].mean() if (test.y == label).any() else np.nan for label in (0, 1)]
    figures |= {
        "accuracy_class_0": by_class[0],
        "accuracy_class_1": by_class[1],
        "balanced_accuracy": np.mean(by_class),
    }
    weight = matched_weights(test)
    if weight.any():
        matched = answers(val, test, matched_weights(val)) == (test.y == 1)
        figures["accuracy_matched"] = np.average(matched, weights=weight)
        figures["accuracy_matched_same_thresholds"] = np.average(right, weights=weight)
    return {name: float(value) for name, value in figures.items()}


def auc_pr(test: Scored) -> dict[str, float]:
    """Area under the precision-recall curve of all triples together (Davis and Goadrich, 2006), and under the ROC."""
    if len(np.unique(test.y)) < 2:
        return {}
    return {
        "auc_pr": float(average_precision_score(test.y, test.score)),
        "auroc": float(roc_auc_score(test.y, test.score)),
    }


def matched_weights(triples: Scored) -> np.ndarray:
    """Weights with which each relation's true and false triples count the same, the rarer of them fully: [K]."""
    weight = np.zeros(len(triples.y))
    for relation in np.unique(triples.relation):
        of_class = [(triples.relation == relation) & (triples.y == label) for label in (0, 1)]
        rarer = min(mask.sum() for mask in of_class)
        for mask in of_class:
            weight[mask] = rarer / max(1, mask.sum())
    return weight


def threshold(score: np.ndarray, y: np.ndarray, weight: np.ndarray) -> float:
    """From which score on to answer true, so that the weight of right answers is largest; [K] each.

    Halfway between two scores that differ, or infinite where one answer is best for all; the highest of equally good
    ones.
    """
    order = np.argsort(-score, kind="stable")
    score, gain = score[order], np.where(y[order] == 1, weight[order], -weight[order])
    gain = np.concatenate([[0.0], gain.cumsum()])
    gain[1:-1][score[1:] == score[:-1]] = -np.inf
    cut = int(gain.argmax())
    if cut in (0, len(score)):
        return np.inf if cut == 0 else -np.inf
    return float((score[cut - 1] + score[cut]) / 2)


def answers(val: Scored, test: Scored, weight: np.ndarray | None = None) -> np.ndarray:
    """Whether each test triple [K] is held to be true, with a threshold for each relation.

    Args:
        val: what thresholds are chosen on. weight: of its triples; None where all weigh the same.
    """
    weight = np.ones(len(val.y)) if weight is None else weight
    thresholds = np.full(len(test.y), threshold(val.score, val.y, weight))
    for relation in np.unique(val.relation):
        mine = val.relation == relation
        thresholds[test.relation == relation] = threshold(val.score[mine], val.y[mine], weight[mine])
    return test.score >= thresholds


def ranking_figures(better: np.ndarray, tied: np.ndarray) -> dict[str, np.ndarray]:
    """Reciprocal rank and Hits@1/3/10 of each query, in expectation over every order of tied candidates: [Q] each.

    Args:
        better: [Q] candidates that score higher than the true one.
        tied: [Q] those that score the same, itself included.
    """
    inverse = np.concatenate([[0.0], 1 / np.arange(1, int((better + tied).max(initial=0)) + 1)]).cumsum()
    hits = {f"hits_at_{k}": np.clip(k - better, 0, tied) / tied for k in (1, 3, 10)}
    return {"mrr": (inverse[better + tied] - inverse[better]) / tied, **hits}


def ranking_summary(figures: Mapping[str, np.ndarray], *, total: int) -> dict[str, float]:
    """Means over the queries and, where they are a sample of ``total``, the standard error of each.

    That of a share is Agresti and Coull's (1998, The American Statistician 52:119), which is never 0.
    """
    means = {name: float(values.mean()) for name, values in figures.items()}
    count = len(figures["mrr"])
    if count == total or count < 2:
        return means
    errors = {}
    for name, values in figures.items():
        if name == "mrr":
            variance = values.var(ddof=1) / count
        else:  # a share, which few queries may show as exactly 0 or 1: two successes and two failures are added
            share = (values.sum() + 2) / (count + 4)
            variance = share * (1 - share) / (count + 4)
        errors[f"{name}_error"] = float(np.sqrt(variance * (1 - count / total)))
    return means | errors


def chance(candidates: np.ndarray) -> dict[str, float]:
    """What a random order of each query's candidates, the right one among them, reaches in expectation.

    Args:
        candidates: [Q] how many there are.
    """
    none = np.zeros_like(candidates)
    return {f"{name}_chance": float(values.mean()) for name, values in ranking_figures(none, candidates).items()}
