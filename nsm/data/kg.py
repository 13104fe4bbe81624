"""Knowledge graphs: is this triple true in a world with rules?

Every world has its own entities and facts; all worlds of a data set share the schema: which relation follows from
which. A sample is the graph around a candidate triple, without it. Matched false candidates make every count
uninformative, so that the label follows from the meaning of paths of relations alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from nsm.config import DomainConfig, check
from nsm.data.candidates import Candidate, Enclosing, Pair, make_pairs, plant_doubts
from nsm.data.datamodule import Grouping, TripleDataModule
from nsm.data.progress import Progress
from nsm.data.triples import TripleDataset, TripleWriter
from nsm.data.world import (
    FAMILIES,
    LEAVES,
    RELATIONS,
    World,
    base_rate_for,
    expected_observed,
    make_schema,
    make_world,
)

SPLITS = {"train": 0.70, "val": 0.15, "test": 0.15}


@dataclass
class KGConfig(DomainConfig):
    """Size of the worlds and of what is asked about them."""

    _target_: str = "nsm.data.kg.KGDataModule"
    num_entities: int = 200
    """Entities of one world."""
    num_triples: int = 1300
    """Observed true triples of one world, on average."""
    num_worlds: int = 400
    """Worlds of all splits together; no two splits share one."""
    hidden_fraction: float = 0.3
    """Share of the derived facts that is not observed."""
    false_fraction: float = 0.25
    """Share of the false candidates whose rule body is completed by a false fact of low confidence."""
    pairs_per_family: int = 8
    """True candidates of each family of rules in a world, at most."""
    max_nodes: int = 48
    """Nodes of a sample, at most."""
    schema_seed: int = 0
    """Decides the rules. It does not follow ``seed``, so that runs with other seeds learn the same rules."""
    ranking_queries: int = 200
    """Test facts whose object is ranked among others."""
    ranking_candidates: int = 32
    """Objects ranked for each of them, at most, the true one included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.num_entities >= 6 * LEAVES, "domain.num_entities", self.num_entities, f"at least {6 * LEAVES}")
        check(
            0 < self.hidden_fraction < 1, "domain.hidden_fraction", self.hidden_fraction, "between 0 and 1, exclusive"
        )
        bounds = [round(expected_observed(r, self.num_entities, self.hidden_fraction)) for r in self._rates()]
        check(
            bounds[0] <= self.num_triples <= bounds[1],
            "domain.num_triples",
            self.num_triples,
            f"from {bounds[0]} to {bounds[1]} for {self.num_entities} entities",
        )
        check(self.num_worlds >= 4, "domain.num_worlds", self.num_worlds, "at least 4, so that every split has one")
        check(0 <= self.false_fraction <= 1, "domain.false_fraction", self.false_fraction, "from 0 to 1")
        check(self.pairs_per_family >= 1, "domain.pairs_per_family", self.pairs_per_family, "at least 1")
        check(self.max_nodes >= 16, "domain.max_nodes", self.max_nodes, "at least 16 nodes")
        check(self.schema_seed >= 0, "domain.schema_seed", self.schema_seed, "a whole number from 0")
        check(self.ranking_queries >= 1, "domain.ranking_queries", self.ranking_queries, "at least 1")
        check(self.ranking_candidates >= 2, "domain.ranking_candidates", self.ranking_candidates, "at least 2")

    def _rates(self) -> tuple[float, float]:
        """Fewest and most base facts of a relation that leave something to ask about."""
        return self.num_entities / 20, self.num_entities / 2


