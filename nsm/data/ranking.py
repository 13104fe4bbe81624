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
from torch import Tensor
from torch_geometric.data import Batch

from nsm.data.corruptions import KnownTriples
from nsm.data.protocols import ranking_figures, ranking_summary
from nsm.data.subgraph_dataset import SubgraphDataset
from nsm.data.subgraphs import NONE, Extractor, ranges

log = logging.getLogger(__name__)
Score = Callable[[Batch], Tensor]
"""A batch of samples to their scores [G]."""
STEP = 50_000
"""Candidates scored before what was found is written down."""
SAMPLED_NEGATIVES = 50
SECONDS_BETWEEN_LINES = 15.0


class Queries(NamedTuple):
    """True triples one end of which is asked for, [Q] each."""

    subject: np.ndarray
    relation: np.ndarray
    object: np.ndarray
    at_object: np.ndarray
    """Whether the object is asked for, rather than the subject."""


class Ranker:
    """Ranks the true end of test triples, object and subject in turn.

    Args:
        extractor: of the graph that the test triples lie in.
        known: every true triple; those other than the one asked about are no candidates (the *filtered* setting; Bordes
            et al., 2013, "Translating Embeddings for Modeling Multi-relational Data").
        triples: subject, relation, object of the test triples.
        score: the model.
        batch_size: of candidates.
        budget: candidates scored, at most: where all queries take more, a random part of them is ranked, and the
            standard error is told.
        seed: of the lots.
        folder: where what was found so far is kept, to go on from after an interruption.
    """

    def __init__(
        self,
        *,
        extractor: Extractor,
        known: KnownTriples,
        triples: tuple[np.ndarray, np.ndarray, np.ndarray],
        score: Score,
        batch_size: int,
        budget: int,
        seed: int,
        folder: Path,
    ) -> None:
        self.extractor, self.known, self.score, self.batch_size = extractor, known, score, batch_size
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

        def others(queries: Queries, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return ranges(np.zeros(len(number), dtype=np.int64), np.full(len(number), num_entities))

        figures, sides = self._rank("full_ranking", chosen, others, num_entities, fingerprint)
        summary = ranking_summary(figures, total=len(self.queries.relation))
        for name, side in (("tail", sides), ("head", ~sides)):
            if side.any():
                summary[f"mrr_{name}"] = float(figures["mrr"][side].mean())
        return summary | {"ranking_queries": float(len(chosen))}

    def sampled_ranking(self, fingerprint: bytes) -> dict[str, float]:
        """Filtered ranks among 50 entities drawn at random: far easier than all, for comparison with older tables.

        Teru et al., 2020, "Inductive Relation Prediction by Subgraph Reasoning" (GraIL, arXiv:1911.06962).
        """
        num_entities = self.extractor.graph.num_entities
        chosen = self._sample(self.budget // (SAMPLED_NEGATIVES + 1))

        def others(queries: Queries, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            # More are drawn than are needed, since some make true triples.
            many = min(num_entities, 4 * SAMPLED_NEGATIVES)
            lots = [np.random.default_rng([self.seed, n]) for n in number.tolist()]
            entities = np.concatenate([lot.choice(num_entities, many, replace=False) for lot in lots])
            rows = np.repeat(np.arange(len(number)), many)
            allowed = ~self._true(queries, rows, entities)
            rows, entities = rows[allowed], entities[allowed]
            place = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(number)))[rows]
            return rows[place < SAMPLED_NEGATIVES], entities[place < SAMPLED_NEGATIVES]

        figures, _ = self._rank("sampled_ranking", chosen, others, SAMPLED_NEGATIVES, fingerprint)
        summary = ranking_summary(figures, total=len(self.queries.relation))
        return {f"sampled_{name}": value for name, value in summary.items()}

    def _sample(self, most: int) -> np.ndarray:
        order = np.random.default_rng([self.seed, 3]).permutation(len(self.queries.relation))
        return order[:most]

    def _rank(
        self,
        protocol: str,
        chosen: np.ndarray,
        others: Callable[[Queries, np.ndarray], tuple[np.ndarray, np.ndarray]],
        candidates: int,
        fingerprint: bytes,
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Figures of each query chosen, and whether it asks for the object."""
        path = self.folder / f"{protocol}.npz"
        settings = [self.seed, self.extractor.hops, self.extractor.fanout, self.extractor.max_nodes]
        digest = hashlib.sha256(fingerprint + repr(settings).encode() + chosen.tobytes()).hexdigest()
        counts = _continued(path, digest)
        if len(counts):
            log.info("%s: going on after %d of %d queries (%s)", protocol, len(counts), len(chosen), path)
        start = told = time.monotonic()
        first = len(counts)
        for begin in range(first, len(chosen), max(1, STEP // candidates)):
            number = chosen[begin : begin + max(1, STEP // candidates)]
            queries = Queries(*(part[number] for part in self.queries))
            counts = np.concatenate([counts, self._counts(queries, *others(queries, number))])
            beside = path.with_name(f".{path.name}")  # an interruption must not leave half a file
            np.savez(beside, digest=digest, counts=counts)
            os.replace(beside, path)
            now = time.monotonic()
            if now - told > SECONDS_BETWEEN_LINES and len(counts) < len(chosen):
                left = (now - start) / (len(counts) - first) * (len(chosen) - len(counts))
                log.info("%s: %d of %d queries, about %.0f s left", protocol, len(counts), len(chosen), left)
                told = now
        return ranking_figures(counts[:, 0], counts[:, 1]), self.queries.at_object[chosen]

    def _counts(self, queries: Queries, rows: np.ndarray, entities: np.ndarray) -> np.ndarray:
        """How many candidates score better than the true end, and how many the same, itself included: [Q, 2]."""
        size = len(queries.relation)
        allowed = ~self._true(queries, rows, entities)
        truth = np.where(queries.at_object, queries.object, queries.subject)
        rows, entities = (
            np.concatenate(pair) for pair in ((np.arange(size), rows[allowed]), (truth, entities[allowed]))
        )
        scores = self._scores(queries, rows, entities)
        own = scores[:size][rows]
        better = np.bincount(rows, weights=scores > own, minlength=size)
        tied = np.bincount(rows, weights=scores == own, minlength=size)
        return np.stack([better, tied], axis=1).astype(np.int64)

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
        return torch.cat([self.score(dataset.__getitems__(batch.tolist())) for batch in batches]).numpy()

    def _true(self, queries: Queries, rows: np.ndarray, entities: np.ndarray) -> np.ndarray:
        """Whether each candidate makes a triple known to be true, the one asked about among them."""
        tail = queries.at_object[rows]
        subject = np.where(tail, queries.subject[rows], entities)
        return self.known.contains(subject, queries.relation[rows], np.where(tail, entities, queries.object[rows]))


def _continued(path: Path, digest: str) -> np.ndarray:
    """The counts that an interrupted ranking by the same model left, or none: [Q, 2]."""
    if path.exists():
        try:
            with path.open("rb") as file, np.load(file) as stored:
                if str(stored["digest"]) == digest:
                    return stored["counts"]
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            log.warning("%s cannot be read (%s); ranking anew", path, error)
    return np.zeros((0, 2), dtype=np.int64)
