"""The kg domain: labels, matching, oracles, shortcuts, controls, ranking figures and configuration errors."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from nsm.config import ConfigError
from nsm.data.candidates import Enclosing, Matcher, make_pairs, plant_doubts
from nsm.data.kg import KGConfig, KGDataModule, rank_metrics
from nsm.data.triples import TripleDataset
from nsm.data.world import FAMILIES, LEAVES, RELATIONS, Rule, Schema, World, make_schema, make_world
from tests.data.test_world import forward_chain, triples

SMALL = {"num_worlds": 8, "ranking_queries": 12, "seed": 3}
SHORTCUT_LIMIT = 0.57
CONFIDENT = 0.5


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> KGDataModule:
    return prepared(tmp_path_factory.mktemp("kg"), **SMALL)


@pytest.fixture(scope="module")
def full_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kg_full")


@pytest.fixture(scope="module")
def full(full_folder: Path) -> KGDataModule:
    return prepared(full_folder)


@pytest.fixture(scope="module")
def schema() -> Schema:
    return make_schema(0)


@pytest.fixture(scope="module", params=[11, 12])
def world(request: pytest.FixtureRequest, schema: Schema) -> World:
    return make_world(schema, 200, 19.0, 0.3, np.random.default_rng(request.param))


def prepared(folder: Path, **settings: Any) -> KGDataModule:
    module = KGDataModule(cache_dir=str(folder), **settings)
    module.prepare_data()
    module.setup()
    return module


def proven(sample: Data, rules: list[Rule], confidence: float) -> bool:
    """Whether the sample's own edges of at least this confidence complete a body of one of the rules."""
    after = defaultdict(set)
    kept = sample.edge_attr >= confidence
    for (s, o), r in zip(sample.edge_index[:, kept].t().tolist(), sample.edge_type[kept].tolist(), strict=True):
        after[s, r, True].add(o)
        after[o, r, False].add(s)
    subject, object_ = sample.query_index.flatten().tolist()
    for rule in rules:
        ends = {subject}
        for relation, forward in rule.body:
            ends = set().union(*(after[node, relation, forward] for node in ends))
        if object_ in ends:
            return True
    return False


def oracle(dataset: TripleDataset, schema: Schema, confidence: float) -> np.ndarray:
    return np.array([proven(sample, schema.rules_of(int(sample.query_type)), confidence) for sample in dataset])


def path_relations(sample: Data) -> set[tuple[int, ...]]:
    """The relation asked about with the relations along each confident path of length 3 or less between the ends."""
    subject, object_ = sample.query_index.flatten().tolist()
    after = defaultdict(list)
    kept = sample.edge_attr >= CONFIDENT
    for (s, o), r in zip(sample.edge_index[:, kept].t().tolist(), sample.edge_type[kept].tolist(), strict=True):
        after[s].append((o, r))
        after[o].append((s, r + len(RELATIONS)))
    found = set()
    frontier = [(subject, (int(sample.query_type),), (subject,))]
    for node, relations, seen in frontier:
        for neighbour, relation in after[node]:
            if neighbour == object_:
                found.add((*relations, relation))
            elif len(seen) < 3 and neighbour not in seen:
                frontier.append((neighbour, (*relations, relation), (*seen, neighbour)))
    return found


def path_learner_accuracy(module: KGDataModule) -> float:
    """Learn from training which paths go with true candidates; a test candidate is true if its best path is."""
    train = [path_relations(sample) for sample in module.train_set]
    labels = module.train_set.column("y").numpy()
    counts: dict[tuple[int, ...], list[int]] = defaultdict(lambda: [0, 0])
    for paths, label in zip(train, labels.tolist(), strict=True):
        for path in paths:
            counts[path][label] += 1
    share = {path: (true + 0.5) / (false + true + 1) for path, (false, true) in counts.items() if false + true >= 3}

    def best(samples: list[set[tuple[int, ...]]]) -> np.ndarray:
        return np.array([max((share.get(path, 0.0) for path in paths), default=0.0) for paths in samples])

    scores = best(train)
    threshold = max(np.unique(scores), key=lambda value: float(((scores >= value) == labels).mean()))
    predicted = best([path_relations(sample) for sample in module.test_set]) >= threshold
    return float((predicted == module.test_set.column("y").numpy()).mean())


def test_labels_agree_with_forward_chaining(world: World, schema: Schema) -> None:
    truth, observed = forward_chain(triples(world.observed), schema), triples(world.observed)
    pairs = make_pairs(world, schema, 8, np.random.default_rng(0))
    assert {FAMILIES[pair.rule.family] for pair in pairs} == set(FAMILIES)
    for pair in pairs:
        assert pair.true in truth
        assert pair.true not in observed
        assert pair.false not in truth
        steps = zip(pair.rule.body, pair.nodes, pair.nodes[1:], strict=False)
        assert all(((a, r, b) if forward else (b, r, a)) in observed for (r, forward), a, b in steps)
    asked = [candidate for pair in pairs for candidate in (pair.true, pair.false)]
    assert len(asked) == len(set(asked))


