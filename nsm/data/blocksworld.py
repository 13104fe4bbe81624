"""Blocks world: problems, plans that solve them, corruptions of those plans, and the STRIPS simulator that judges them.

Everything works on many problems in lockstep, one array row each, so that Python runs once a step and not once a plan.

Shape letters: G problems or plans, B blocks at most, T steps at most. Blocks are numbered from 0; ``NONE`` (-1) is the
table as a support, and no argument or no step elsewhere. Arrays of state have B + 1 columns, so that index -1 falls on
one that belongs to the table.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

PICK_UP, PUT_DOWN, STACK, UNSTACK = range(4)
ACTIONS = ("pick-up", "put-down", "stack", "unstack")
NONE = -1
HELD = -2


class Problems(NamedTuple):
    """``num_blocks`` [G]; ``init`` and ``goal`` [G, B]: what each block stands on, ``NONE`` being the table."""

    num_blocks: np.ndarray
    init: np.ndarray
    goal: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Which columns are blocks of the problem: [G, B]."""
        return np.arange(self.init.shape[1]) < self.num_blocks[:, None]

    def take(self, rows: np.ndarray) -> "Problems":
        """The problems at ``rows``."""
        return Problems(*(array[rows] for array in self))


class Plans(NamedTuple):
    """``steps`` [G, T, 3] (int8): action, block, support (``NONE`` if it has none); ``length`` [G] in steps."""

    steps: np.ndarray
    length: np.ndarray

    def take(self, rows: np.ndarray) -> "Plans":
        """The plans at ``rows``."""
        return Plans(self.steps[rows], self.length[rows])


class Outcome(NamedTuple):
    """``valid`` [G]; ``first_failure`` [G], the step whose precondition fails (the plan's length if none); ``clear``
    [G, B + 1], what is clear at the end of a plan that ran, the last column being the table.
    """

    valid: np.ndarray
    first_failure: np.ndarray
    clear: np.ndarray


def execute(problems: Problems, plans: Plans) -> Outcome:
    """Run each plan from its initial state under the standard STRIPS semantics of the four actions.

    ==================  =====================================  ==============================================
    action              preconditions                          effects
    ==================  =====================================  ==============================================
    pick-up x           clear x, ontable x, handempty          holding x; not clear x, not ontable x
    unstack x from y    clear x, on x y, handempty             holding x, clear y; not clear x, not on x y
    put-down x          holding x                              clear x, ontable x, handempty
    stack x on y        holding x, clear y                     clear x, on x y, handempty; not clear y
    ==================  =====================================  ==============================================
    """
    order = np.argsort(-plans.length, kind="stable")
    running = np.searchsorted(plans.length[order[::-1]], np.arange(int(plans.length.max(initial=0))), side="right")
    steps = np.ascontiguousarray(plans.steps[order].transpose(1, 2, 0), dtype=np.intp)
    on, clear = _initial_state(problems.take(order))
    holding = np.full(len(order), NONE)
    first_failure = plans.length[order]
    # With the table as a support that is always clear, the four actions are two: take x from y, place x on y. Plans
    # are in order of length, so that those still running come first; what follows a failed step is run and ignored.
    for step, ended in enumerate(running):
        rows = np.arange(len(order) - ended)
        action, x, y = steps[step, :, : len(rows)]
        takes = (action == PICK_UP) | (action == UNSTACK)
        held = holding[rows]
        takeable = (held == NONE) & clear[rows, x] & (on[rows, x] == y)
        failed = ~np.where(takes, takeable, (held == x) & clear[rows, y])
        first_failure[rows[failed]] = np.minimum(first_failure[rows[failed]], step)
        on[rows, x] = np.where(takes, HELD, y)
        clear[rows, x] = ~takes
        clear[rows, y] = takes
        clear[:, NONE] = True
        holding[rows] = np.where(takes, x, NONE)
    back = np.argsort(order, kind="stable")
    on, clear, first_failure = on[back], clear[back], first_failure[back]
    reached = ((on[:, :-1] == problems.goal) | ~problems.present).all(1)
    return Outcome((first_failure == plans.length) & reached, first_failure, clear)