class KGDataModule(TripleDataModule):
    """Triples to verify: ``train``, ``val`` and ``test`` of matched pairs, and ``ranking`` of objects of test facts.

    The token of an entity is its leaf type, what its ``is_a`` edge says too, so that it is known where the class
    lies outside the sample; partners share it. ``family`` is the number of the rule's family in
    :data:`~nsm.data.world.FAMILIES` (a false candidate has its partner's), ``pair`` the number of the pair within the
    set, ``group`` (in ``ranking``) the number of the query.
    """

    name = "kg"
    instance_noun = "worlds"
    version: ClassVar[int] = 2
    config_class = KGConfig
    config: KGConfig
    relations = RELATIONS
    entity_types = (*(f"type_{i}" for i in range(LEAVES)), "class", "root_class")
    num_levels = 3

    @property
    def ceilings(self) -> dict[str, float | None]:
        """One: a sample holds a complete body of confident facts if and only if its candidate is true."""
        return {"test": 1.0}

    def generate(self, rng: np.random.Generator) -> dict[str, TripleDataset]:
        """Draw the worlds one after another; the first ones are for training, the last ones for testing."""
        config = self.config
        schema = make_schema(config.schema_seed)
        rate = base_rate_for(config.num_triples, config.num_entities, config.hidden_fraction)
        writers = {name: TripleWriter() for name in (*SPLITS, "ranking")}
        splits = _split(config.num_worlds)
        groups = np.array_split(np.arange(config.ranking_queries), splits.count("test"))
        progress = Progress("generating kg", config.num_worlds, "worlds")
        for number, (split, world_rng) in enumerate(zip(splits, rng.spawn(config.num_worlds), strict=True)):
            progress.reached(number)
            world = make_world(schema, config.num_entities, rate, config.hidden_fraction, world_rng)
            pairs = make_pairs(world, schema, config.pairs_per_family, world_rng)
            doubts = plant_doubts(world, schema, pairs, config.false_fraction, world_rng)
            enclosing = Enclosing(world, doubts, config.max_nodes, world_rng)
            kept = _write_pairs(writers[split], enclosing, pairs, number, world_rng)
            if split == "test":
                asked = (kept, groups.pop().tolist(), config.ranking_candidates)
                _write_ranking(writers["ranking"], enclosing, world, *asked, number, world_rng)
        empty = [name for name, writer in writers.items() if not len(writer)]
        check(not empty, "domain.num_worlds", config.num_worlds, f"more: {empty} found no candidates that match")
        return {name: writer.dataset() for name, writer in writers.items()}

    def local_features(self, dataset: TripleDataset) -> dict[str, np.ndarray]:
        """What needs no reading of paths: the relation, the number of short paths, the relations at both ends."""
        relation = torch.nn.functional.one_hot(dataset.columns["query_type"], len(RELATIONS)).numpy()
        walks = _walks(dataset).numpy()
        incident = _incident_counts(dataset).numpy()
        return {
            "relation_only": relation,
            "path_exists": np.concatenate([walks, walks > 0], axis=1),
            "incident_edges": np.concatenate([incident, dataset.columns["query_type"].numpy()[:, None]], axis=1),
        }

    def metrics(self, probabilities: Mapping[str, Tensor]) -> dict[str, float]:
        """Area under precision-recall, accuracy by family, filtered MRR and Hits@k (ties by expectation), chance."""
        y, test = self.test_set.column("y"), probabilities["test"].detach().cpu()
        right = (test >= 0.5) == (y == 1)
        figures = {"auc_pr": float(average_precision_score(y.numpy(), test.numpy()))}
        family = self.test_set.column("family")
        for number, name in enumerate(FAMILIES):
            if (family == number).any():
                figures[f"accuracy_{name}"] = float(right[family == number].float().mean())
        ranking = self.extra_sets["ranking"]
        y, group = ranking.column("y"), ranking.column("group")
        chance = rank_metrics(torch.zeros(len(ranking)), y, group)
        figures |= {f"{name}_chance": chance[name] for name in ("mrr", "hits_at_10")}
        return figures | rank_metrics(probabilities["ranking"].detach().cpu(), y, group)

    def breakdowns(self, dataset: TripleDataset) -> dict[str, Grouping]:
        """By the relation asked about and by the family of the rule that derives it."""
        return {"rule": Grouping(dataset.column("family"), FAMILIES), **super().breakdowns(dataset)}


def rank_metrics(scores: Tensor, y: Tensor, group: Tensor) -> dict[str, float]:
    """Mean reciprocal rank and Hits@1/3/10 of the one true candidate of each group.

    Where the true candidate ties with others, every order of the tied ones counts equally, so that equal scores for all
    earn what chance earns.

    Args:
        scores, y, group: [G] score, label (1 once in a group) and number of the query.
    """
    groups, position = group.unique(return_inverse=True)
    best = scores.new_zeros(len(groups)).scatter_(0, position[y == 1], scores[y == 1])[position]
    count = torch.zeros(len(groups), dtype=torch.long)
    better = count.scatter_add(0, position, (scores > best).long())
    tied = count.scatter_add(0, position, (scores == best).long())
    inverse_ranks = torch.cat([torch.zeros(1), 1 / torch.arange(1, len(group) + 1)]).double().cumsum(0)
    reciprocal = (inverse_ranks[better + tied] - inverse_ranks[better]) / tied
    figures = {"mrr": float(reciprocal.mean())}
    for k in (1, 3, 10):
        figures[f"hits_at_{k}"] = float(((k - better).clamp(min=0).minimum(tied) / tied).mean())
    return figures


