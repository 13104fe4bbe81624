"""Planning: labels against an independent oracle that reads the graph, splits, shortcuts, controls, bad values."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch_geometric.data import Data
from unified_planning.engines import SequentialPlanValidator, ValidationResultStatus
from unified_planning.model import Fluent, InstantaneousAction, Object, Problem
from unified_planning.plans import ActionInstance, SequentialPlan
from unified_planning.shortcuts import BoolType, UserType, get_environment

from nsm.config import ConfigError
from nsm.data.blocksworld import CORRUPTIONS, Plans, execute, reorder
from nsm.data.planning import PlanningConfig, PlanningDataModule
from nsm.data.planning_graph import encode
from nsm.data.planning_shortcuts import block_gaps, handcrafted, read_plans
from nsm.data.triples import TripleDataset

ALL_CORRUPTIONS = list(CORRUPTIONS)


def make(cache_dir, **settings) -> PlanningDataModule:
    data = PlanningDataModule(cache_dir=str(cache_dir), **{"num_problems": 200, "long_problems": 40, **settings})
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture(scope="module")
def swaps(tmp_path_factory) -> PlanningDataModule:
    return make(tmp_path_factory.mktemp("swaps"), num_problems=3000, long_problems=200, seed=3)


@pytest.fixture(scope="module")
def touching(tmp_path_factory) -> PlanningDataModule:
    return make(tmp_path_factory.mktemp("touching"), touch_edges=True, seed=4)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> PlanningDataModule:
    return make(tmp_path_factory.mktemp("mixed"), num_problems=300, corruptions=ALL_CORRUPTIONS, seed=5)


@dataclasses.dataclass
class Story:
    """A problem and its plan as the graph tells them; blocks are named by their nodes."""

    blocks: list[int]
    facts: dict[str, set]
    steps: list[tuple]


def read(data: Data) -> Story:
    """Follow ``next`` from the step that ``starts`` to the one that ``reaches``."""
    relations, types = PlanningDataModule.relations, PlanningDataModule.entity_types
    edges: dict[str, list[tuple[int, int]]] = {name: [] for name in relations}
    for subject, object_, predicate in zip(*data.edge_index.tolist(), data.edge_type.tolist(), strict=True):
        edges[relations[predicate]].append((subject, object_))
    kind = [types[token] for token in data.x.tolist()]
    following = dict(edges["next"])
    ((_, step),) = edges["starts"]
    ((last, _),) = edges["reaches"]
    steps = []
    arguments = {
        "pick-up": ("picks_up",),
        "put-down": ("puts_down",),
        "stack": ("stacks", "stacks_on"),
        "unstack": ("unstacks", "unstacks_from"),
    }
    while step is not None:
        steps.append((kind[step], *(dict(edges[name])[step] for name in arguments[kind[step]])))
        end, step = step, following.get(step)
    assert end == last
    assert len(steps) == sum(name in arguments for name in kind)
    facts = {
        name: set(edges[name]) if name.endswith("_on") else {block for block, _ in edges[name]}
        for name in ("init_on", "init_on_table", "init_clear", "goal_on", "goal_on_table")
    }
    return Story([node for node, name in enumerate(kind) if name == "block"], facts, steps)


class Oracle:
    """Blocks world in the words of unified-planning."""

    def __init__(self) -> None:
        get_environment().credits_stream = None
        self.block = UserType("block")
        self.on = Fluent("on", BoolType(), x=self.block, y=self.block)
        self.ontable = Fluent("ontable", BoolType(), x=self.block)
        self.clear = Fluent("clear", BoolType(), x=self.block)
        self.holding = Fluent("holding", BoolType(), x=self.block)
        self.handempty = Fluent("handempty", BoolType())
        self.actions = {}
        for name, needs, adds, removes in (
            ("pick-up", "clear ontable handempty", "holding", "clear ontable handempty"),
            ("put-down", "holding", "clear ontable handempty", "holding"),
            ("stack", "holding clear_y", "on clear handempty", "holding clear_y"),
            ("unstack", "on clear handempty", "holding clear_y", "on clear handempty"),
        ):
            names = ("x", "y") if name in ("stack", "unstack") else ("x",)
            action = InstantaneousAction(name, **dict.fromkeys(names, self.block))
            x, y = (action.parameter(names[0]), action.parameter(names[-1]))
            terms = {
                "on": self.on(x, y),
                "ontable": self.ontable(x),
                "clear": self.clear(x),
                "clear_y": self.clear(y),
                "holding": self.holding(x),
                "handempty": self.handempty(),
            }
            for term in needs.split():
                action.add_precondition(terms[term])
            for term in removes.split():
                action.add_effect(terms[term], False)
            for term in adds.split():
                action.add_effect(terms[term], True)
            self.actions[name] = action

    def valid(self, story: Story) -> bool:
        problem = Problem("blocks")
        for fluent in (self.on, self.ontable, self.clear, self.holding, self.handempty):
            problem.add_fluent(fluent, default_initial_value=False)
        problem.add_actions(self.actions.values())
        objects = {block: Object(f"b{block}", self.block) for block in story.blocks}
        problem.add_objects(objects.values())
        problem.set_initial_value(self.handempty(), True)
        for a, b in story.facts["init_on"]:
            problem.set_initial_value(self.on(objects[a], objects[b]), True)
        for a in story.facts["init_on_table"]:
            problem.set_initial_value(self.ontable(objects[a]), True)
        for a in story.facts["init_clear"]:
            problem.set_initial_value(self.clear(objects[a]), True)
        for a, b in story.facts["goal_on"]:
            problem.add_goal(self.on(objects[a], objects[b]))
        for a in story.facts["goal_on_table"]:
            problem.add_goal(self.ontable(objects[a]))
        plan = SequentialPlan(
            [ActionInstance(self.actions[name], [objects[a] for a in arguments]) for name, *arguments in story.steps]
        )
        with SequentialPlanValidator() as validator:
            return validator.validate(problem, plan).status == ValidationResultStatus.VALID


def test_labels_agree_with_unified_planning(mixed, swaps):
    oracle = Oracle()
    audited: Counter = Counter()
    for dataset in (swaps.train_set[:40], mixed.train_set):
        for data in dataset:
            kind = int(data.corruption)
            if audited[kind] < (100 if kind == 0 else 25):
                assert oracle.valid(read(data)) == bool(data.y), data
                audited[kind] += 1
    assert audited == {0: 100, 1: 25, 2: 25, 3: 25, 4: 25}


def test_the_graph_states_a_whole_problem(swaps):
    for data in swaps.test_set[:100]:
        story = read(data)
        facts, size = story.facts, int(data.num_blocks)
        assert len(story.blocks) == size
        for part in ("init", "goal"):
            standing = [a for a, _ in facts[f"{part}_on"]] + list(facts[f"{part}_on_table"])
            assert sorted(standing) == story.blocks
        assert facts["init_clear"] == set(story.blocks) - {below for _, below in facts["init_on"]}
        assert len(story.steps) == int(data.plan_length)
        goal = PlanningDataModule.entity_types.index("goal")
        assert (data.level == torch.where(data.x == goal, 2, 1)).all()
        assert (data.edge_attr == 1).all()
        assert data.num_nodes == size + 2 + len(story.steps)


def twins(dataset: TripleDataset) -> list[tuple[Data, Data]]:
    found: dict[int, dict[int, Data]] = {}
    for data in dataset:
        found.setdefault(int(data.instance), {})[int(data.y)] = data
    return [(pair[1], pair[0]) for pair in found.values()]


def test_a_swap_keeps_every_count_and_the_length(swaps):
    for valid, spoiled in twins(swaps.val_set):
        one, two = read(valid), read(spoiled)
        assert len(one.steps) == len(two.steps)
        assert Counter(step[0] for step in one.steps) == Counter(step[0] for step in two.steps)
        uses = [Counter(Counter(block for step in s.steps for block in step[1:]).values()) for s in (one, two)]
        assert uses[0] == uses[1]
        assert torch.equal(valid.edge_type.bincount(minlength=16), spoiled.edge_type.bincount(minlength=16))


def test_columns_say_where_a_plan_fails(mixed):
    for dataset in (mixed.train_set, mixed.extra_sets["long"]):
        y, kind, failure, length, target = (
            dataset.column(key) for key in ("y", "corruption", "first_failure", "plan_length", "target")
        )
        assert torch.equal(y == 1, kind == 0)
        assert float(y.float().mean()) == 0.5
        assert torch.allclose(target, failure / length)
        assert (failure[kind == 0] == length[kind == 0]).all()
        assert (failure[(kind == 1) | (kind == 2)] <= length[(kind == 1) | (kind == 2)]).all()
        assert (failure[kind == 1] < length[kind == 1]).all()
        assert (failure[kind == 4] == length[kind == 4]).all()
        assert set(kind.tolist()) == {0, 1, 2, 3, 4}


def test_counts_and_order_free_features_are_blind(swaps):
    scores = swaps.shortcuts
    for name in ("predicate_counts", "counts_degrees_size", "order_free"):
        assert abs(scores[name] - 0.5) <= 0.03, scores
    assert 0.70 <= scores["local_bigrams"] <= 0.79, scores
    assert swaps.majority == 0.5


def test_what_order_gives_away_is_in_the_audit(swaps):
    """The tables that see order do better than those that do not, all together do best, and still err."""
    scores = swaps.shortcuts
    assert 0.70 <= scores["block_gaps"] <= 0.83, scores
    assert 0.84 <= scores["handcrafted"] <= 0.94, scores
    assert scores["handcrafted"] > max(scores["block_gaps"], scores["local_bigrams"]) + 0.05, scores


def test_swaps_that_keep_a_plan_valid_leave_no_trace(swaps):
    """So what the audit finds in the invalid plans is that they are invalid, not that moves were swapped."""
    rng = np.random.default_rng(10)
    tables, labels = [], []
    for dataset in (swaps.train_set, swaps.test_set):
        problems, plans = read_plans(dataset)
        rows = np.flatnonzero(dataset.column("y").numpy())
        problems, plans = problems.take(rows), plans.take(rows)
        swapped = rng.random(len(rows)) < 0.5
        steps = np.where(swapped[:, None, None], reorder(problems, plans, 16, rng).steps, plans.steps)
        tables.append(handcrafted(encode(problems, Plans(steps, plans.length), False, rng, y=swapped)))
        labels.append(swapped)
    model = HistGradientBoostingClassifier(max_iter=100, random_state=0).fit(tables[0], labels[0])
    assert abs(model.score(tables[1], labels[1]) - 0.5) <= 0.07


def test_plans_read_from_the_graph_are_the_plans(mixed, touching):
    """Executing what was read gives the label and the first failure, which the reader never sees."""
    for dataset in (mixed.train_set, mixed.extra_sets["long"], touching.test_set):
        outcome = execute(*read_plans(dataset))
        assert (outcome.valid == dataset.column("y").bool().numpy()).all()
        assert (outcome.first_failure == dataset.column("first_failure").numpy()).all()


def test_feature_tables_come_from_the_graph_alone(swaps):
    kept = ("x", "level", "edge_index", "edge_type", "edge_attr")
    dataset = swaps.val_set
    graphs = TripleDataset(
        {key: value if key in kept else torch.zeros_like(value) for key, value in dataset.columns.items()},
        dataset.slices,
    )
    tables = swaps.local_features(dataset)
    assert set(tables) == {"order_free", "local_bigrams", "block_gaps", "handcrafted"}
    for name, table in swaps.local_features(graphs).items():
        assert table.shape == tables[name].shape
        assert table.shape[0] == len(dataset)
        assert np.array_equal(table, tables[name]), name
    assert tables["handcrafted"].shape[1] > sum(tables[name].shape[1] for name in tables if name != "handcrafted")
    # Ordered like the parts: what stands in a part stands in the whole.
    parts = np.column_stack([tables[name] for name in ("order_free", "local_bigrams", "block_gaps")])
    assert np.array_equal(tables["handcrafted"][:, : parts.shape[1]], parts)


def test_block_gaps_count_what_a_loop_counts(swaps):
    dataset = swaps.test_set
    table = block_gaps(dataset)
    for row, data in enumerate(dataset[:60]):
        steps, latest, span, gaps = read(data).steps, {}, {}, []
        for number, (_, *blocks) in enumerate(steps):
            gaps += [number - latest[block] for block in blocks if block in latest]
            latest |= dict.fromkeys(blocks, number)
            for block in blocks:
                span.setdefault(block, number)
        histogram = Counter(min(gap, 11) for gap in gaps)
        assert table[row, :11].tolist() == [histogram[gap] for gap in range(1, 12)]
        assert table[row, 11:13].tolist() == pytest.approx([np.mean(gaps), max(gaps)])
        first, last = ([time[block] / len(steps) for block in span] for time in (span, latest))
        lived = np.subtract(last, first)
        for place, times in ((13, first), (17, last), (21, lived)):
            moments = [np.mean(times), np.mean(np.square(times)), min(times), max(times)]
            assert table[row, place : place + 4].tolist() == pytest.approx(moments)
        assert table.shape[1] == 25


def test_easier_corruptions_are_easier(mixed):
    assert mixed.shortcuts["order_free"] > 0.65, mixed.shortcuts


def test_touch_edges_make_validity_local(touching):
    """Each step is judged by the previous steps that share a block with it, found along ``touches`` alone."""
    right = [locally_valid(data) == bool(data.y) for data in (*touching.train_set, *touching.extra_sets["long"])]
    assert np.mean(right) >= 0.99


def locally_valid(data: Data) -> bool:
    relations, types = PlanningDataModule.relations, PlanningDataModule.entity_types
    edges: dict[str, list[tuple[int, int]]] = {name: [] for name in relations}
    for subject, object_, predicate in zip(*data.edge_index.tolist(), data.edge_type.tolist(), strict=True):
        edges[relations[predicate]].append((subject, object_))
    block = dict(edges["picks_up"] + edges["puts_down"] + edges["stacks"] + edges["unstacks"])
    support = dict(edges["stacks_on"] + edges["unstacks_from"])
    kind = {step: types[int(data.x[step])] for step in block}
    stood, clear = dict(edges["init_on"]), {b for b, _ in edges["init_clear"]}
    before: dict[tuple[int, int], int] = {}
    for step, earlier in edges["touches"]:
        for shared in {block[step], support.get(step)} & {block[earlier], support.get(earlier)}:
            before[step, shared] = earlier
    for step, name in kind.items():
        x, y, last = block[step], support.get(step), before.get((step, block[step]))
        if name in ("put-down", "stack"):
            if last is None or block[last] != x or kind[last] not in ("pick-up", "unstack"):
                return False
        elif last is None:
            if x not in clear or stood.get(x) != y:
                return False
        elif block[last] == x:
            if kind[last] not in ("put-down", "stack") or support.get(last) != y:
                return False
        elif kind[last] != "unstack":
            return False
        if name == "stack":
            under = before.get((step, y))
            if under is None:
                if y not in clear:
                    return False
            elif (block[under] == y) != (kind[under] in ("put-down", "stack")):
                return False
    return True


def test_touches_occurs_only_if_asked(swaps, touching):
    touches = PlanningDataModule.relations.index("touches")
    assert not (swaps.train_set.columns["edge_type"] == touches).any()
    data = touching.train_set[0]
    story = read(data)
    uses = Counter(block for step in story.steps for block in step[1:])
    assert int((data.edge_type == touches).sum()) == sum(count - 1 for count in uses.values())


def test_every_other_relation_and_type_occurs(swaps):
    columns = swaps.train_set.columns
    unused = set(range(len(swaps.relations))) - set(columns["edge_type"].tolist())
    assert unused == {swaps.relations.index("touches")}
    assert set(columns["x"].tolist()) == set(range(len(swaps.entity_types)))


def test_splits_share_no_problem(swaps):
    swaps.check_disjoint()
    sizes = [len(part) for part in (swaps.train_set, swaps.val_set, swaps.test_set, swaps.extra_sets["long"])]
    assert sizes == [4200, 900, 900, 400]
    for part in (swaps.train_set, swaps.extra_sets["long"]):
        assert set(Counter(part.column("instance").tolist()).values()) == {2}


def test_a_shared_problem_is_noticed(tmp_path):
    data = make(tmp_path, num_problems=40, seed=6)
    data.test_set.columns["instance"][0] = data.train_set.column("instance")[0]
    with pytest.raises(RuntimeError, match="planning is in train and in test"):
        data.check_disjoint()


def test_long_plans_have_more_blocks_than_any_in_training(swaps):
    assert set(swaps.extra_sets["long"].column("num_blocks").tolist()) == {9, 10, 11, 12}
    assert set(swaps.train_set.column("num_blocks").tolist()) == {4, 5, 6, 7, 8}


def test_the_same_configuration_gives_the_same_bytes(tmp_path):
    one, two, other = (make(tmp_path / str(name), num_problems=40, seed=seed) for name, seed in enumerate((7, 7, 8)))
    for name, first in {"train": one.train_set, "val": one.val_set, **one.test_sets}.items():
        second = {"train": two.train_set, "val": two.val_set, **two.test_sets}[name]
        for key, value in first.columns.items():
            assert torch.equal(value, second.columns[key]), key
    assert not set(one.train_set.column("instance").tolist()) & set(other.train_set.column("instance").tolist())


def test_nodes_and_edges_lie_in_random_order(swaps):
    """Reading back works although nothing lies where it was made, and position says nothing about a node's type."""
    columns, slices = swaps.train_set.columns, swaps.train_set.slices
    sizes = torch.diff(slices["x"])
    first = slices["x"][:-1].repeat_interleave(sizes)
    place = (torch.arange(len(first)) - first) / sizes.repeat_interleave(sizes)
    for token in range(len(swaps.entity_types)):
        assert abs(float(place[columns["x"] == token].mean()) - 0.48) < 0.03
    actions = {"pick-up", "put-down", "stack", "unstack"}
    orders = [
        [node for node, token in enumerate(data.x.tolist()) if swaps.entity_types[token] in actions]
        for data in swaps.train_set[:50]
    ]
    assert len({tuple(order) for order in orders}) == 50