def test_partners_differ_in_one_end_of_the_same_type_at_the_same_distance(world: World, schema: Schema) -> None:
    distance = Matcher(world).distance
    for true, false, rule, _ in make_pairs(world, schema, 8, np.random.default_rng(0)):
        assert true.relation == false.relation == rule.head
        assert (true.subject == false.subject) != (true.object == false.object)
        assert world.leaf[true.subject] == world.leaf[false.subject]
        assert world.leaf[true.object] == world.leaf[false.object]
        assert distance[true.subject, true.object] == distance[false.subject, false.object]
        (first, first_forward), (last, last_forward) = rule.body[0], rule.body[-1]
        assert world.observed[first].any(axis=int(first_forward))[false.subject]
        assert world.observed[last].any(axis=int(not last_forward))[false.object]


def test_planted_facts_are_false_unasked_and_complete_bodies_of_false_candidates(world: World, schema: Schema) -> None:
    rng = np.random.default_rng(5)
    pairs = make_pairs(world, schema, 8, rng)
    planted = plant_doubts(world, schema, pairs, 1.0, rng)
    assert len(planted)
    assert not world.closure[tuple(planted.T)].any()
    asked = {candidate for pair in pairs for candidate in (pair.true, pair.false)}
    assert not asked & {(s, r, o) for r, s, o in planted.tolist()}
    believed = world.observed.copy()
    believed[tuple(planted.T)] = True
    believed_too = forward_chain(triples(believed), schema)
    assert np.mean([pair.false in believed_too for pair in pairs]) > 0.7
    assert len(plant_doubts(world, schema, pairs, 0.0, rng)) == 0


def test_sample_holds_both_ends_and_all_their_neighbours_up_to_the_cap(world: World, schema: Schema) -> None:
    rng = np.random.default_rng(6)
    pairs = make_pairs(world, schema, 8, rng)
    linked = world.observed.any(axis=0)
    linked |= linked.T
    for cap in (16, 200):
        enclosing = Enclosing(world, np.empty((0, 3), dtype=np.int64), cap, rng)
        for candidate in (c for pair in pairs for c in (pair.true, pair.false)):
            nodes = enclosing.nodes(candidate, rng)
            near = {candidate.subject, candidate.object}
            near |= set(np.flatnonzero(linked[candidate.subject] | linked[candidate.object]).tolist())
            assert {candidate.subject, candidate.object} <= set(nodes.tolist()) <= near
            assert len(set(nodes.tolist())) == len(nodes) == min(len(near), cap)
            graph = enclosing.graph(candidate, nodes)
            inside = world.observed[:, nodes][:, :, nodes]
            written = np.zeros_like(inside)
            written[(graph["edge_type"], *graph["edge_index"])] = True
            assert np.array_equal(written, inside)
            assert nodes[graph["query_index"]].tolist() == [candidate.subject, candidate.object]


def test_samples_leave_out_the_triple_asked_about(small: KGDataModule) -> None:
    for dataset in (small.train_set, small.val_set, *small.test_sets.values()):
        for sample in dataset:
            subject, object_ = sample.query_index.flatten().tolist()
            itself = (sample.edge_index[0] == subject) & (sample.edge_index[1] == object_)
            assert not (itself & (sample.edge_type == sample.query_type)).any()
            assert sample.num_nodes <= small.config.max_nodes
            assert (sample.level[sample.query_index] == 1).all()


def test_levels_and_tokens_tell_entities_classes_and_roots(small: KGDataModule) -> None:
    columns = small.train_set.columns
    expected = 1 + (columns["x"] >= LEAVES).long() + (columns["x"] > LEAVES).long()
    assert torch.equal(columns["level"], expected)
    assert small.entity_types[LEAVES:] == ("class", "root_class")
    assert sorted(columns["level"].unique().tolist()) == [1, 2, 3] == list(range(1, small.num_levels + 1))