def _split(num_worlds: int) -> list[str]:
    """The split of each world, in order."""
    held_out = max(1, round(SPLITS["val"] * num_worlds))
    return ["train"] * (num_worlds - 2 * held_out) + ["val"] * held_out + ["test"] * held_out


def _write_pairs(
    writer: TripleWriter, enclosing: Enclosing, pairs: list[Pair], instance: int, rng: np.random.Generator
) -> list[Pair]:
    """Write both candidates of each pair whose proof lies within the sample, and return those pairs."""
    kept = []
    for pair in pairs:
        nodes = enclosing.nodes(pair.true, rng)
        if not np.isin(pair.nodes, nodes).all():
            continue
        columns = {"instance": instance, "family": pair.rule.family, "pair": len(writer) // 2}
        writer.add(**enclosing.graph(pair.true, nodes), y=1, **columns)
        writer.add(**enclosing.graph(pair.false, enclosing.nodes(pair.false, rng)), y=0, **columns)
        kept.append(pair)
    return kept


def _write_ranking(
    writer: TripleWriter,
    enclosing: Enclosing,
    world: World,
    pairs: list[Pair],
    groups: list[int],
    num_candidates: int,
    instance: int,
    rng: np.random.Generator,
) -> None:
    """Write a true candidate for each group, among objects of its leaf type for which the triple is false."""
    for position in rng.permutation(len(pairs)).tolist():
        if not groups:
            return
        subject, relation, object_ = pairs[position].true
        others = np.flatnonzero(world.leaf[: world.num_entities] == world.leaf[object_])
        others = others[~world.closure[relation, subject, others] & (others != subject)]
        candidates = [Candidate(subject, relation, other) for other in rng.permutation(others).tolist()]
        candidates = [candidate for candidate in candidates if not enclosing.holds(candidate)][: num_candidates - 1]
        nodes = enclosing.nodes(pairs[position].true, rng)
        if not candidates or not np.isin(pairs[position].nodes, nodes).all():
            continue
        columns = {"instance": instance, "family": pairs[position].rule.family, "group": groups.pop()}
        writer.add(**enclosing.graph(pairs[position].true, nodes), y=1, **columns)
        for candidate in candidates:
            writer.add(**enclosing.graph(candidate, enclosing.nodes(candidate, rng)), y=0, **columns)


def _walks(dataset: TripleDataset) -> Tensor:
    """Walks of length 1, 2 and 3 between the ends of the query, directions and repeated edges set aside: [G, 3]."""
    columns, start = dataset.columns, dataset.slices["x"][:-1]
    offset = start.repeat_interleave(torch.diff(dataset.slices["edge_index"]))
    edges = columns["edge_index"] + offset
    num_nodes = len(columns["x"])
    keys = torch.cat([edges[0] * num_nodes + edges[1], edges[1] * num_nodes + edges[0]]).unique()
    source, target = keys // num_nodes, keys % num_nodes
    subject, object_ = columns["query_index"] + start
    reached = torch.zeros(num_nodes).index_fill_(0, subject, 1.0)
    walks = []
    for _ in range(3):
        reached = torch.zeros_like(reached).index_add_(0, target, reached[source])
        walks.append(reached[object_])
    return torch.stack(walks, dim=1)


def _incident_counts(dataset: TripleDataset) -> Tensor:
    """How often each relation leaves and enters the subject and the object of the query: [G, 4R]."""
    columns = dataset.columns
    edges = torch.diff(dataset.slices["edge_index"])
    graph = torch.repeat_interleave(torch.arange(len(edges)), edges)
    tables = []
    for end in columns["query_index"]:
        for side in columns["edge_index"]:
            at_end = side == end[graph]
            key = graph[at_end] * len(RELATIONS) + columns["edge_type"][at_end]
            tables.append(torch.bincount(key, minlength=len(edges) * len(RELATIONS)).view(len(edges), -1))
    return torch.cat(tables, dim=1)
