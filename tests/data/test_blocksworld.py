"""Blocks world: the simulator against hand-made cases, the solver, the reorderings, the corruptions, the hash."""

import numpy as np
import pytest

from nsm.data.blocksworld import (
    CORRUPTIONS,
    NONE,
    PICK_UP,
    PUT_DOWN,
    STACK,
    UNSTACK,
    Plans,
    Problems,
    betrayed,
    canonical_hash,
    corrupt,
    execute,
    random_problems,
    reorder,
    solve,
)

A, B, C = range(3)


def run(init: list[int], goal: list[int], *steps: tuple[int, int, int]) -> tuple[bool, int]:
    problems = Problems(np.array([len(init)]), np.array([init]), np.array([goal]))
    outcome = execute(problems, Plans(np.array([steps], dtype=np.int8), np.array([len(steps)])))
    return bool(outcome.valid[0]), int(outcome.first_failure[0])


@pytest.mark.parametrize(
    ("steps", "valid", "first_failure"),
    [
        pytest.param([(UNSTACK, B, A), (PUT_DOWN, B, NONE), (PICK_UP, C, NONE), (STACK, C, A)], True, 4, id="valid"),
        pytest.param([(UNSTACK, B, A), (PUT_DOWN, B, NONE)], False, 2, id="goal missed"),
        pytest.param([(UNSTACK, B, A), (PUT_DOWN, B, NONE), (PICK_UP, C, NONE)], False, 3, id="left in the hand"),
        pytest.param([(PICK_UP, A, NONE), (PUT_DOWN, A, NONE)], False, 0, id="pick-up of a covered block"),
        pytest.param([(PICK_UP, B, NONE), (PUT_DOWN, B, NONE)], False, 0, id="pick-up of a block on a block"),
        pytest.param([(UNSTACK, B, C), (PUT_DOWN, B, NONE)], False, 0, id="unstack from another block"),
        pytest.param([(UNSTACK, C, A), (PUT_DOWN, C, NONE)], False, 0, id="unstack of a block on the table"),
        pytest.param([(UNSTACK, B, A), (PICK_UP, C, NONE)], False, 1, id="full hand"),
        pytest.param([(PUT_DOWN, C, NONE), (PICK_UP, C, NONE)], False, 0, id="empty hand"),
        pytest.param([(UNSTACK, B, A), (PUT_DOWN, C, NONE)], False, 1, id="another block put down"),
        pytest.param([(PICK_UP, C, NONE), (STACK, C, A)], False, 1, id="stack on a covered block"),
        pytest.param([(PICK_UP, C, NONE), (STACK, C, C)], False, 1, id="stack on itself"),
    ],
)
def test_execute_knows_each_precondition(steps, valid, first_failure):
    assert run([NONE, A, NONE], [NONE, NONE, A], *steps) == (valid, first_failure)


def test_an_empty_plan_is_valid_only_where_the_goal_holds_already():
    problems = Problems(np.array([2, 2]), np.array([[NONE, A], [NONE, A]]), np.array([[NONE, A], [B, NONE]]))
    empty = Plans(np.full((2, 1, 3), NONE, dtype=np.int8), np.zeros(2, dtype=np.int64))
    assert execute(problems, empty).valid.tolist() == [True, False]


def strips(problem: tuple[int, list[int], list[int]], steps: list[tuple[int, int, int]]) -> tuple[bool, int]:
    """A plain set of facts and four rules, one plan at a time."""
    size, init, goal = problem
    facts = {("empty",)} | {("clear", b) for b in range(size) if b not in init[:size]}
    facts |= {("on", b, s) if s != NONE else ("table", b) for b, s in enumerate(init[:size])}
    for number, (action, x, y) in enumerate(steps):
        free, held = {("clear", x), ("empty",)}, {("holding", x)}
        needs, adds, removes = {
            PICK_UP: (free | {("table", x)}, held, free | {("table", x)}),
            UNSTACK: (free | {("on", x, y)}, held | {("clear", y)}, free | {("on", x, y)}),
            PUT_DOWN: (held, free | {("table", x)}, held),
            STACK: (held | {("clear", y)}, free | {("on", x, y)}, held | {("clear", y)}),
        }[action]
        if not needs <= facts:
            return False, number
        facts = (facts - removes) | adds
    wanted = {("on", b, s) if s != NONE else ("table", b) for b, s in enumerate(goal[:size])}
    return wanted <= facts, len(steps)


@pytest.fixture(scope="module")
def solved() -> tuple[Problems, Plans]:
    rng = np.random.default_rng(11)
    problems = random_problems(rng.integers(4, 9, 400), 8, rng)
    plans = solve(problems, 2, rng)
    rows = np.flatnonzero(plans.length >= 4)
    return problems.take(rows), plans.take(rows)


def as_problem(problems: Problems, row: int) -> tuple[int, list[int], list[int]]:
    return int(problems.num_blocks[row]), problems.init[row].tolist(), problems.goal[row].tolist()