def test_pairs_are_balanced_within_each_split_and_family(small: KGDataModule) -> None:
    for dataset in (small.train_set, small.val_set, small.test_set):
        pair, y = dataset.column("pair"), dataset.column("y")
        assert torch.equal(torch.bincount(pair), torch.full((len(dataset) // 2,), 2))
        assert torch.bincount(pair, weights=y.double()).eq(1).all()
        for key in ("family", "query_type", "instance"):
            value = dataset.column(key)
            assert torch.equal(value[y == 1][pair[y == 1].argsort()], value[y == 0][pair[y == 0].argsort()])


def test_node_order_tells_nothing(small: KGDataModule) -> None:
    position = small.train_set.columns["query_index"] / (torch.diff(small.train_set.slices["x"]) - 1)
    y = small.train_set.column("y")
    for end in position:
        assert abs(float(end[y == 1].mean()) - 0.5) < 0.1
        assert abs(float(end[y == 0].mean()) - 0.5) < 0.1


def test_splits_share_no_world_and_a_shared_one_is_found(tmp_path: Path) -> None:
    module = prepared(tmp_path, **SMALL)
    module.check_disjoint()
    module.test_set._data.instance[:] = module.train_set.column("instance")[0]
    with pytest.raises(RuntimeError, match="instance 0 of kg is in train and in test"):
        module.check_disjoint()


def test_own_graph_decides_every_label(small: KGDataModule, schema: Schema) -> None:
    for dataset in small.test_sets.values():
        right = oracle(dataset, schema, CONFIDENT) == dataset.column("y").numpy()
        assert right.mean() == small.ceiling == 1.0


def test_who_ignores_confidence_errs_on_false_candidates(small: KGDataModule, schema: Schema) -> None:
    y = small.train_set.column("y").numpy()
    believed = oracle(small.train_set, schema, 0.0)
    assert believed[y == 1].all()
    assert 0.2 < believed[y == 0].mean() < 0.6


def test_same_configuration_gives_the_same_bytes() -> None:
    first, second = (KGDataModule(**SMALL).generate(np.random.default_rng(3)) for _ in range(2))
    other = KGDataModule(**SMALL).generate(np.random.default_rng(4))
    for name, dataset in first.items():
        columns = dataset.columns
        assert all(torch.equal(value, second[name].columns[key]) for key, value in columns.items())
        assert not torch.equal(columns["edge_attr"][:100], other[name].columns["edge_attr"][:100])


def test_schema_seed_changes_the_rules_but_seed_does_not() -> None:
    settings = SMALL | {"num_worlds": 4}
    rules = [KGDataModule(**settings | {"schema_seed": seed}).generate(np.random.default_rng(0)) for seed in (0, 1)]
    right = [oracle(sets["test"], make_schema(0), CONFIDENT) == sets["test"].column("y").numpy() for sets in rules]
    assert right[0].all()
    assert right[1].mean() < 0.9


def test_ranking_has_one_true_candidate_in_each_group(small: KGDataModule) -> None:
    ranking = small.extra_sets["ranking"]
    group, y = ranking.column("group"), ranking.column("y")
    assert group.unique().tolist() == list(range(small.config.ranking_queries))
    assert torch.bincount(group, weights=y.double()).eq(1).all()
    sizes = torch.bincount(group)
    assert sizes.min() >= 2
    assert sizes.max() <= small.config.ranking_candidates
    assert set(ranking.column("instance").tolist()) <= set(small.test_set.column("instance").tolist())
    for number in range(small.config.ranking_queries):
        members = [ranking[i] for i in (group == number).nonzero().flatten().tolist()]
        assert len({int(sample.query_type) for sample in members}) == 1
        assert len({int(sample.x[sample.query_index[1]]) for sample in members}) == 1


def test_fewer_ranking_candidates_are_drawn_when_asked() -> None:
    sets = KGDataModule(**SMALL | {"ranking_candidates": 3}).generate(np.random.default_rng(3))
    assert torch.bincount(sets["ranking"].column("group")).max() == 3


def test_rank_figures_by_hand() -> None:
    # ranks 1 and 3; then a tie of the true one with one other behind one better: rank 2 or 3
    scores = torch.tensor([0.9, 0.1, 0.2, 0.3, 0.8, 0.7, 0.1, 0.9, 0.5, 0.5, 0.2])
    y = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0])
    group = torch.tensor([4, 4, 4, 7, 7, 7, 7, 9, 9, 9, 9])
    figures = rank_metrics(scores, y, group)
    assert figures["mrr"] == pytest.approx((1 + 1 / 3 + (1 / 2 + 1 / 3) / 2) / 3)
    assert figures["hits_at_1"] == pytest.approx(1 / 3)
    assert figures["hits_at_3"] == pytest.approx(1.0)
    assert figures["hits_at_10"] == pytest.approx(1.0)


def test_equal_scores_rank_like_chance() -> None:
    figures = rank_metrics(torch.full((20,), 0.5), torch.arange(20).eq(13).long(), torch.zeros(20, dtype=torch.long))
    assert figures["mrr"] == pytest.approx(sum(1 / k for k in range(1, 21)) / 20)
    assert [figures[f"hits_at_{k}"] for k in (1, 3, 10)] == pytest.approx([0.05, 0.15, 0.5])


def test_figures_of_a_perfect_and_of_a_one_family_model(small: KGDataModule) -> None:
    labels = {name: dataset.column("y").float() for name, dataset in small.test_sets.items()}
    perfect = small.metrics(labels)
    sizes = torch.bincount(small.extra_sets["ranking"].column("group"))
    sizes = sizes[sizes > 0].double()
    assert perfect.pop("hits_at_10_chance") == pytest.approx(float((10 / sizes).clamp(max=1).mean()), abs=1e-6)
    harmonic = [sum(1 / rank for rank in range(1, int(size) + 1)) / float(size) for size in sizes]
    assert perfect.pop("mrr_chance") == pytest.approx(sum(harmonic) / len(harmonic), abs=1e-6)
    assert set(perfect.values()) == {1.0}
    expected = {"auc_pr", "mrr", "hits_at_1", "hits_at_3", "hits_at_10", *(f"accuracy_{name}" for name in FAMILIES)}
    assert set(perfect) == expected
    broken = labels["test"].clone()
    inverse = small.test_set.column("family") == FAMILIES.index("inverse")
    broken[inverse] = 1 - broken[inverse]
    figures = small.metrics(labels | {"test": broken})
    assert figures["accuracy_inverse"] == 0.0
    assert figures["accuracy_symmetric"] == figures["accuracy_composition_3"] == figures["mrr"] == 1.0
    assert figures["auc_pr"] < 1.0


def test_local_features_count_by_hand() -> None:
    # one edge back from the object; then two edges to the middle, one on to the object, one into the subject
    dataset = TripleDataset.from_columns(
        num_nodes=[2, 4],
        num_edges=[1, 4],
        x=[0] * 6,
        level=[1] * 6,
        edge_index=[[1, 0, 0, 1, 3], [0, 1, 1, 2, 0]],
        edge_type=[3, 5, 6, 7, 8],
        edge_attr=[1.0] * 5,
        query_index=[[0, 0], [1, 2]],
        query_type=[2, 5],
        y=[0, 1],
    )
    tables = KGDataModule().local_features(dataset)
    assert tables["relation_only"].argmax(axis=1).tolist() == [2, 5]
    assert tables["path_exists"][:, :3].tolist() == [[1, 0, 1], [0, 1, 0]]
    first, second = tables["incident_edges"][:, :-1].reshape(2, 4, len(RELATIONS))
    assert np.argwhere(first).tolist() == [[1, 3], [2, 3]]
    assert np.argwhere(second).tolist() == [[0, 5], [0, 6], [1, 8], [3, 7]]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_entities", 71),
        ("num_triples", 100),
        ("num_triples", 10**6),
        ("num_worlds", 3),
        ("hidden_fraction", 0.0),
        ("hidden_fraction", 1.0),
        ("false_fraction", -0.1),
        ("false_fraction", 1.1),
        ("pairs_per_family", 0),
        ("max_nodes", 15),
        ("schema_seed", -1),
        ("ranking_queries", 0),
        ("ranking_candidates", 1),
    ],
)
def test_value_that_cannot_be_used_is_named(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"domain\.{key}={value!r} cannot be used: "):
        KGConfig(**{key: value})


