"""Ranking the true end of a triple among other entities, in steps that can be continued."""

import hashlib
import logging
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nsm.data.corruptions import KnownTriples
from nsm.data.datamodule import Scorer
from nsm.data.protocols import chance, ranking_figures, ranking_summary
from nsm.data.subgraph_dataset import SubgraphDataset
from nsm.data.subgraphs import NONE, Extractor, ranges

log = logging.getLogger(__name__)
STEP, WHOLE_STEP = 50_000, 4_000_000
"""Candidates scored before what was found is written down: one by one, and by a model that scores all entities."""
SAMPLED_NEGATIVES = 50
FEW = 100
"""Queries below which a ranking is too coarse to go without a warning."""
SECONDS_BETWEEN_LINES = 15.0


class Queries(NamedTuple):
    """True triples one end of which is asked for, [Q] each."""

    subject: np.ndarray
    relation: np.ndarray
    object: np.ndarray
    at_object: np.ndarray
    """Whether the object is asked for, rather than the subject."""

    @property
    def given(self) -> np.ndarray:
        """The end that is not asked for."""
        return np.where(self.at_object, self.subject, self.object)

    @property
    def truth(self) -> np.ndarray:
        """The end that is asked for."""
        return np.where(self.at_object, self.object, self.subject)


Count = Callable[[Queries, np.ndarray], np.ndarray]
"""Of queries and their numbers: candidates that score better than the true end, those that score the same (itself
included), and all: [Q, 3]."""


