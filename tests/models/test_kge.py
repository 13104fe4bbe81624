"""Embeddings: the fast way to score all entities is PyG's score of each; the loss is the one that is written down."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nsm.config import ConfigError
from nsm.models.kge import (
    ComplExConfig,
    DistMultConfig,
    Embedding,
    EmbeddingConfig,
    KnownAnswers,
    RotatEConfig,
    TransEConfig,
)

ENTITIES, RELATIONS = 12, 3
KNOWN = torch.tensor([[0, 0, 1, 2, 5, 7, 0], [0, 0, 1, 2, 0, 1, 1], [1, 2, 3, 4, 6, 8, 3]])
CONFIGS = [DistMultConfig, ComplExConfig, RotatEConfig, TransEConfig]


def build(
    config_class: type[EmbeddingConfig], known: Tensor | None = KNOWN, num_logits: int = 2, **settings: Any
) -> Embedding:
    torch.manual_seed(0)
    config = config_class(**{"node_features": 8, "dropout": 0.0, **settings})
    return config.build(  # type: ignore[attr-defined]  # each one's own
        num_relations=RELATIONS,
        num_entity_types=1,
        num_levels=1,
        num_logits=num_logits,
        has_query=True,
        num_entities=ENTITIES,
        known_triples=known,
    )


def batch_of(triples: Tensor, y: list[int]) -> Any:
    return SimpleNamespace(
        subject=triples[0], query_type=triples[1], object=triples[2], y=torch.tensor(y), num_graphs=len(y)
    )


@pytest.mark.parametrize("config_class", CONFIGS)
def test_a_product_scores_all_entities_as_pyg_does_but_for_a_constant(config_class: type[EmbeddingConfig]) -> None:
    model = build(config_class).double()
    s, r, o = KNOWN
    every = torch.arange(ENTITIES)
    for question, at_object in zip(model.questions(s, r, o), (True, False), strict=True):
        found = model.similarity(question, model.entities())
        for i in range(len(s)):
            same = every.new_full((ENTITIES,), 0)
            ends = (same + s[i], every) if at_object else (every, same + o[i])
            difference = model.kge(ends[0], same + r[i], ends[1]) - found[i]
            assert torch.allclose(difference, difference[0].expand(ENTITIES), atol=1e-9)


@pytest.mark.parametrize("config_class", CONFIGS)
def test_questions_about_either_end_are_answered_together(config_class: type[EmbeddingConfig]) -> None:
    model = build(config_class).double()
    s, r, o = KNOWN
    at_object = torch.arange(len(s)) % 2 == 0
    found = model.score_entities(torch.where(at_object, s, o), r, at_object)
    for_object, for_subject = (model.similarity(question, model.entities()) for question in model.questions(s, r, o))
    assert torch.allclose(found, torch.where(at_object[:, None], for_object, for_subject))


@pytest.mark.parametrize("config_class", CONFIGS)
@pytest.mark.parametrize("training", [True, False])
def test_loss_is_the_formula(config_class: type[EmbeddingConfig], training: bool) -> None:
    model = build(config_class, sharpness=1.7, regularization=0.3).double().train(training)
    facts = set(map(tuple, KNOWN.T.tolist()))
    asked = KNOWN if training else torch.tensor([[0, 4], [0, 2], [5, 5]])
    found = model.loss(*asked)
    for i, (s, r, o) in enumerate(asked.T.tolist()):
        expected = torch.zeros((), dtype=torch.double)
        for others in ([(s, r, e) for e in range(ENTITIES)], [(e, r, o) for e in range(ENTITIES)]):
            kept = [other for other in others if training or other == (s, r, o) or other not in facts]
            scores = 1.7 * model.kge(*torch.tensor(kept).T)
            expected = expected - scores[kept.index((s, r, o))] + scores.logsumexp(0)
        if training:
            expected = expected + 0.3 * penalty(model, s, r, o)
        assert torch.allclose(found[i], expected)


def penalty(model: Embedding, s: int, r: int, o: int) -> Tensor:
    """Third powers of the moduli, from PyG's own parameters."""
    kge = model.kge
    pairs = [(kge.node_emb.weight[s], "node_emb_im", s), (kge.node_emb.weight[o], "node_emb_im", o)]
    if type(kge).__name__ in ("DistMult", "ComplEx", "TransE"):
        pairs.append((kge.rel_emb.weight[r], "rel_emb_im", r))
    total = torch.zeros((), dtype=torch.double)
    for real, name, number in pairs:
        if type(kge).__name__ == "TransE" and name == "node_emb_im":
            real = real / real.norm()
        squared = real.square()
        if hasattr(kge, name):
            squared = squared + getattr(kge, name).weight[number].square()
        total = total + squared.pow(1.5).sum()
    # A rotation's moduli are 1.
    return total + (kge.rel_emb.weight.shape[1] if type(kge).__name__ == "RotatE" else 0)


@pytest.mark.parametrize("num_logits", [1, 2])
def test_logits_rise_with_the_score_and_do_not_move_the_embeddings(num_logits: int) -> None:
    model = build(DistMultConfig, num_logits=num_logits).train()
    batch = batch_of(KNOWN, [1] * 4 + [0] * 3)
    logits = model(batch).logits
    assert logits.shape == (7, num_logits)
    odds = logits[:, -1] - (logits[:, 0] if num_logits == 2 else 0)
    score = model.kge(*KNOWN)
    assert torch.equal(odds.argsort(), score.argsort())
    logits.sum().backward()
    assert model.kge.node_emb.weight.grad is None
    assert model.bias.grad is not None


def test_false_samples_do_not_move_the_embeddings() -> None:
    model = build(DistMultConfig).train()
    alone = model(batch_of(KNOWN[:, :4], [1] * 4)).task_loss
    alone.backward()
    gradient = model.kge.node_emb.weight.grad.clone()
    model.zero_grad()
    model(batch_of(KNOWN, [1] * 4 + [0] * 3)).task_loss.backward()
    assert torch.allclose(model.kge.node_emb.weight.grad, gradient * 4 / 7)


def test_where_entities_are_many_some_are_drawn_and_the_answers_are_among_them() -> None:
    model = build(DistMultConfig, candidates=3)
    answers = torch.tensor([11, 4])
    for training in (True, False):
        model.train(training)
        compared = [model._compared(answers) for _ in range(8)]
        assert all(set(answers.tolist()) <= set(found.tolist()) for found in compared)
        assert all(len(found) <= 5 and torch.equal(found, found.unique()) for found in compared)
        assert (len({tuple(found.tolist()) for found in compared}) > 1) == training
        assert model.loss(*KNOWN[:, :2]).isfinite().all()


def test_known_answers() -> None:
    s, r, o = KNOWN
    known = KnownAnswers(s, r, o, RELATIONS)
    compared = torch.tensor([1, 2, 3, 9])
    found = known.among(compared, torch.tensor([0, 0, 9]), torch.tensor([0, 1, 0]), ENTITIES)
    assert found.tolist() == [[True, True, False, False], [False, False, True, False], [False] * 4]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_unseen_entities_are_refused(config_class: type[EmbeddingConfig]) -> None:
    name = config_class.__name__.removesuffix("Config").lower()
    with pytest.raises(ConfigError, match=f"model={name} .* take model=nsm"):
        build(config_class, known=None)


@pytest.mark.parametrize("setting", ["regularization", "sharpness", "candidates"])
def test_wrong_values_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{setting}=-1"):
        DistMultConfig(**{setting: -1})
