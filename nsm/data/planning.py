"""Planning: is this plan for a blocks-world problem valid? The label comes from executing it.

Level 1 holds what is written down: blocks, the facts of the initial state, and one node a step, in order. Level 2 holds
the goal, which explains the steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
from torch import Tensor

from nsm.config import ConfigError, DomainConfig, check
from nsm.data.blocksworld import (
    CORRUPTIONS,
    NONE,
    Plans,
    Problems,
    canonical_hash,
    corrupt,
    execute,
    random_problems,
    reorder,
    solve,
)
from nsm.data.datamodule import Grouping, TripleDataModule
from nsm.data.planning_graph import ENTITY_TYPES, RELATIONS, encode
from nsm.data.planning_shortcuts import block_gaps, handcrafted, local_bigrams, order_free
from nsm.data.triples import TripleDataset

REORDERINGS = 64
"""Swaps proposed to put the moves of a plan into a random valid order."""
MAX_DETOURS = 2
"""Needless moves at most in a plan, so that plans are not recognised as optimal or not."""
ROUNDS = 20
"""How often new problems are drawn before the supply of distinct ones counts as exhausted."""
LENGTH_SPAN = 4
"""Lengths of plan that count as one group where results are broken down."""


@dataclass
class PlanningConfig(DomainConfig):
    """How many blocks-world problems, of what size, and how their plans are spoiled."""

    _target_: str = "nsm.data.planning.PlanningDataModule"
    num_problems: int = 10000
    """Each gives one valid and one corrupted plan, in the same split."""
    min_blocks: int = 4
    max_blocks: int = 8
    long_problems: int = 600
    """Problems of the test set ``long``, larger than anything in training."""
    long_min_blocks: int = 9
    long_max_blocks: int = 12
    corruptions: list[str] = field(default_factory=lambda: ["swap_pairs"])
    """What spoils the invalid plans, one of these drawn for each problem; all but ``swap_pairs`` are easy to see."""
    hidden_swaps: float = 0.6
    """Fraction of the swaps whose fault shows in no two consecutive steps and at neither end of the plan.

    The other swaps are drawn freely, and most of them do show there. At 0 the check ``local_bigrams`` alone finds the
    right answer for about .93 of the plans, at 1 for about .64; at .6 it reaches about .75, so that plans with a fault
    in plain sight occur and still most of what there is to learn lies further apart.
    """
    touch_edges: bool = False
    """Link each step to the previous one that touched the same block, which makes validity a local check."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.corruptions = list(self.corruptions)
        check(self.num_problems >= 20, "domain.num_problems", self.num_problems, "at least 20, to fill three splits")
        check(self.min_blocks >= 3, "domain.min_blocks", self.min_blocks, "at least 3, or no plan can be spoiled")
        check(
            self.max_blocks >= self.min_blocks,
            "domain.max_blocks",
            self.max_blocks,
            f"at least domain.min_blocks={self.min_blocks}",
        )
        check(self.long_problems >= 1, "domain.long_problems", self.long_problems, "at least 1 problem")
        check(
            self.long_min_blocks > self.max_blocks,
            "domain.long_min_blocks",
            self.long_min_blocks,
            f"more than domain.max_blocks={self.max_blocks}, or the long plans are nothing new",
        )
        check(
            self.long_min_blocks <= self.long_max_blocks <= 100,
            "domain.long_max_blocks",
            self.long_max_blocks,
            f"from domain.long_min_blocks={self.long_min_blocks} to 100",
        )
        check(0 <= self.hidden_swaps <= 1, "domain.hidden_swaps", self.hidden_swaps, "a fraction from 0 to 1")
        known = set(CORRUPTIONS)
        check(
            0 < len(self.corruptions) == len(set(self.corruptions) & known),
            "domain.corruptions",
            self.corruptions,
            f"one or more of {', '.join(CORRUPTIONS)}, each once",
        )