class Ranker:
    """Ranks the true end of test triples, object and subject in turn.

    Args:
        extractor: of the graph that the test triples lie in.
        known: every true triple; those other than the one asked about are no candidates (the *filtered* setting; Bordes
            et al., 2013, "Translating Embeddings for Modeling Multi-relational Data").
        triples: subject, relation, object of the test triples.
        scorer: the model.
        batch_size: of candidates.
        budget: candidates scored, at most: where all queries take more, a random part of them is ranked, as many that
            ask for the object as for the subject, and the standard error is told.
        seed: of the lots.
        folder: where what was found so far is kept, to go on from after an interruption.
    """

    def __init__(
        self,
        *,
        extractor: Extractor,
        known: KnownTriples,
        triples: tuple[np.ndarray, np.ndarray, np.ndarray],
        scorer: Scorer,
        batch_size: int,
        budget: int,
        seed: int,
        folder: Path,
    ) -> None:
        self.extractor, self.known, self.scorer, self.batch_size = extractor, known, scorer, batch_size
        self.budget, self.seed, self.folder = budget, seed, folder
        sides = np.repeat([True, False], len(triples[0]))
        subject, relation, object_ = (np.tile(part, 2) for part in triples)
        self.queries = Queries(subject, relation, object_, sides)

    def full_ranking(self, fingerprint: bytes) -> dict[str, float]:
        """Filtered ranks among all entities, tail and head, ties by expectation (Bordes et al., 2013).

        The expectation over ties is the *realistic* rank (Berrendorf et al., 2020, arXiv:2002.06914): equal scores for
        all earn what chance earns (Sun et al., 2020, arXiv:1911.03903, on what else they may earn). Left out where not
        even two queries are within the budget.

        Args:
            fingerprint: of the model; what another one left in the folder is not continued.
        """
        num_entities = self.extractor.graph.num_entities
        chosen = self._sample(self.budget // num_entities)
        if len(chosen) < min(2, len(self.queries.relation)):
            log.warning(
                "full_ranking is left out: a query has %d candidates; domain.ranking_budget=%d allows fewer than two",
                num_entities,
                self.budget,
            )
            return {}

        def count(queries: Queries, number: np.ndarray) -> np.ndarray:
            size = len(number)
            return self._count(queries, *ranges(np.zeros(size, dtype=np.int64), np.full(size, num_entities)))

        if self.scorer.entities is None:
            counts = self._counts("full_ranking", chosen, count, STEP // num_entities, fingerprint)
        else:
            counts = self._counts("full_ranking", chosen, self._count_all, WHOLE_STEP // num_entities, fingerprint)
        figures, sides = ranking_figures(counts[:, 0], counts[:, 1]), self.queries.at_object[chosen]
        summary = ranking_summary(figures, total=len(self.queries.relation)) | chance(counts[:, 2])
        for name, side in (("tail", sides), ("head", ~sides)):
            if side.any():
                summary[f"mrr_{name}"] = float(figures["mrr"][side].mean())
        if len(chosen) < min(FEW, len(self.queries.relation)):
            log.warning(
                "full_ranking rests on %d of %d queries; domain.ranking_budget=%d would rank %d",
                len(chosen),
                len(self.queries.relation),
                FEW * num_entities,
                FEW,
            )
        return summary | {"ranking_queries": float(len(chosen))}

    def sampled_ranking(self, fingerprint: bytes) -> dict[str, float]:
        """Filtered ranks among 50 entities drawn at random: far easier than all, for comparison with older tables.

        Teru et al., 2020, "Inductive Relation Prediction by Subgraph Reasoning" (GraIL, arXiv:1911.06962).
        """
        num_entities = self.extractor.graph.num_entities
        chosen = self._sample(self.budget // (SAMPLED_NEGATIVES + 1))

        def count(queries: Queries, number: np.ndarray) -> np.ndarray:
            # More are drawn than are needed, since some make true triples.
            many = min(num_entities, 4 * SAMPLED_NEGATIVES)
            lots = [np.random.default_rng([self.seed, n]) for n in number.tolist()]
            entities = np.concatenate([lot.choice(num_entities, many, replace=False) for lot in lots])
            rows = np.repeat(np.arange(len(number)), many)
            allowed = ~self._true(queries, rows, entities)
            rows, entities = rows[allowed], entities[allowed]
            place = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(number)))[rows]
            return self._count(queries, rows[place < SAMPLED_NEGATIVES], entities[place < SAMPLED_NEGATIVES])

        counts = self._counts("sampled_ranking", chosen, count, STEP // SAMPLED_NEGATIVES, fingerprint)
        figures = ranking_figures(counts[:, 0], counts[:, 1])
        summary = ranking_summary(figures, total=len(self.queries.relation)) | chance(counts[:, 2])
        summary["ranking_queries"] = float(len(chosen))
        return {f"sampled_{name}": value for name, value in summary.items()}

    def _sample(self, most: int) -> np.ndarray:
        """Numbers of the queries ranked: object and subject of triples at random, in turn."""
        lot, number = np.random.default_rng([self.seed, 3]), len(self.queries.relation) // 2
        return np.stack([lot.permutation(number), number + lot.permutation(number)], axis=1).flatten()[:most]

    def _counts(
        self, protocol: str, chosen: np.ndarray, count: Count, queries_a_step: int, fingerprint: bytes
    ) -> np.ndarray:
        """What ``count`` says of each query chosen; written down as it comes, and gone on with."""
        path, step = self.folder / f"{protocol}.npz", max(1, queries_a_step)
        extractor, whole = self.extractor, self.scorer.entities is not None
        settings = [self.seed, extractor.hops, extractor.fanout, extractor.max_nodes, whole]
        digest = hashlib.sha256(fingerprint + repr(settings).encode() + chosen.tobytes()).hexdigest()
        counts = _continued(path, digest)
        if len(counts):
            log.info("%s: going on after %d of %d queries (%s)", protocol, len(counts), len(chosen), path)
        start = told = time.monotonic()
        first = len(counts)
        for begin in range(first, len(chosen), step):
            number = chosen[begin : begin + step]
            queries = Queries(*(part[number] for part in self.queries))
            counts = np.concatenate([counts, count(queries, number)])
            beside = path.with_name(f".{path.name}")  # an interruption must not leave half a file
            np.savez(beside, digest=digest, counts=counts)
            os.replace(beside, path)
            now = time.monotonic()
            if now - told > SECONDS_BETWEEN_LINES and len(counts) < len(chosen):
                left = (now - start) / (len(counts) - first) * (len(chosen) - len(counts))
                log.info("%s: %d of %d queries, about %.0f s left", protocol, len(counts), len(chosen), left)
                told = now
        return counts

    def _count(self, queries: Queries, rows: np.ndarray, entities: np.ndarray) -> np.ndarray:
        """Of these candidates, ``entities`` for the queries ``rows``."""
        size = len(queries.relation)
        allowed = ~self._true(queries, rows, entities)
        rows, entities = (
            np.concatenate(pair) for pair in ((np.arange(size), rows[allowed]), (queries.truth, entities[allowed]))
        )
        scores = self._scores(queries, rows, entities)
        own = scores[:size][rows]
        better = np.bincount(rows, weights=scores > own, minlength=size)
        tied = np.bincount(rows, weights=scores == own, minlength=size)
        return np.stack([better, tied, np.bincount(rows, minlength=size)], axis=1).astype(np.int64)

    @torch.inference_mode()
    def _count_all(self, queries: Queries, number: np.ndarray) -> np.ndarray:
        """Of all entities, which the model scores at once."""
        assert self.scorer.entities is not None
        given, at_object = queries.given, queries.at_object
        asked = (torch.from_numpy(part) for part in (given, queries.relation, at_object))
        scores = self.scorer.entities(*asked)
        rows, known = self.known.answers(given, queries.relation, at_object)
        own = scores.gather(1, torch.from_numpy(queries.truth).to(scores.device)[:, None])
        scores[torch.from_numpy(rows), torch.from_numpy(known)] = float("-inf")
        candidates = 1 + scores.shape[1] - np.bincount(rows, minlength=len(number))
        better, tied = (scores > own).sum(dim=1), 1 + (scores == own).sum(dim=1)
        return np.stack([better.cpu().numpy(), tied.cpu().numpy(), candidates], axis=1)

    def _scores(self, queries: Queries, rows: np.ndarray, entities: np.ndarray) -> np.ndarray:
        tail = queries.at_object[rows]
        dataset = SubgraphDataset.of(
            self.extractor,
            cached_bytes=0,
            subject=np.where(tail, queries.subject[rows], entities),
            relation=queries.relation[rows],
            object=np.where(tail, entities, queries.object[rows]),
            left_out=np.full((len(rows), 2), NONE),
            y=np.zeros(len(rows), dtype=np.int64),
        )
        batches = torch.arange(len(rows)).split(self.batch_size)
        return torch.cat([self.scorer.samples(dataset.__getitems__(batch.tolist())) for batch in batches]).numpy()

    def _true(self, queries: Queries, rows: np.ndarray, entities: np.ndarray) -> np.ndarray:
        """Whether each candidate makes a triple known to be true, the one asked about among them."""
        tail = queries.at_object[rows]
        subject = np.where(tail, queries.subject[rows], entities)
        return self.known.contains(subject, queries.relation[rows], np.where(tail, entities, queries.object[rows]))


def _continued(path: Path, digest: str) -> np.ndarray:
    """The counts that an interrupted ranking by the same model left, or none: [Q, 3]."""
    if path.exists():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                if str(stored["digest"]) == digest:
                    return stored["counts"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read (%s); ranking anew", path, error)
    return np.zeros((0, 3), dtype=np.int64)