def random_problems(num_blocks: np.ndarray, max_blocks: int, rng: np.random.Generator) -> Problems:
    """Random towers to start from and to reach, ``num_blocks`` [G] of them in B = ``max_blocks`` columns."""
    return Problems(num_blocks, _towers(num_blocks, max_blocks, rng), _towers(num_blocks, max_blocks, rng))


def canonical_hash(problems: Problems) -> np.ndarray:
    """A 62-bit number [G] for each problem that stays the same however its blocks are named.

    Colour refinement (Weisfeiler and Leman, 1968) over what lies below and above each block at the start and in the
    goal. Two problems that differ only by names always agree; a few others may agree too, and count as the same.
    """
    rows = np.arange(len(problems.num_blocks))[:, None]
    neighbours = []
    for support in (problems.init, problems.goal):
        above = np.full((len(rows), support.shape[1] + 1), NONE)
        above[rows, support] = np.arange(support.shape[1])
        neighbours += [support, above[:, :-1]]
    colour = np.zeros((len(rows), problems.init.shape[1] + 1), dtype=np.uint64)
    colour[:, NONE] = 1
    for turn in range(problems.init.shape[1]):
        mixed = colour[:, :-1] * np.uint64(0x9E3779B97F4A7C15)
        for place, neighbour in enumerate(neighbours):
            mixed = _scramble(mixed + colour[rows, neighbour] * np.uint64(2 * place + 3))
        going = turn < problems.num_blocks[:, None]  # as many rounds as blocks, whatever the width of the arrays
        colour[:, :-1] = np.where(going, mixed, colour[:, :-1])
    total = np.where(problems.present, _scramble(colour[:, :-1]), np.uint64(0)).sum(1, dtype=np.uint64)
    return (_scramble(total + problems.num_blocks.astype(np.uint64)) >> np.uint64(2)).astype(np.int64)


def solve(problems: Problems, max_detours: int, rng: np.random.Generator) -> Plans:
    """A valid plan for each problem, from a randomised solver that makes up to ``max_detours`` needless moves.

    At each turn it takes, at random, a block that can go to its final place, or one that stands in the way and goes to
    the table: the "US/GN1" family of Slaney and Thiébaux, "Blocks World revisited", Artificial Intelligence 125 (2001).
    """
    num_problems, num_columns = problems.init.shape
    rows = np.arange(num_problems)
    on, clear = _initial_state(problems)
    goal = problems.goal
    detours = rng.integers(0, max_detours + 1, num_problems)
    turns: list[np.ndarray] = []
    length = np.zeros(num_problems, dtype=np.int64)
    while True:
        placed = _placed(on, goal)
        active = (~placed & problems.present).any(1)
        if not active.any():
            break
        movable = clear[:, :-1] & problems.present
        support_ready = clear[rows[:, None], goal] & ((goal == NONE) | placed[rows[:, None], goal])
        constructive = movable & ~placed & support_ready
        in_the_way = movable & ~placed & (on[:, :-1] != NONE)
        wander = np.asarray((detours > 0) & (rng.random(num_problems) < 0.25))
        detours -= wander
        block = _choose((wander[:, None] & movable) | (~wander[:, None] & (constructive | in_the_way)), rng)
        source = on[rows, block]
        elsewhere = clear.copy()
        elsewhere[rows, block] = elsewhere[rows, source] = False
        anywhere = _choose(elsewhere, rng)
        anywhere[anywhere == num_columns] = NONE
        target = np.where(wander, anywhere, np.where(constructive[rows, block], goal[rows, block], NONE))
        moved, x, y, z = rows[active], block[active], source[active], target[active]
        clear[moved, y], clear[moved, z], on[moved, x] = True, False, z
        clear[:, NONE] = True
        turn = np.full((num_problems, 2, 3), NONE, dtype=np.int8)
        turn[moved, 0] = np.stack([np.where(y == NONE, PICK_UP, UNSTACK), x, y], axis=1)
        turn[moved, 1] = np.stack([np.where(z == NONE, PUT_DOWN, STACK), x, z], axis=1)
        turns.append(turn)
        length += 2 * active
    return Plans(np.concatenate(turns, axis=1) if turns else np.full((num_problems, 1, 3), NONE, dtype=np.int8), length)


