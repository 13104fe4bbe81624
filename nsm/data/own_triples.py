"""Triples of your own: is this triple true, given a graph of others?

A folder holds ``train``, ``valid`` and ``test`` triples. A sample is the graph around a candidate, cut out of the
training triples without it, as in the kg domain. True candidates are the triples of a split; false ones are given with
it or made by corruption.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from nsm.config import ConfigError, DomainConfig, check
from nsm.data import protocols, triple_shortcuts
from nsm.data.corruptions import KnownTriples, corrupt
from nsm.data.datamodule import Scorer, TripleDataModule
from nsm.data.protocols import PROTOCOLS, auc_pr, triple_classification
from nsm.data.ranking import Ranker
from nsm.data.scores import Scored, save_predictions, save_scores
from nsm.data.shortcuts import majority
from nsm.data.subgraph_dataset import SubgraphDataset
from nsm.data.subgraphs import NONE, Extractor, TripleGraph
from nsm.data.triple_files import Triples, triple_keys
from nsm.data.triple_folder import TripleFolder, file_digests, read_folder
from nsm.data.triple_lines import Problems
from nsm.data.triples import TripleDataset

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
GRAPH_PARTS = ("subject", "relation", "object", "confidence", "x", "level", "num_entities")


@dataclass
class TriplesConfig(DomainConfig):
    """Where the triples are, how much of the graph a sample holds, and how predictions are scored."""

    _target_: str = "nsm.data.own_triples.OwnTriplesDataModule"
    path: str | None = None
    """Folder with ``train``, ``valid`` and ``test`` (``.txt``, ``.tsv`` or ``.csv``, perhaps ``.gz``), and perhaps
    ``valid_negatives``, ``test_negatives`` and ``entity2types`` (``.json`` or ``.tsv``)."""
    inference_path: str | None = None
    """A second folder whose ``train`` is a graph of other entities and whose ``test`` is asked about instead."""
    strict: bool = True
    """Whether a line that cannot be used ends the run, or is dropped and counted."""
    hops: int = 1
    """Steps around both ends from which a sample's nodes come; 0 for the ends alone."""
    fanout: int = 16
    """Neighbours sampled of one node, at most."""
    max_nodes: int = 32
    """Nodes of a sample, at most."""
    negatives: int = 1
    """False candidates for each true one in training."""
    hard_negatives: float = 0.8
    """Share of those whose swapped end fits the relation; the others take any entity."""
    protocols: list[str] = field(default_factory=lambda: list(PROTOCOLS))
    """What is measured at the end, of triple_classification, auc_pr, full_ranking, sampled_ranking."""
    ranking_budget: int = 50_000
    """Candidates scored by each ranking, at most; where there are more, queries are drawn at random."""
    audit_samples: int = 70_000
    """Candidates of each split that the shortcuts are measured on, at most."""

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [name for name in self.protocols if name not in PROTOCOLS]
        check(not wrong, "domain.protocols", self.protocols, f"any of {', '.join(PROTOCOLS)}")
        check(self.hops >= 0, "domain.hops", self.hops, "0 (the ends alone) or more")
        check(self.fanout >= 1, "domain.fanout", self.fanout, "at least 1 neighbour")
        check(self.max_nodes >= 2, "domain.max_nodes", self.max_nodes, "at least 2 nodes, the ends")
        check(self.negatives >= 1, "domain.negatives", self.negatives, "at least 1")
        check(0 <= self.hard_negatives <= 1, "domain.hard_negatives", self.hard_negatives, "a share from 0 to 1")
        check(self.ranking_budget >= 1000, "domain.ranking_budget", self.ranking_budget, "at least 1000 candidates")
        check(self.audit_samples >= 100, "domain.audit_samples", self.audit_samples, "at least 100 candidates")
        check(
            self.control != "rewired_edges",
            "domain.control",
            self.control,
            "none or shuffled_labels: with whatever edges, types and relations of real data tell something",
        )


