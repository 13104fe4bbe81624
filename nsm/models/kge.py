"""Knowledge graph embeddings: a vector for every entity and relation, scored by PyG's own models.

They know the entities that they were trained on and no others, and read nothing of a sample but its candidate.

Shape letters: G samples, K true ones among them, N entities, M entities compared, D features, C logits.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn.kge import ComplEx, DistMult, KGEModel, RotatE, TransE

from nsm.config import ConfigError, ModelConfig, check
from nsm.models.encoder import ModelOutput, Sizes


@dataclass
class EmbeddingConfig(ModelConfig):
    """What all embeddings have; ``node_features`` counts the real (or complex) numbers of one."""

    regularization: float = 0.02
    """Weight of the N3 penalty: third powers of the moduli of the embeddings used."""
    sharpness: float = 1.0
    """Factor of the scores in the softmax over entities."""
    candidates: int = 20000
    """Entities in that softmax beside a batch's own: where there are more, so many are drawn for each batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.regularization >= 0, "model.regularization", self.regularization, "0 or more")
        check(self.sharpness > 0, "model.sharpness", self.sharpness, "above 0")
        check(self.candidates >= 1, "model.candidates", self.candidates, "at least 1 entity")


@dataclass
class DistMultConfig(EmbeddingConfig):
    """Yang et al., 2015 (arXiv:1412.6575)."""

    def build(self, **sizes: Any) -> "DistMultEmbedding":
        return DistMultEmbedding(DistMult, self, Sizes(**sizes))


@dataclass
class ComplExConfig(EmbeddingConfig):
    """Trouillon et al., 2016 (arXiv:1606.06357)."""

    def build(self, **sizes: Any) -> "ComplExEmbedding":
        return ComplExEmbedding(ComplEx, self, Sizes(**sizes))


@dataclass
class RotatEConfig(EmbeddingConfig):
    """Sun et al., 2019 (arXiv:1902.10197)."""

    def build(self, **sizes: Any) -> "RotatEEmbedding":
        return RotatEEmbedding(RotatE, self, Sizes(**sizes))


@dataclass
class TransEConfig(EmbeddingConfig):
    """Bordes et al., 2013, "Translating Embeddings for Modeling Multi-relational Data"; Euclidean distances."""

    def build(self, **sizes: Any) -> "TransEEmbedding":
        return TransEEmbedding(TransE, self, Sizes(**sizes), p_norm=2.0)