def test_a_plan_reads_the_same_whatever_the_order_of_its_nodes(swaps):
    for data in swaps.test_set[:50]:
        order = torch.randperm(data.num_nodes, generator=torch.Generator().manual_seed(9))
        place = torch.argsort(order).tolist()
        other = Data(x=data.x[order], edge_index=torch.tensor(place)[data.edge_index], edge_type=data.edge_type)
        one, two = read(data), read(other)
        assert two.steps == [(name, *(place[block] for block in blocks)) for name, *blocks in one.steps]


def test_metrics_report_each_kind_of_plan(mixed):
    perfect = {name: part.column("y").float() for name, part in mixed.test_sets.items()}
    figures = mixed.metrics(perfect)
    assert figures == dict.fromkeys(["accuracy_long", "accuracy_valid", *(f"accuracy_{k}" for k in CORRUPTIONS)], 1.0)
    always = mixed.metrics({name: torch.ones_like(values) for name, values in perfect.items()})
    assert always["accuracy_long"] == 0.5
    assert always["accuracy_valid"] == 1.0
    assert always["accuracy_drop_action"] == 0.0


@pytest.mark.parametrize("control", ["shuffled_labels", "rewired_edges"])
def test_nothing_can_be_learned_from_a_control(swaps, control):
    settings = {key: getattr(swaps.config, key) for key in ("num_problems", "long_problems", "seed", "cache_dir")}
    control_data = make(settings.pop("cache_dir"), **settings, control=control)
    parts = [control_data.train_set, control_data.val_set, control_data.test_set]
    tables = [np.column_stack(list(control_data.local_features(part).values())) for part in parts]
    labels = [part.column("y").numpy() for part in parts]
    model = HistGradientBoostingClassifier(max_iter=50, random_state=0).fit(tables[0], labels[0])
    assert model.score(np.concatenate(tables[1:]), np.concatenate(labels[1:])) <= 0.53


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_problems", 3),
        ("min_blocks", 2),
        ("max_blocks", 3),
        ("long_problems", 0),
        ("long_min_blocks", 8),
        ("long_max_blocks", 8),
        ("long_max_blocks", 101),
        ("corruptions", []),
        ("corruptions", ["swap_pairs", "swap_pairs"]),
        ("corruptions", ["swap"]),
        ("hidden_swaps", 1.5),
    ],
)
def test_a_bad_value_is_named(key, value):
    with pytest.raises(ConfigError, match=rf"domain\.{key}=.*cannot be used: \w+"):
        PlanningConfig(**{key: value})


def test_too_many_problems_for_so_few_blocks_are_refused(tmp_path):
    data = PlanningDataModule(cache_dir=str(tmp_path), num_problems=500, min_blocks=3, max_blocks=3)
    with pytest.raises(ConfigError, match=r"domain\.num_problems=500 cannot be used: only \d+ distinct problems"):
        data.prepare_data()


def test_the_ceiling_is_certainty():
    assert PlanningDataModule().ceilings == {"test": 1.0, "long": 1.0}


def test_breakdowns_name_what_spoiled_a_plan_and_its_size(mixed):
    dataset = mixed.test_sets["long"]
    corruption, length, blocks = mixed.breakdowns(dataset).values()
    for position, y in enumerate(dataset.column("y").tolist()):
        assert (corruption.names[corruption.codes[position]] == "valid") == (y == 1)
        first, last = (int(bound) for bound in length.names[length.codes[position]].split()[:3:2])
        assert first <= dataset[position].plan_length <= last
        assert blocks.names[blocks.codes[position]] == f"{int((dataset[position].x == 0).sum())} blocks"