def reorder(problems: Problems, plans: Plans, proposals: int, rng: np.random.Generator) -> Plans:
    """Put the moves of valid plans into a random valid order, by ``proposals`` swaps kept if the plan stays valid."""
    for _ in range(proposals):
        proposed = swap_pairs(problems, plans, rng)
        valid = execute(problems, proposed).valid
        plans = Plans(np.where(valid[:, None, None], proposed.steps, plans.steps), plans.length)
    return plans


def swap_pairs(problems: Problems, plans: Plans, rng: np.random.Generator) -> Plans:
    """Exchange two pick-and-place pairs, drawn at random from each plan of two or more."""
    pairs = plans.length // 2
    first = rng.integers(0, pairs)
    second = (first + 1 + rng.integers(0, pairs - 1)) % pairs
    rows = np.arange(len(pairs))[:, None]
    here, there = (2 * pair[:, None] + np.arange(2) for pair in (first, second))
    steps = plans.steps.copy()
    steps[rows, here], steps[rows, there] = plans.steps[rows, there], plans.steps[rows, here]
    return Plans(steps, plans.length)


def drop_action(problems: Problems, plans: Plans, rng: np.random.Generator) -> Plans:
    """Leave one action out."""
    num_steps = plans.steps.shape[1]
    dropped = rng.integers(0, plans.length)[:, None]
    source = np.arange(num_steps) + (np.arange(num_steps) >= dropped)
    padded = np.concatenate([plans.steps, np.full_like(plans.steps[:, :1], NONE)], axis=1)
    return Plans(padded[np.arange(len(dropped))[:, None], source], plans.length - 1)


def rename_argument(problems: Problems, plans: Plans, rng: np.random.Generator) -> Plans:
    """Put another block in the place of one argument of one action."""
    rows = np.arange(len(plans.length))
    step = rng.integers(0, plans.length)
    block, support = plans.steps[rows, step, 1], plans.steps[rows, step, 2]
    argument = np.where(support == NONE, 1, rng.integers(1, 3, len(rows)))
    others = np.pad(problems.present, ((0, 0), (0, 1)))
    others[rows, block] = others[rows, support] = False
    steps = plans.steps.copy()
    steps[rows, step, argument] = _choose(others, rng)
    return Plans(steps, plans.length)


def miss_goal(problems: Problems, plans: Plans, rng: np.random.Generator) -> Plans:
    """Let the last action place its block somewhere else: every action can run, and the goal is missed."""
    rows = np.arange(len(plans.length))
    last = plans.length - 1
    elsewhere = execute(problems, Plans(_cut(plans.steps, last), last)).clear
    elsewhere[rows, plans.steps[rows, last, 2]] = False
    support = _choose(elsewhere, rng)
    support[support == problems.init.shape[1]] = NONE
    steps = plans.steps.copy()
    steps[rows, last, 0] = np.where(support == NONE, PUT_DOWN, STACK)
    steps[rows, last, 2] = support
    return Plans(steps, plans.length)


def betrayed(problems: Problems, plans: Plans) -> np.ndarray:
    """Whether one pick-and-place pair and the next cannot both be right, or the first or last step is wrong: [G].

    That is what a look at consecutive steps and the facts beside the ends of the plan can find; a fault between steps
    further apart stays hidden. For plans of whole pick-and-place pairs.
    """
    placed, picked = plans.steps[:, 1:-1:2], plans.steps[:, 2::2]
    x, y, x2, y2 = placed[:, :, 1], placed[:, :, 2], picked[:, :, 1], picked[:, :, 2]
    covers = (x2 == y) | (y2 == x)
    moved = np.where(x2 == x, y2 != y, (y2 == y) & (y != NONE))
    clash = ((x2 != NONE) & (covers | moved)).any(1)
    rows = np.arange(len(plans.length))
    first_runs = execute(problems, Plans(plans.steps[:, :1], np.minimum(plans.length, 1))).first_failure > 0
    last = plans.steps[rows, plans.length - 1]
    return clash | ~first_runs | (problems.goal[rows, last[:, 1]] != last[:, 2])


