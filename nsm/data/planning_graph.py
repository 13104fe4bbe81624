"""Plans as graphs of triples: the vocabulary, the encoding, and the local features that shortcut models get.

Shape letters as in :mod:`nsm.data.blocksworld`; N nodes, E edges of all graphs together.
"""

import numpy as np
import torch

from nsm.data.blocksworld import ACTIONS, NONE, PICK_UP, UNSTACK, Plans, Problems
from nsm.data.triples import TripleDataset

RELATIONS = (
    "init_on",
    "init_on_table",
    "init_clear",
    "starts",
    "picks_up",
    "puts_down",
    "stacks",
    "unstacks",
    "stacks_on",
    "unstacks_from",
    "next",
    "touches",
    "reaches",
    "goal_on",
    "goal_on_table",
    "requires",
)
ENTITY_TYPES = ("block", *ACTIONS, "initial_state", "goal")
R = {name: number for number, name in enumerate(RELATIONS)}
BLOCK, INITIAL_STATE, GOAL = (ENTITY_TYPES.index(name) for name in ("block", "initial_state", "goal"))
ACTION_TOKEN = np.array([ENTITY_TYPES.index(action) for action in ACTIONS])
BLOCK_ARGUMENT = np.array([R["picks_up"], R["puts_down"], R["stacks"], R["unstacks"]])
SUPPORT_ARGUMENT = np.array([NONE, NONE, R["stacks_on"], R["unstacks_from"]])


def encode(
    problems: Problems, plans: Plans, touch_edges: bool, rng: np.random.Generator, **per_graph: np.ndarray
) -> TripleDataset:
    """One graph for each problem and its plan; nodes and edges of each in random order.

    Block b of a problem is node b before the shuffle, then come the initial state, the goal and the steps.

    Args:
        touch_edges: add ``touches`` from each step to the previous one with the same block as an argument.
        per_graph: [G] each, stored with the samples.
    """
    num_graphs, max_blocks = problems.init.shape
    num_blocks, length = problems.num_blocks, plans.length
    initial_state, goal, first_step = num_blocks, num_blocks + 1, num_blocks + 2
    present, rows = problems.present, np.arange(num_graphs)
    edges: list[tuple[np.ndarray, ...]] = []

    def add(graph: np.ndarray, subject: np.ndarray, predicate: np.ndarray | int, object_: np.ndarray) -> None:
        edges.append((graph, subject, np.broadcast_to(predicate, graph.shape), object_))

    covered = np.zeros((num_graphs, max_blocks + 1), dtype=bool)
    covered[rows[:, None], problems.init] = True
    for support, on, on_table, whole in (
        (problems.init, "init_on", "init_on_table", initial_state),
        (problems.goal, "goal_on", "goal_on_table", goal),
    ):
        graph, block = np.nonzero(present & (support != NONE))
        add(graph, block, R[on], support[graph, block])
        graph, block = np.nonzero(present & (support == NONE))
        add(graph, block, R[on_table], whole[graph])
    graph, block = np.nonzero(present & ~covered[:, :-1])
    add(graph, block, R["init_clear"], initial_state[graph])
    graph, block = np.nonzero(present)
    add(graph, goal[graph], R["requires"], block)
    add(rows, initial_state, R["starts"], first_step)
    add(rows, first_step + length - 1, R["reaches"], goal)

    graph, step = np.nonzero(plans.steps[:, :, 0] != NONE)
    action, block, support = plans.steps[graph, step].T
    node = first_step[graph] + step
    add(graph, node, BLOCK_ARGUMENT[action], block)
    stands = support != NONE
    add(graph[stands], node[stands], SUPPORT_ARGUMENT[action[stands]], support[stands])
    follows = step > 0
    add(graph[follows], node[follows] - 1, R["next"], node[follows])
    if touch_edges:
        for touching, at, before in _touches(plans, max_blocks):
            add(touching, first_step[touching] + at, R["touches"], first_step[touching] + before)

    num_nodes = num_blocks + 2 + length
    offset = np.cumsum(num_nodes) - num_nodes
    node_graph = np.repeat(rows, num_nodes)
    x = np.full(len(node_graph), BLOCK)
    x[offset + initial_state], x[offset + goal] = INITIAL_STATE, GOAL
    x[offset[graph] + node] = ACTION_TOKEN[action]
    order = np.lexsort((rng.random(len(node_graph)), node_graph))
    position = np.empty_like(order)
    position[order] = np.arange(len(order)) - offset[node_graph]

    edge_graph, subject, predicate, object_ = (np.concatenate(column) for column in zip(*edges, strict=True))
    subject, object_ = (position[offset[edge_graph] + end] for end in (subject, object_))
    shuffled = np.lexsort((rng.random(len(edge_graph)), edge_graph))
    return TripleDataset.from_columns(
        num_nodes=num_nodes,
        num_edges=np.bincount(edge_graph, minlength=num_graphs),
        x=x[order],
        level=1 + (x[order] == GOAL),
        edge_index=np.stack([subject, object_])[:, shuffled],
        edge_type=predicate[shuffled],
        edge_attr=np.ones(len(edge_graph)),
        **per_graph,
    )