class Embedding(nn.Module, ABC):
    r"""Tells true triples (s, r, o) from those with any other entity in the place of their object or subject.

    .. math:: -\log \frac{e^{\beta f(s, r, o)}}{\sum_{o'} e^{\beta f(s, r, o')}}
              -\log \frac{e^{\beta f(s, r, o)}}{\sum_{s'} e^{\beta f(s', r, o)}} + \lambda N_3(s, r, o)

    (Lacroix et al., 2018, arXiv:1806.07297). In validation it is the first two terms alone, without the entities that
    training knows to be right as well. The loss is summed over a batch's true samples and divided by the number of all.

    The score f of one triple is PyG's. Up to a constant it is the inner product or the negated distance of a vector for
    the question and one for the entity, so that a matrix product scores all entities. Logits are an affine function of
    the score that is fitted to the training samples' labels beside all this and does not act back on it.

    Args:
        kind: PyG's model. config: its sizes. sizes: the domain's. options: for PyG's model.
    """

    reconstructs = False

    def __init__(self, kind: type[KGEModel], config: EmbeddingConfig, sizes: Sizes, **options: Any) -> None:
        super().__init__()
        if sizes.known_triples is None:
            raise ConfigError(
                f"model={kind.__name__.lower()} learns a vector for every entity and knows no others, and this domain "
                "asks about entities that are not in its training triples: take model=nsm, or domain=triples without "
                "domain.inference_path"
            )
        self.config, self.num_logits = config, sizes.num_logits
        self.kge = kind(sizes.num_entities, sizes.num_relations, config.node_features, **options)
        self.dropout = nn.Dropout(config.dropout)
        self.log_scale, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        subject, relation, object_ = sizes.known_triples
        self.objects = KnownAnswers(subject, relation, object_, sizes.num_relations)
        self.subjects = KnownAnswers(object_, relation, subject, sizes.num_relations)

    def forward(self, batch: Batch, *, temperature: float = 1.0) -> ModelOutput:
        """Logits [G, C] and the loss; the temperature has nothing to act on."""
        subject, relation, object_ = batch.subject, batch.query_type, batch.object
        score = self.kge(subject, relation, object_)
        logit = self.log_scale.exp() * score.detach() + self.bias
        true = batch.y == 1
        loss = self.loss(subject[true], relation[true], object_[true]).sum() / batch.num_graphs
        if self.training:
            loss = loss + F.binary_cross_entropy_with_logits(logit, batch.y.float())
        logits = logit[:, None] if self.num_logits == 1 else torch.stack([torch.zeros_like(logit), logit], dim=1)
        return ModelOutput(logits, task_loss=loss)

    def score_entities(self, given: Tensor, relation: Tensor, at_object: Tensor) -> Tensor:
        """Scores, but for a constant, of all entities as the other end: [K] each to [K, N]."""
        ask_object, ask_subject = self.questions(given, relation, given)
        return self.similarity(torch.where(at_object[:, None], ask_object, ask_subject), self.entities())

    def loss(self, subject: Tensor, relation: Tensor, object: Tensor) -> Tensor:
        """Of each of these true triples: [K]."""
        vectors = self.entities()
        questions = self.questions(subject, relation, object)
        terms = []
        for question, answer, given, known in zip(
            questions, (object, subject), (subject, object), (self.objects, self.subjects), strict=True
        ):
            compared = self._compared(answer)
            right = torch.searchsorted(compared, answer)
            logits = self.config.sharpness * self.similarity(self.dropout(question), vectors[compared])
            if not self.training:
                hidden = known.among(compared, given, relation, len(vectors))
                logits = logits.masked_fill(hidden.scatter(1, right[:, None], False), float("-inf"))
            terms.append(F.cross_entropy(logits, right, reduction="none"))
        if self.training:
            moduli = self.moduli(subject, relation, object)
            terms += [self.config.regularization * part.pow(3).sum(dim=1) for part in moduli]
        return torch.stack(terms).sum(dim=0)

    def _compared(self, answer: Tensor) -> Tensor:
        """Entities in the softmax, ascending [M]: all, or the answers and others by lot (in validation the same)."""
        total, most = self.kge.num_nodes, self.config.candidates
        if total <= most:
            return torch.arange(total, device=answer.device)
        drawn = torch.randint(total, (most,)) if self.training else torch.arange(most) * total // most
        return torch.cat([drawn.to(answer.device), answer]).unique()

    @abstractmethod
    def entities(self) -> Tensor:
        """A vector for each entity: [N, D]."""

    @abstractmethod
    def questions(self, subject: Tensor, relation: Tensor, object: Tensor) -> tuple[Tensor, Tensor]:
        """A vector that asks for the object and one that asks for the subject: [K, D] each."""

    @abstractmethod
    def moduli(self, subject: Tensor, relation: Tensor, object: Tensor) -> tuple[Tensor, ...]:
        """Absolute values of the embeddings that are penalised: [K, any] each."""

    def similarity(self, question: Tensor, entities: Tensor) -> Tensor:
        """Scores, but for a constant: [..., K, D] and [..., M, D] to [..., K, M]."""
        return question @ entities.mT


class DistMultEmbedding(Embedding):
    """f = sum of s r o."""

    def entities(self) -> Tensor:
        return self.kge.node_emb.weight

    def questions(self, subject: Tensor, relation: Tensor, object: Tensor) -> tuple[Tensor, Tensor]:
        vectors, r = self.entities(), self.kge.rel_emb(relation)
        return vectors[subject] * r, vectors[object] * r

    def moduli(self, subject: Tensor, relation: Tensor, object: Tensor) -> tuple[Tensor, ...]:
        vectors = self.entities()
        return vectors[subject].abs(), self.kge.rel_emb(relation).abs(), vectors[object].abs()