CORRUPTIONS: dict[str, Callable[[Problems, Plans, np.random.Generator], Plans]] = {
    "swap_pairs": swap_pairs,
    "drop_action": drop_action,
    "rename_argument": rename_argument,
    "miss_goal": miss_goal,
}


def corrupt(
    problems: Problems, plans: Plans, kind: str, hide: np.ndarray, rng: np.random.Generator, tries: int = 64
) -> tuple[Plans, np.ndarray]:
    """Corrupt each plan until it is invalid, so that every invalidating corruption of the kind is equally likely.

    Args:
        hide: [G], where only a corruption that is not :func:`betrayed` will do.

    Returns:
        The corrupted plans, and [G] whether that succeeded within ``tries`` (some plans admit no such corruption).
    """
    steps, length = plans.steps.copy(), plans.length.copy()
    pending = np.arange(len(length))
    for _ in range(tries):
        part = problems.take(pending)
        proposed = CORRUPTIONS[kind](part, plans.take(pending), rng)
        accepted = ~execute(part, proposed).valid & ~(hide[pending] & betrayed(part, proposed))
        steps[pending[accepted]], length[pending[accepted]] = proposed.steps[accepted], proposed.length[accepted]
        pending = pending[~accepted]
        if not len(pending):
            break
    corrupted = np.ones(len(length), dtype=bool)
    corrupted[pending] = False
    return Plans(steps, length), corrupted


def _initial_state(problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """What each block stands on, and what is clear: [G, B + 1] each, the last column the table's."""
    on = np.pad(problems.init, ((0, 0), (0, 1)), constant_values=NONE)
    clear = np.pad(problems.present, ((0, 0), (0, 1)))
    clear[np.arange(len(on))[:, None], problems.init] = False
    clear[:, NONE] = True
    return on, clear


def _towers(num_blocks: np.ndarray, max_blocks: int, rng: np.random.Generator) -> np.ndarray:
    """Blocks in random order, each on the one before it or, as often as the problem's own rate says, on the table."""
    keys = rng.random((len(num_blocks), max_blocks))
    keys[np.arange(max_blocks) >= num_blocks[:, None]] = 2.0
    order = np.argsort(keys, axis=1, kind="stable")
    below = np.concatenate([np.full((len(order), 1), NONE), order[:, :-1]], axis=1)
    ground = rng.random(order.shape) < rng.uniform(0.1, 0.6, (len(order), 1))
    support = np.empty_like(order)
    np.put_along_axis(support, order, np.where(ground, NONE, below), axis=1)
    support[np.arange(max_blocks) >= num_blocks[:, None]] = NONE
    return support


def _placed(on: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Which blocks stand where the goal wants them, down to the table: [G, B]."""
    rows = np.arange(len(on))[:, None]
    placed = np.pad(on[:, :-1] == goal, ((0, 0), (0, 1)), constant_values=True)
    while True:
        lower = placed[:, :-1] & placed[rows, goal]
        if (lower == placed[:, :-1]).all():
            return lower
        placed[:, :-1] = lower


def _choose(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A column [G] drawn uniformly from those that ``mask`` [G, C] allows."""
    return np.where(mask, rng.random(mask.shape), -1.0).argmax(1)


def _cut(steps: np.ndarray, length: np.ndarray) -> np.ndarray:
    return np.where(np.arange(steps.shape[1])[None, :, None] < length[:, None, None], steps, NONE)


def _scramble(value: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of 64-bit numbers."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
