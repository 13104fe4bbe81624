"""What cheap models may see of a plan: feature tables for the shortcut audit, all read from the graph alone.

Shape letters as in :mod:`nsm.data.blocksworld`; N nodes, E edges of all graphs together, F features.
"""

import numpy as np
import torch

from nsm.data.blocksworld import ACTIONS, NONE, PICK_UP, PUT_DOWN, STACK, UNSTACK, Plans, Problems
from nsm.data.planning_graph import ACTION_TOKEN, BLOCK, BLOCK_ARGUMENT, RELATIONS, SUPPORT_ARGUMENT, R, touches
from nsm.data.triples import TripleDataset

LONGEST_GAP = 11
"""Gaps are counted one by one up to this many steps; longer ones count as this."""
END_STEPS = 6
"""How many actions at either end of a plan are given as they are."""


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


def block_gaps(dataset: TripleDataset) -> np.ndarray:
    """How far apart the steps lie that touch the same block: [G, F].

    A histogram of the gaps in steps, their mean and maximum, and when each block is touched first and last, and for how
    long, as fractions of the plan. A gap's parity tells picks from places, so the histogram also summarises, block by
    block, which of them follow each other.
    """
    return _block_gaps(*read_plans(dataset))


def handcrafted(dataset: TripleDataset) -> np.ndarray:
    """All features made by hand, together: [G, F].

    :func:`order_free`, :func:`local_bigrams`, :func:`block_gaps`, where in the plan each action lies, which actions
    begin and end it, when its picks and places agree with the initial state and the goal, and whether they go by the
    heights there. This is the most that was found without executing the plan. It audits the data, as a measure of what
    statistics of the order give away; it is no rival to a model, for it is told what a plan, a goal and a height are.
    A swap that keeps the plan valid escapes it (.53), so what it finds is a trace of invalidity and not of swapping.
    """
    problems, plans = read_plans(dataset)
    return np.column_stack(
        [order_free(dataset), local_bigrams(dataset), _block_gaps(problems, plans), _timing(problems, plans)]
    )


def read_plans(dataset: TripleDataset) -> tuple[Problems, Plans]:
    """The problems and plans that the graphs state, blocks numbered in the order of their nodes.

    A plan ends early where ``next`` leads to no action, and never has more steps than the graph has actions, so that
    graphs with rewired edges can be read too.
    """
    graphs = _Read(dataset)
    num_graphs, is_block, is_action = len(dataset), graphs.x == BLOCK, np.isin(graphs.x, ACTION_TOKEN)
    num_blocks, num_actions = (np.bincount(graphs.graph[of], minlength=num_graphs) for of in (is_block, is_action))
    block = np.flatnonzero(is_block)
    number = np.full(len(graphs.x) + 1, NONE)  # one more, so that no argument is no block
    number[block] = np.arange(len(block)) - np.repeat(np.cumsum(num_blocks) - num_blocks, num_blocks)
    supports = []
    for relation in ("init_on", "goal_on"):
        above, below = graphs.ends(relation)
        stands = (number[above] != NONE) & (number[below] != NONE)
        support = np.full((num_graphs, num_blocks.max()), NONE)
        support[graphs.graph[above[stands]], number[above[stands]]] = number[below[stands]]
        supports.append(support)

    following, step = np.full(len(graphs.x), NONE), np.full(num_graphs, NONE)
    before, after = graphs.ends("next")
    following[before] = after
    _, first = graphs.ends("starts")
    step[graphs.graph[first]] = first
    steps = np.full((num_graphs, num_actions.max(), 3), NONE)
    for turn in range(steps.shape[1]):
        rows = np.flatnonzero((step != NONE) & (turn < num_actions))
        rows = rows[is_action[step[rows]]]
        node = step[rows]
        arguments = number[graphs.block[node]], number[graphs.support[node]]
        steps[rows, turn] = np.stack([graphs.x[node] - ACTION_TOKEN[0], *arguments], axis=1)
        step = np.full(num_graphs, NONE)
        step[rows] = following[node]
    return Problems(num_blocks, *supports), Plans(steps, (steps[:, :, 0] != NONE).sum(1))


def _block_gaps(problems: Problems, plans: Plans) -> np.ndarray:
    num_graphs, max_blocks = problems.init.shape
    rows, at, before = (np.concatenate(column) for column in zip(*touches(plans, max_blocks), strict=True))
    gap = at - before
    short = np.minimum(gap, LONGEST_GAP)
    histogram = np.bincount(rows * LONGEST_GAP + short - 1, minlength=num_graphs * LONGEST_GAP)
    histogram = histogram.reshape(num_graphs, LONGEST_GAP)
    longest = np.zeros(num_graphs)
    np.maximum.at(longest, rows, gap)
    mean = np.bincount(rows, gap, num_graphs) / np.maximum(histogram.sum(1), 1)
    first, last = np.full((num_graphs, max_blocks), np.inf), np.full((num_graphs, max_blocks), -np.inf)
    for argument in (1, 2):
        row, step = np.nonzero(plans.steps[:, :, argument] != NONE)
        block = plans.steps[row, step, argument]
        np.minimum.at(first, (row, block), step)
        np.maximum.at(last, (row, block), step)
    touched = np.isfinite(first)
    first, last = (np.where(touched, time / np.maximum(plans.length, 1)[:, None], 0) for time in (first, last))
    times = [column for time in (first, last, last - first) for column in _moments(time, touched)]
    return np.column_stack([histogram, mean, longest, *times])


def _timing(problems: Problems, plans: Plans) -> np.ndarray:
    """When in the plan, from 0 to 1, its actions lie and agree with the facts."""
    rows = np.arange(len(plans.length))[:, None]
    num_steps = plans.steps.shape[1]
    action, block, support = plans.steps.transpose(2, 0, 1)
    time = np.broadcast_to(np.arange(num_steps), action.shape) / np.maximum(plans.length, 1)[:, None]
    columns: list[np.ndarray] = []
    for kind in range(len(ACTIONS)):
        chosen = action == kind
        columns += _moments(time, chosen)
        columns += [(chosen & (np.floor(4 * time) == quarter)).sum(1) for quarter in range(4)]
    from_end = np.maximum(plans.length[:, None] - 1 - np.arange(END_STEPS), 0)
    ends = [action[rows, np.arange(min(END_STEPS, num_steps))], action[rows, from_end]]
    for facts, kinds in ((problems.init, (PICK_UP, UNSTACK)), (problems.goal, (PUT_DOWN, STACK))):
        agrees = np.isin(action, kinds) & (facts[rows, block] == support)
        columns += _moments(time, agrees)
        height = np.zeros(facts.shape)
        for _ in range(facts.shape[1]):
            height = np.where(facts == NONE, 0, 1 + height[rows, facts])
        columns.append(_covariance(time, height[rows, block], agrees))
    return np.column_stack([*columns, *ends])


def _moments(values: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """Mean, mean square, minimum and maximum of each row of ``values`` [G, C] where ``chosen`` [G, C]: [G] each."""
    count = np.maximum(chosen.sum(1), 1)
    ends = np.where(chosen, values, np.inf).min(1), np.where(chosen, values, -np.inf).max(1)
    return [(values * chosen).sum(1) / count, (values**2 * chosen).sum(1) / count, *ends]


def _covariance(one: np.ndarray, two: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Of each row where ``chosen``: [G]."""
    count = np.maximum(chosen.sum(1), 1)
    mean_one, mean_two = ((values * chosen).sum(1) / count for values in (one, two))
    return (one * two * chosen).sum(1) / count - mean_one * mean_two


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