class PlanningDataModule(TripleDataModule):
    """Plans for blocks-world problems, valid and corrupted, as graphs.

    Beside the batch contract each sample has ``corruption`` (0 for none, else 1 + its place in ``CORRUPTIONS``),
    ``num_blocks``, ``plan_length``, ``first_failure`` (the step that cannot run; the plan's length if all can) and
    ``target``, the fraction of the plan that runs before the first failure. ``instance`` is the same for problems that
    differ only in the names of their blocks, and no two problems share it.
    """

    name = "planning"
    instance_noun = "problems"
    version: ClassVar[int] = 2
    config_class: ClassVar[type[DomainConfig]] = PlanningConfig
    config: PlanningConfig
    relations = RELATIONS
    entity_types = ENTITY_TYPES
    num_levels = 2

    def generate(self, rng: np.random.Generator) -> dict[str, TripleDataset]:
        """Make ``train``, ``val``, ``test`` by problem (70/15/15), and ``long`` with more blocks than those.

        Raises:
            ConfigError: if there are too few distinct problems of the sizes asked for.
        """
        config = self.config
        made = self._pairs_of_plans("num_problems", config.min_blocks, config.max_blocks, rng)
        long = self._pairs_of_plans("long_problems", config.long_min_blocks, config.long_max_blocks, rng)
        order = rng.permutation(config.num_problems)
        parts = np.split(order, [round(0.7 * len(order)), round(0.85 * len(order))])
        sets = {
            name: self._encode(made.take(rows), rng) for name, rows in zip(("train", "val", "test"), parts, strict=True)
        }
        return sets | {"long": self._encode(long, rng)}

    @property
    def ceilings(self) -> dict[str, float | None]:
        """The graph holds all that decides validity."""
        return {"test": 1.0, "long": 1.0}

    def local_features(self, dataset: TripleDataset) -> dict[str, np.ndarray]:
        """What can be seen without order, in two consecutive steps, in the gaps between steps, and in all of these."""
        tables = (order_free, local_bigrams, block_gaps, handcrafted)
        return {table.__name__: table(dataset) for table in tables}

    def metrics(self, probabilities: Mapping[str, Tensor]) -> dict[str, float]:
        """Accuracy on long plans, and on the valid and each kind of corrupted plans of ``test``."""
        right = {
            name: ((probabilities[name] >= 0.5) == dataset.column("y").bool()).float()
            for name, dataset in self.test_sets.items()
        }
        figures = {"accuracy_long": float(right["long"].mean())}
        kind = self.test_set.column("corruption")
        for number, label in enumerate(("valid", *CORRUPTIONS)):
            if (kind == number).any():
                figures[f"accuracy_{label}"] = float(right["test"][kind == number].mean())
        return figures

    def breakdowns(self, dataset: TripleDataset) -> dict[str, Grouping]:
        """By what spoiled the plan, by its length and by the number of blocks."""
        length, blocks = dataset.column("plan_length"), dataset.column("num_blocks")
        spans = [
            f"{start} to {start + LENGTH_SPAN - 1} steps" for start in range(0, int(length.max()) + 1, LENGTH_SPAN)
        ]
        return {
            "corruption": Grouping(dataset.column("corruption"), ("valid", *CORRUPTIONS)),
            "plan length": Grouping(length // LENGTH_SPAN, tuple(spans)),
            "blocks": Grouping(blocks, tuple(f"{number} blocks" for number in range(int(blocks.max()) + 1))),
        }

    def _pairs_of_plans(
        self, size_key: str, min_blocks: int, max_blocks: int, rng: np.random.Generator
    ) -> "_PairsOfPlans":
        """As many distinct problems as ``size_key`` asks for, each with its two plans."""
        wanted = getattr(self.config, size_key)
        seen: set[int] = set()
        found: list[_PairsOfPlans] = []
        for _ in range(ROUNDS):
            drawn = 2 * (wanted - len(seen)) + 16
            problems = random_problems(rng.integers(min_blocks, max_blocks + 1, drawn), max_blocks, rng)
            hashes = canonical_hash(problems)
            new = np.isin(np.arange(drawn), np.unique(hashes, return_index=True)[1])
            new &= ~np.isin(hashes, list(seen))
            made = self._plan_twice(problems.take(np.flatnonzero(new)), rng)
            made = made.take(np.arange(min(len(made.kind), wanted - len(seen))))
            seen |= set(made.instance.tolist())
            found.append(made)
            if len(seen) == wanted:
                return _join(found)
        raise ConfigError(
            f"domain.{size_key}={wanted!r} cannot be used: only {len(seen)} distinct problems of {min_blocks} to "
            f"{max_blocks} blocks were found; ask for fewer, or for more blocks"
        )

    def _plan_twice(self, problems: Problems, rng: np.random.Generator) -> "_PairsOfPlans":
        """Solve each problem, order the moves anew twice, and spoil one of the two."""
        solved = solve(problems, MAX_DETOURS, rng)
        movable = np.flatnonzero(solved.length >= 4)
        problems, solved = problems.take(movable), solved.take(movable)
        twice = np.tile(np.arange(len(movable)), 2)
        ordered = reorder(problems.take(twice), solved.take(twice), REORDERINGS, rng)
        valid, spoiled = (ordered.take(rows) for rows in np.split(np.arange(len(twice)), 2))
        names = self.config.corruptions
        drawn = rng.integers(0, len(names), len(movable))
        hide = rng.random(len(movable)) < self.config.hidden_swaps
        done = np.zeros(len(movable), dtype=bool)
        for number, name in enumerate(names):
            rows = np.flatnonzero(drawn == number)
            hidden = hide[rows] & (name == "swap_pairs")
            plans, done[rows] = corrupt(problems.take(rows), spoiled.take(rows), name, hidden, rng)
            spoiled.steps[rows], spoiled.length[rows] = plans
        kind = 1 + np.array([list(CORRUPTIONS).index(name) for name in names])[drawn]
        pairs = _PairsOfPlans(problems, valid, spoiled, kind, canonical_hash(problems))
        return pairs.take(np.flatnonzero(done))

    def _encode(self, pairs: "_PairsOfPlans", rng: np.random.Generator) -> TripleDataset:
        """Graphs of both plans of each problem, in random order."""
        order = rng.permutation(2 * len(pairs.kind))
        rows, valid = order // 2, order % 2 == 1
        problems = pairs.problems.take(rows)
        plans = Plans(
            np.where(valid[:, None, None], pairs.valid.steps[rows], pairs.spoiled.steps[rows]),
            np.where(valid, pairs.valid.length[rows], pairs.spoiled.length[rows]),
        )
        outcome = execute(problems, plans)
        assert (outcome.valid == valid).all()
        return encode(
            problems,
            plans,
            self.config.touch_edges,
            rng,
            y=outcome.valid,
            instance=pairs.instance[rows],
            corruption=np.where(valid, 0, pairs.kind[rows]),
            num_blocks=problems.num_blocks,
            plan_length=plans.length,
            first_failure=outcome.first_failure,
            target=outcome.first_failure / plans.length,
        )


class _PairsOfPlans(NamedTuple):
    """Problems with a valid and a spoiled plan each, which ``CORRUPTIONS`` spoiled it (from 1), and the instance."""

    problems: Problems
    valid: Plans
    spoiled: Plans
    kind: np.ndarray
    instance: np.ndarray

    def take(self, rows: np.ndarray) -> "_PairsOfPlans":
        """Those at ``rows``."""
        plans = self.valid.take(rows), self.spoiled.take(rows)
        return _PairsOfPlans(self.problems.take(rows), *plans, self.kind[rows], self.instance[rows])


def _join(parts: Sequence[_PairsOfPlans]) -> _PairsOfPlans:
    """All of them in one, plans padded to the longest."""
    longest = max(part.valid.steps.shape[1] for part in parts)

    def plans(which: str) -> Plans:
        chosen: list[Plans] = [getattr(part, which) for part in parts]
        gaps = [((0, 0), (0, longest - plan.steps.shape[1]), (0, 0)) for plan in chosen]
        steps = [np.pad(plan.steps, gap, constant_values=NONE) for plan, gap in zip(chosen, gaps, strict=True)]
        return Plans(np.concatenate(steps), np.concatenate([plan.length for plan in chosen]))

    problems = Problems(*(np.concatenate(arrays) for arrays in zip(*(part.problems for part in parts), strict=True)))
    kind, instance = (np.concatenate([getattr(part, key) for part in parts]) for key in ("kind", "instance"))
    return _PairsOfPlans(problems, plans("valid"), plans("spoiled"), kind, instance)