class ComplExEmbedding(Embedding):
    """f = Re(sum of s r conj(o)); a vector holds real parts, then imaginary ones."""

    def entities(self) -> Tensor:
        return torch.cat([self.kge.node_emb.weight, self.kge.node_emb_im.weight], dim=1)

    def relations(self, relation: Tensor) -> Tensor:
        """Complex numbers [K, D / 2]."""
        return torch.complex(self.kge.rel_emb(relation), self.kge.rel_emb_im(relation))

    def questions(self, subject: Tensor, relation: Tensor, object: Tensor) -> tuple[Tensor, Tensor]:
        s, o, r = self._complex(subject), self._complex(object), self.relations(relation)
        return _real(s * r), _real(o * r.conj())

    def moduli(self, subject: Tensor, relation: Tensor, object: Tensor) -> tuple[Tensor, ...]:
        return self._complex(subject).abs(), self.relations(relation).abs(), self._complex(object).abs()

    def _complex(self, entity: Tensor) -> Tensor:
        return torch.complex(self.kge.node_emb(entity), self.kge.node_emb_im(entity))


class RotatEEmbedding(ComplExEmbedding):
    """f = a constant - |s r - o|, with |r| = 1."""

    def relations(self, relation: Tensor) -> Tensor:
        angle = self.kge.rel_emb(relation)
        return torch.polar(torch.ones_like(angle), angle)

    def similarity(self, question: Tensor, entities: Tensor) -> Tensor:
        return -torch.cdist(question, entities)


class TransEEmbedding(DistMultEmbedding):
    """f = -|s + r - o|, with |s| = |o| = 1."""

    def entities(self) -> Tensor:
        return F.normalize(self.kge.node_emb.weight, dim=1)

    def questions(self, subject: Tensor, relation: Tensor, object: Tensor) -> tuple[Tensor, Tensor]:
        vectors, r = self.entities(), self.kge.rel_emb(relation)
        return vectors[subject] + r, vectors[object] - r

    def similarity(self, question: Tensor, entities: Tensor) -> Tensor:
        return -torch.cdist(question, entities)


class KnownAnswers(nn.Module):
    """The entities that training gives as answers to each question of an entity and a relation.

    Args:
        given, relation, answer: [E] each. num_relations: R.
    """

    keys: Tensor
    answers: Tensor

    def __init__(self, given: Tensor, relation: Tensor, answer: Tensor, num_relations: int) -> None:
        super().__init__()
        self.num_relations = num_relations
        keys, order = torch.sort(given * num_relations + relation)
        self.register_buffer("keys", keys, persistent=False)
        self.register_buffer("answers", answer[order], persistent=False)

    def among(self, compared: Tensor, given: Tensor, relation: Tensor, num_entities: int) -> Tensor:
        """Which of the entities compared [M] are known answers: [K, M]."""
        key = given * self.num_relations + relation
        start, end = torch.searchsorted(self.keys, key), torch.searchsorted(self.keys, key, right=True)
        sizes = end - start
        rows = torch.repeat_interleave(torch.arange(len(key), device=key.device), sizes)
        offset = torch.repeat_interleave(start - sizes.cumsum(0) + sizes, sizes)
        found = self.answers[offset + torch.arange(len(rows), device=key.device)]
        place = torch.full((num_entities,), -1, device=key.device)
        place[compared] = torch.arange(len(compared), device=key.device)
        there = place[found] >= 0
        known = torch.zeros(len(key), len(compared), dtype=torch.bool, device=key.device)
        known[rows[there], place[found[there]]] = True
        return known


def _real(values: Tensor) -> Tensor:
    """Complex [K, D / 2] to [K, D]: real parts, then imaginary ones."""
    return torch.cat([values.real, values.imag], dim=1)