def test_denser_worlds_and_smaller_samples_work() -> None:
    module = KGDataModule(**SMALL | {"num_worlds": 4, "num_triples": 2500, "max_nodes": 16, "ranking_queries": 2})
    sets = module.generate(np.random.default_rng(0))
    assert torch.diff(sets["train"].slices["x"]).max() == 16
    schema = make_schema(0)
    assert (oracle(sets["train"], schema, CONFIDENT) == sets["train"].column("y").numpy()).all()


@pytest.mark.slow
def test_shortcuts_fail_and_paths_succeed(full: KGDataModule) -> None:
    assert set(full.shortcuts) >= {"predicate_counts", "counts_degrees_size", "relation_only", "path_exists"}
    assert full.majority == 0.5
    assert all(score <= SHORTCUT_LIMIT for score in full.shortcuts.values()), full.shortcuts
    assert path_learner_accuracy(full) >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("control", ["shuffled_labels", "rewired_edges"])
def test_nothing_can_be_learned_from_the_controls(full: KGDataModule, full_folder: Path, control: str) -> None:
    controlled = prepared(full_folder, control=control)
    assert path_learner_accuracy(controlled) <= controlled.majority + 0.03


def test_breakdowns_name_the_rule_that_derives_the_relation(small: KGDataModule) -> None:
    for dataset in small.test_sets.values():
        rule, relation = small.breakdowns(dataset)["rule"], small.breakdowns(dataset)["relation"]
        assert len(rule.codes) == len(dataset)
        for family, asked in zip(rule.codes.tolist(), relation.codes.tolist(), strict=True):
            assert relation.names[asked].rpartition("_")[0] == rule.names[family]