def as_steps(plans: Plans, row: int) -> list[tuple[int, int, int]]:
    return [tuple(step) for step in plans.steps[row, : plans.length[row]].tolist()]


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_lockstep_execution_equals_a_plain_simulator(solved, kind):
    problems, plans = solved
    hide = np.zeros(len(plans.length), dtype=bool)
    spoiled, done = corrupt(problems, plans, kind, hide, np.random.default_rng(12))
    assert done.mean() > 0.9
    for given, expected in ((plans, np.ones(len(done), dtype=bool)), (spoiled, ~done)):
        outcome = execute(problems, given)
        assert (outcome.valid == expected).all()
        for row in range(len(done)):
            judged = strips(as_problem(problems, row), as_steps(given, row))
            assert judged == (bool(outcome.valid[row]), int(outcome.first_failure[row]))


def test_the_solver_makes_detours_only_if_asked():
    rng = np.random.default_rng(13)
    problems = random_problems(np.full(300, 6), 6, rng)
    short, wandering = (solve(problems, detours, np.random.default_rng(14)).length for detours in (0, 3))
    assert (short <= 4 * problems.num_blocks).all()  # two moves of two steps a block at most
    assert wandering.mean() > short.mean() + 1


def test_reordering_keeps_the_moves_and_validity(solved):
    problems, plans = solved
    reordered = reorder(problems, plans, 64, np.random.default_rng(15))
    assert execute(problems, reordered).valid.all()
    changed = 0
    for row in range(len(plans.length)):
        before, after = as_steps(plans, row), as_steps(reordered, row)
        moves = [sorted(zip(steps[::2], steps[1::2], strict=True)) for steps in (before, after)]
        assert moves[0] == moves[1]
        changed += before != after
    assert changed > 0.4 * len(plans.length)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_corruption_changes_what_it_says(solved, kind):
    problems, plans = solved
    hide = np.zeros(len(plans.length), dtype=bool)
    spoiled, done = corrupt(problems, plans, kind, hide, np.random.default_rng(16))
    for row in np.flatnonzero(done):
        before, after = as_steps(plans, row), as_steps(spoiled, row)
        if kind == "drop_action":
            assert any(before[:cut] + before[cut + 1 :] == after for cut in range(len(before)))
            continue
        assert len(before) == len(after)
        changed = [number for number, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
        if kind == "swap_pairs":
            assert sorted(before) == sorted(after)
            assert len({number // 2 for number in changed}) == 2
        elif kind == "rename_argument":
            (number,) = changed
            assert sum(old != new for old, new in zip(before[number], after[number], strict=True)) == 1
            assert after[number][1] != after[number][2]
            assert max(after[number][1:]) < problems.num_blocks[row]
        else:
            assert changed == [len(before) - 1]
            assert before[-1][1] == after[-1][1]
            assert strips(as_problem(problems, row), after)[1] == len(after)


def test_hidden_swaps_show_in_no_two_consecutive_pairs(solved):
    problems, plans = solved
    hide = np.ones(len(plans.length), dtype=bool)
    spoiled, done = corrupt(problems, plans, "swap_pairs", hide, np.random.default_rng(17))
    assert done.sum() > 50
    assert not betrayed(problems, plans).any()
    for row in np.flatnonzero(done):
        steps, (size, _, goal) = as_steps(spoiled, row), as_problem(problems, row)
        assert strips(as_problem(problems, row), steps[:1])[1] == 1
        assert goal[steps[-1][1]] == steps[-1][2]
        for cut in range(0, len(steps) - 2, 2):
            # Some state lets the two pairs run: the tower that each move needs, and nothing else.
            (_, x, y), (_, _, z), (_, x2, y2), _ = steps[cut : cut + 4]
            state = {x: y, **({x2: y2} if x2 != x and (x2, y2) != (y, x) else {})}
            init = [state.get(block, NONE) for block in range(size)]
            assert strips((size, init, goal), steps[cut : cut + 3])[1] == 3, (steps[cut : cut + 4], z)


def test_the_hash_ignores_names_and_sees_everything_else():
    rng = np.random.default_rng(18)
    problems = random_problems(np.full(200, 6), 6, rng)
    names = np.argsort(rng.random((200, 6)), axis=1)

    def rename(support: np.ndarray) -> np.ndarray:
        renamed = np.empty_like(support)
        for row in range(len(support)):
            for block, below in enumerate(support[row]):
                renamed[row, names[row, block]] = NONE if below == NONE else names[row, below]
        return renamed

    hashes = canonical_hash(problems)
    renamed = Problems(problems.num_blocks, rename(problems.init), rename(problems.goal))
    assert (canonical_hash(renamed) == hashes).all()
    wider = Problems(problems.num_blocks, *(np.pad(s, ((0, 0), (0, 3)), constant_values=NONE) for s in problems[1:]))
    assert (canonical_hash(wider) == hashes).all()
    assert ((hashes >= 0) & (hashes < 2**62)).all()
    backwards = Problems(problems.num_blocks, problems.goal, problems.init)
    assert (canonical_hash(backwards) != hashes).mean() > 0.95
    towers = np.array([[NONE, A, B], [NONE, A, NONE], [NONE, NONE, NONE]])
    flat = np.full((3, 3), NONE)
    assert len(set(canonical_hash(Problems(np.full(3, 3), towers, flat)).tolist())) == 3