def order_free(dataset: TripleDataset) -> np.ndarray:
    """What the steps do to each block, whatever their order: [G, F] means, maxima and spreads over the blocks."""
    graphs = _Read(dataset)
    block = np.flatnonzero(graphs.x == BLOCK)
    columns = []
    for ends in (graphs.subject, graphs.object):
        counts = np.bincount(ends * len(RELATIONS) + graphs.predicate, minlength=len(graphs.x) * len(RELATIONS))
        columns.append(counts.reshape(-1, len(RELATIONS))[block])
    table = np.concatenate(columns, axis=1).astype(float)
    incoming = columns[1]
    taken = incoming[:, R["picks_up"]] + incoming[:, R["unstacks"]]
    put = incoming[:, R["puts_down"]] + incoming[:, R["stacks"]]
    wanted = graphs.pairs("goal_on")
    built = np.concatenate([graphs.pairs("init_on"), graphs.block * len(graphs.x) + graphs.support])
    unmet = np.bincount(wanted[~np.isin(wanted, built)] // len(graphs.x), minlength=len(graphs.x))[block]
    table = np.column_stack([table, taken - put, unmet])
    per_graph = graphs.graph[block]
    size = np.bincount(per_graph, minlength=len(dataset))[:, None]
    mean = np.stack([np.bincount(per_graph, column, len(dataset)) for column in table.T], axis=1) / size
    square = np.stack([np.bincount(per_graph, column**2, len(dataset)) for column in table.T], axis=1) / size
    highest = np.full_like(mean, -np.inf)
    np.maximum.at(highest, per_graph, table)
    return np.concatenate([mean, square - mean**2, highest], axis=1)


def local_bigrams(dataset: TripleDataset) -> np.ndarray:
    """What two consecutive steps show, and the first and last step beside the facts: [G, F].

    How often each two actions follow each other with each way of sharing blocks, and how often a check by hand finds
    fault: a hand that is full or empty at the wrong time, another block placed than was picked, a block picked that was
    just covered, from a block that was just placed or from where it was not put, a first step that the initial state
    forbids, a last step that the goal does not want.
    """
    graphs = _Read(dataset)
    following = graphs.ends("next")
    # Where a control has rewired the edges, next may link anything; only actions have bigrams.
    one, two = following[:, np.isin(graphs.x[following], ACTION_TOKEN).all(0)]
    (x, y), (x2, y2) = ((graphs.block[step], graphs.support[step]) for step in (one, two))
    takes, takes2 = (np.isin(graphs.x[step], ACTION_TOKEN[[PICK_UP, UNSTACK]]) for step in (one, two))
    faults = [
        takes == takes2,
        takes & (x != x2),
        takes2 & ((x2 == y) | (y2 == x)),
        takes2 & np.where(x == x2, y != y2, (y == y2) & (y != NONE)),
    ]
    tables = [np.bincount(graphs.graph[one[fault]], minlength=len(dataset)) for fault in faults]
    first, last = graphs.ends("starts")[1], graphs.ends("reaches")[0]
    for step, sound in (
        (first, graphs.stated(first, "init_on", "init_on_table")),
        (first, np.isin(graphs.block[first], graphs.ends("init_clear")[0])),
        (last, graphs.stated(last, "goal_on", "goal_on_table")),
    ):
        tables.append(np.bincount(graphs.graph[step[sound]], minlength=len(dataset)))
    shared = (x == x2) + 2 * ((y == y2) & (y != NONE)) + 4 * (y == x2) + 8 * (x == y2)
    action, action2 = (graphs.x[step] - ACTION_TOKEN[0] for step in (one, two))
    bigram = (action * len(ACTIONS) + action2) * 16 + shared
    kinds = len(ACTIONS) ** 2 * 16
    counts = np.bincount(graphs.graph[one] * kinds + bigram, minlength=len(dataset) * kinds)
    return np.column_stack([*tables, counts.reshape(-1, kinds)])


class _Read:
    """Graphs read back, nodes numbered over the whole dataset; ``block`` and ``support`` [N] are a step's arguments."""

    def __init__(self, dataset: TripleDataset) -> None:
        columns, slices = dataset.columns, dataset.slices
        nodes, edges = torch.diff(slices["x"]), torch.diff(slices["edge_type"])
        ends = (columns["edge_index"] + slices["x"][:-1].repeat_interleave(edges)).numpy()
        self.x = columns["x"].numpy()
        self.graph = torch.repeat_interleave(torch.arange(len(nodes)), nodes).numpy()
        self.subject, self.object = ends
        self.predicate = columns["edge_type"].numpy()
        self.block, self.support = (self._argument(relations) for relations in (BLOCK_ARGUMENT, SUPPORT_ARGUMENT[2:]))

    def ends(self, relation: str) -> np.ndarray:
        """Subjects and objects of a predicate's edges: [2, E of it]."""
        chosen = self.predicate == R[relation]
        return np.stack([self.subject[chosen], self.object[chosen]])

    def pairs(self, relation: str) -> np.ndarray:
        """One number for each edge of a predicate: subject * N + object."""
        subject, object_ = self.ends(relation)
        return subject * len(self.x) + object_

    def stated(self, step: np.ndarray, on: str, on_table: str) -> np.ndarray:
        """Whether the facts of these two predicates say that the step's block stands on the step's support."""
        block, support = self.block[step], self.support[step]
        stands = np.isin(block * len(self.x) + support, self.pairs(on))
        return np.where(support == NONE, np.isin(block, self.ends(on_table)[0]), stands)

    def _argument(self, relations: np.ndarray) -> np.ndarray:
        chosen = np.isin(self.predicate, relations)
        argument = np.full(len(self.x), NONE)
        argument[self.subject[chosen]] = self.object[chosen]
        return argument


def _touches(plans: Plans, max_blocks: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Row, step and previous step of every argument that an earlier step had too."""
    rows = np.arange(len(plans.length))
    latest = np.full((len(rows), max_blocks + 1), NONE)
    found = []
    for step in range(plans.steps.shape[1]):
        arguments = plans.steps[:, step, 1:].T
        for argument in arguments:
            before = latest[rows, argument]
            again = np.flatnonzero((argument != NONE) & (before != NONE))
            found.append((again, np.full(len(again), step), before[again]))
        for argument in arguments:
            latest[rows, argument] = step
        latest[:, NONE] = NONE
    return found
