"""Plans as graphs of triples: the vocabulary and the encoding.

Shape letters as in :mod:`nsm.data.blocksworld`.
"""

import numpy as np

from nsm.data.blocksworld import ACTIONS, NONE, Plans, Problems
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
        for touching, at, before in touches(plans, max_blocks):
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


def touches(plans: Plans, max_blocks: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
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