class OwnTriplesDataModule(TripleDataModule):
    """Candidate triples of a folder, whose graphs are cut out when a batch asks for them.

    ``instance`` is the number of the true triple that a sample is or was made from by corruption; a false candidate
    that was given has its own. By the closed-world assumption a training corruption may be true in another split:
    nobody who trains can know.
    """

    name = "triples"
    version: ClassVar[int] = 3
    instance_noun = "true triples"
    own_thresholds = True
    config_class = TriplesConfig
    config: TriplesConfig
    _told = False

    train_set: SubgraphDataset
    val_set: SubgraphDataset
    test_set: SubgraphDataset

    def generate(self, rng: np.random.Generator) -> dict[str, TripleDataset]:
        """The candidates of each split, false ones included."""
        return dict(self._datasets(self._read(rng)))

    def _sets(self, content: Mapping[str, Any]) -> dict[str, TripleDataset]:
        self._tell(content)
        return dict(self._datasets(content))

    def _tell(self, content: Mapping[str, Any]) -> None:
        """Log what was read, once: before the shortcuts take their time, or when it comes from the cache."""
        if not self._told:
            self._told = True
            log.info("%s", content["summary"])
            for warning in content["warnings"]:
                log.warning("%s", warning)

    @property
    def notes(self) -> dict[str, str]:
        """By which protocol each figure is measured."""
        among = f"filtered, among {self.test_set.extractor.graph.num_entities:,} entities"
        classified = "triple_classification" in self.config.protocols
        return {
            "accuracy": "a threshold for each relation, from validation"
            if classified
            else "P(1) > .5; only shortcuts have a threshold for each relation: ask for triple_classification",
            "accuracy_matched": "relations weighted so that knowing the relation is worth .5",
            "accuracy_matched_same_thresholds": "the same with the thresholds of accuracy",
            "mrr": f"{among}, both ends",
            "sampled_mrr": "among 50 others drawn at random: far easier",
        }

    def evaluate(self, scorer: Scorer, folder: Path) -> dict[str, float]:
        """The protocols asked for.

        Scores of validation and test candidates go into ``scores.npz``; names, scores and answers of test into
        ``predictions_test.tsv``.
        """
        config = self.config
        datasets = {"val": self.val_set, "test": self.test_set}
        scored = {name: self._scored(dataset, scorer) for name, dataset in datasets.items()}
        save_scores(folder, {name: _triples(dataset.columns).numpy() for name, dataset in datasets.items()}, scored)
        candidates = _triples(self.test_set.columns).tolist()
        named = [self._names[-1], self.relations, self._names[-1]]
        save_predictions(folder, candidates, named, scored["test"], protocols.answers(scored["val"], scored["test"]))
        figures: dict[str, float] = {}
        if "triple_classification" in config.protocols:
            figures |= triple_classification(scored["val"], scored["test"])
        if "auc_pr" in config.protocols:
            figures |= auc_pr(scored["test"])
        rankings = [name for name in config.protocols if name.endswith("ranking")]
        if rankings:
            ranker = self._ranker(scorer, folder)
            fingerprint = scored["test"].score.tobytes()
            for name in rankings:
                figures |= getattr(ranker, name)(fingerprint)
        return figures

    def answers(self, dataset: TripleDataset, probability: torch.Tensor, scorer: Scorer) -> torch.Tensor:
        """As triple classification is published: with a threshold for each relation, chosen on validation."""
        assert isinstance(dataset, SubgraphDataset)
        return torch.from_numpy(protocols.answers(self._scored(self.val_set, scorer), self._scored(dataset, scorer)))

    def names(self, dataset: TripleDataset, position: int) -> list[str]:
        """Those of the files."""
        assert isinstance(dataset, SubgraphDataset)
        names = self._names[-1 if dataset is self.test_set else 0]
        nodes = dataset.extractor.extract(dataset.candidates(np.array([position]))).nodes
        return [names[node] for node in nodes.tolist()]

    def _scored(self, dataset: SubgraphDataset, scorer: Scorer) -> Scored:
        scores = torch.cat([scorer.samples(batch) for batch in self._eval_loader(dataset)])
        return Scored(dataset.column("query_type").numpy(), dataset.column("y").numpy(), scores.numpy())

    def _ranker(self, scorer: Scorer, folder: Path) -> Ranker:
        positive = self.test_set.column("y") == 1
        subject, object_ = self.test_set.columns["query_index"][:, positive].numpy()
        relation = self.test_set.columns["query_type"][positive].numpy()
        known_subject, known_relation, known_object = self._known.numpy()
        num_entities = self.test_set.extractor.graph.num_entities
        return Ranker(
            extractor=self.test_set.extractor,
            known=KnownTriples(known_subject, known_relation, known_object, num_entities),
            triples=(subject, relation, object_),
            scorer=scorer,
            batch_size=self.config.eval_batch_size,
            budget=self.config.ranking_budget,
            seed=self.config.seed,
            folder=folder,
        )

    def _description(self) -> dict[str, Any]:
        config = self.config
        if config.path is None:
            raise ConfigError("set domain.path= to the folder with train, valid and test")
        decided = ("seed", "strict", "negatives", "hard_negatives", "audit_samples")
        return {
            "domain": self.name,
            "version": self.version,
            "files": [file_digests(folder) for folder in self._folders()],
            **{key: getattr(config, key) for key in decided},
        }

    def _folders(self) -> list[Path]:
        given = (self.config.path, self.config.inference_path)
        return [Path(folder).expanduser() for folder in given if folder is not None]

    def _make(self) -> dict[str, Any]:
        log.info("reading %s and auditing its shortcuts; kept in %s", self.config.path, self.config.cache_dir)
        content = self._read(np.random.default_rng(self.config.seed))
        self._tell(content)
        sets = self._datasets(content)
        rng = np.random.default_rng([self.config.seed, 2])
        graph, test_graph = (sets[name].extractor.graph for name in ("train", "test"))
        mine = triple_shortcuts.Shortcuts(graph)
        tables = (mine, mine, mine if test_graph is graph else triple_shortcuts.Shortcuts(test_graph))
        parts = []
        for name, table in zip(SPLITS, tables, strict=True):
            some = np.sort(rng.permutation(len(sets[name]))[: self.config.audit_samples])
            parts.append((table, sets[name].candidates(some), sets[name].column("y").numpy()[some]))
        return content | {
            "shortcuts": triple_shortcuts.audit(*parts),
            "majority": majority(sets["train"], sets["test"]),
        }

    def _read(self, rng: np.random.Generator) -> dict[str, Any]:
        """Graphs and candidates, as tensors and plain values."""
        problems = Problems(self.config.strict)
        folders = self._folders()
        found = read_folder(folders[0], folders[1] if len(folders) > 1 else None, problems)
        graphs = [found.graph] if found.test_graph is found.graph else [found.graph, found.test_graph]
        sets = {name: self._candidates(found, name, rng) for name in SPLITS}
        false = {name: int((columns["y"] == 0).sum()) for name, columns in sets.items()}
        wanted = {name: len(found.true[name]) for name in SPLITS if name not in found.false}
        wanted["train"] *= self.config.negatives
        few = [f"{n - false[name]:,} of {n:,} in {name}" for name, n in wanted.items() if false[name] < n]
        tried = "every end tried in place of the true one makes a known triple"
        odd = [f"corruptions that could not be made, since {tried}: {', '.join(few)}"] if few else []
        return {
            "relations": found.relations,
            "entity_types": found.entity_types,
            "names": [found.names] if found.test_graph is found.graph else [found.names, found.test_names],
            "graphs": [{name: _stored(getattr(graph, name)) for name in GRAPH_PARTS} for graph in graphs],
            "sets": sets,
            "known": torch.from_numpy(np.stack(found.known.spo)),
            "summary": found.summary(false),
            "warnings": [*problems.warnings, *found.odd, *odd],
        }

    def _candidates(self, found: TripleFolder, name: str, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Columns of a split: its true triples, then false ones."""
        config, graph = self.config, found.test_graph if name == "test" else found.graph
        true = found.true[name]
        subject, relation, object_ = true.spo
        number = triple_keys(true, graph.num_entities, len(found.relations))
        # Other entities have other numbers: those of an inference folder begin where the largest of training ends.
        apart = 0 if graph is found.graph else found.graph.num_entities**2 * len(found.relations)
        parts = [(subject, relation, object_, np.full((len(true), 2), NONE), number)]
        if name in found.false:
            false = found.false[name]
            keys = triple_keys(false, graph.num_entities, len(found.relations))
            parts.append((*false.spo, np.full((len(false), 2), NONE), keys))
        else:
            train = name == "train"
            # Nobody who trains knows the other splits.
            known = found.known if name == "test" else Triples.concatenate([found.true["train"], true])
            for _ in range(config.negatives if train else 1):
                made = corrupt(
                    subject,
                    relation,
                    object_,
                    graph=graph,
                    known=KnownTriples(*known.spo, graph.num_entities),
                    hard=config.hard_negatives if train else 1.0,
                    rng=rng,
                )
                origin = graph.find(subject[made.origin], relation[made.origin], object_[made.origin])
                left_out = np.column_stack([origin, made.donor if train else np.full(len(origin), NONE)])
                parts.append((made.subject, made.relation, made.object, left_out, number[made.origin]))
        subject, relation, object_, left_out, number = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        y = np.arange(len(subject)) < len(true)
        columns = {
            "query_index": np.stack([subject, object_]),
            "query_type": relation,
            "left_out": left_out.T,
            "y": y.astype(np.int64),
            "instance": number + apart,
        }
        order = rng.permutation(len(y))  # so that the first batches alone hold both classes
        return {key: torch.from_numpy(value[..., order]) for key, value in columns.items()}

    def _datasets(self, content: Mapping[str, Any]) -> dict[str, SubgraphDataset]:
        """The splits, and what the vocabulary is, from what :meth:`_read` returns."""
        config = self.config
        graphs = [TripleGraph(**{name: _loaded(value) for name, value in graph.items()}) for graph in content["graphs"]]
        self.relations, self.entity_types = tuple(content["relations"]), tuple(content["entity_types"])
        self.num_levels = max(int(graph.level.max()) for graph in graphs)
        self._known, self._names = content["known"], content["names"]
        transductive = len(graphs) == 1
        self.num_entities = graphs[0].num_entities if transductive else 0
        columns = content["sets"]["train"]
        self.known_triples = _triples(columns)[:, columns["y"] == 1] if transductive else None
        extractors = [
            Extractor(graph, hops=config.hops, fanout=config.fanout, max_nodes=config.max_nodes, seed=config.seed)
            for graph in graphs
        ]
        of_split = zip(SPLITS, (extractors[0], extractors[0], extractors[-1]), strict=True)
        kept = {} if config.hops else {"cached_bytes": 0}  # the ends alone are made faster than they are looked up
        return {name: SubgraphDataset(content["sets"][name], extractor, **kept) for name, extractor in of_split}


def _triples(columns: Mapping[str, torch.Tensor]) -> torch.Tensor:
    subject, object_ = columns["query_index"]
    return torch.stack([subject, columns["query_type"], object_])


def _stored(value: np.ndarray | int) -> torch.Tensor | int:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _loaded(value: torch.Tensor | int) -> Any:
    return value.numpy() if isinstance(value, torch.Tensor) else value
