"""Figures against their definitions, computed slowly: thresholds by trying all, ties by trying every order."""

from itertools import permutations, product

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from nsm.data.protocols import (
    auc_pr,
    chance,
    matched_weights,
    ranking_figures,
    ranking_summary,
    threshold,
    triple_classification,
)
from nsm.data.scores import Scored


def random_scores(seed: int, size: int = 60, relations: int = 4) -> Scored:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, size)
    return Scored(rng.integers(0, relations, size), y, np.round(rng.normal(size=size) + y, 1))


@pytest.mark.parametrize("seed", range(8))
def test_threshold_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = [1, 2, 5, 40][seed % 4]
    score, y, weight = rng.integers(0, 6, size).astype(float), rng.integers(0, 2, size), rng.random(size)

    def value(cut: float) -> float:
        return float(weight[(score >= cut) == (y == 1)].sum())

    assert value(threshold(score, y, weight)) == pytest.approx(max(map(value, [-np.inf, *score, np.inf])))


def test_classification_takes_a_threshold_for_each_relation_from_validation() -> None:
    # Relation 0 is true from 1 on, relation 1 from -1 on, relation 2 is always true; 3 is unknown to validation.
    val = Scored(
        np.repeat([0, 1, 2], 4),
        np.array([0, 0, 1, 1] * 2 + [1] * 4),
        np.array([-3, 0, 2, 3.0, -3, -2, 0, 1, 9, 8, -7, 6]),
    )
    test = Scored(
        np.array([0, 0, 1, 1, 2, 2, 3]), np.array([0, 1, 1, 0, 1, 0, 1]), np.array([0.5, 1.5, -0.5, -1.5, -99, 5, 5])
    )
    figures = triple_classification(val, test)
    right = [1, 1, 1, 1, 1, 0, 1]
    assert figures["accuracy"] == pytest.approx(np.mean(right))
    assert figures["accuracy_class_0"] == pytest.approx(2 / 3)
    assert figures["accuracy_class_1"] == 1
    # Matched: relations 0 and 1 whole, 2 as one true and one false, 3 not at all; by 2's balanced thresholds, which
    # validation cannot tell (it has no false one), both are held to be true or false alike.
    assert matched_weights(test).tolist() == [1, 1, 1, 1, 1, 1, 0]
    assert figures["accuracy_matched"] == pytest.approx(5 / 6)


def test_knowing_the_relation_is_worth_nothing_where_relations_are_matched() -> None:
    for seed in range(5):
        val, test = (random_scores(seed + offset) for offset in (0, 100))
        relation_only = [part._replace(score=np.zeros(len(part.y))) for part in (val, test)]
        figures = triple_classification(*relation_only)
        assert figures["accuracy_matched"] == pytest.approx(0.5)
        assert figures["accuracy"] >= 0.3


def test_matched_weights_are_the_expectation_over_matched_subsets() -> None:
    triples = random_scores(3)
    weight, rng = matched_weights(triples), np.random.default_rng(0)
    drawn = np.zeros(len(triples.y))
    for _ in range(400):
        for relation in np.unique(triples.relation):
            groups = [np.flatnonzero((triples.relation == relation) & (triples.y == label)) for label in (0, 1)]
            for group in groups:
                drawn[rng.permutation(group)[: min(map(len, groups))]] += 1
    assert drawn / 400 == pytest.approx(weight, abs=0.1)


def test_figures_do_not_change_with_order_or_scale() -> None:
    val, test = random_scores(0), random_scores(1)
    order = np.random.default_rng(2).permutation(len(test.y))
    shuffled = Scored(*(column[order] for column in test))
    assert triple_classification(val, shuffled) == pytest.approx(triple_classification(val, test))
    scaled = [part._replace(score=7 * part.score - 3) for part in (val, test)]
    assert triple_classification(*scaled) == pytest.approx(triple_classification(val, test))
    assert auc_pr(scaled[1]) == pytest.approx(auc_pr(test))


def test_area_under_precision_and_recall() -> None:
    test = Scored(np.zeros(4), np.array([1, 0, 1, 0]), np.array([4.0, 3.0, 2.0, 1.0]))
    assert auc_pr(test)["auc_pr"] == pytest.approx((1 + 2 / 3) / 2)
    assert auc_pr(test)["auroc"] == pytest.approx(3 / 4)
    assert auc_pr(test)["auc_pr"] == average_precision_score(test.y, test.score)
    assert auc_pr(test._replace(y=np.ones(4))) == {}


@pytest.mark.parametrize(("better", "tied"), list(product([0, 1, 2, 9], [1, 2, 4])))
def test_ties_count_as_the_mean_over_every_order(better: int, tied: int) -> None:
    ranks = [better + 1 + order.index(0) for order in permutations(range(tied))]
    found = ranking_figures(np.array([better]), np.array([tied]))
    assert found["mrr"][0] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    for k in (1, 3, 10):
        assert found[f"hits_at_{k}"][0] == pytest.approx(np.mean([rank <= k for rank in ranks]))


def test_equal_scores_for_all_earn_what_chance_earns() -> None:
    figures = ranking_figures(np.array([0]), np.array([1000]))
    assert figures["hits_at_10"][0] == pytest.approx(0.01)
    assert figures["mrr"][0] == pytest.approx(sum(1 / rank for rank in range(1, 1001)) / 1000)


def test_the_error_of_a_sampled_estimate_is_its_spread_over_samples() -> None:
    rng = np.random.default_rng(0)
    better = rng.integers(0, 50, 300)
    all_queries = ranking_figures(better, np.ones(300, dtype=int))
    estimates, errors = [], []
    for _ in range(300):
        chosen = rng.permutation(300)[:100]
        summary = ranking_summary({name: values[chosen] for name, values in all_queries.items()}, total=300)
        estimates.append(summary["mrr"])
        errors.append(summary["mrr_error"])
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.15)
    assert np.mean(estimates) == pytest.approx(all_queries["mrr"].mean(), rel=0.02)
    assert "mrr_error" not in ranking_summary(all_queries, total=300)


def test_no_query_in_a_small_sample_shows_an_error_of_nothing() -> None:
    none = ranking_figures(np.full(4, 20), np.ones(4, dtype=int))
    summary = ranking_summary(none, total=4000)
    share = 2 / 8
    assert summary["hits_at_10"] == 0
    assert summary["hits_at_10_error"] == pytest.approx(np.sqrt(share * (1 - share) / 8 * (1 - 4 / 4000)))
    assert "mrr_error" not in ranking_summary(none, total=4)


def test_chance_is_the_mean_over_every_place() -> None:
    found = chance(np.array([4, 20]))
    assert found["mrr_chance"] == pytest.approx(np.mean([sum(1 / k for k in range(1, n + 1)) / n for n in (4, 20)]))
    assert found["hits_at_10_chance"] == pytest.approx((1 + 0.5) / 2)
