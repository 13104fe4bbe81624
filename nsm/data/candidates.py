"""Candidate triples of a world: hidden facts, matched false ones, planted doubts, and the graph around a candidate.

A true candidate is a hidden fact with a rule body that is fully observed. Its false partner has the same relation and
keeps one end; the other end is swapped for an entity of the same leaf type, such that nothing but the rule tells them
apart: equal distance, the body's first relation leaving the subject and its last one entering the object, and the
nearest such entity in degrees, incident relations and numbers of short paths.
"""

from typing import Any, NamedTuple

import numpy as np

from nsm.data.world import FAMILIES, LEAVES, ROOTS, SUBCLASS_OF, Rule, Schema, Step, World, relation_ids, step_matrix

TRUE_CONFIDENCE = (0.7, 1.0)
FALSE_CONFIDENCE = (0.05, 0.3)
CLASS_LINK_COST = 100
"""Far above any other difference: an entity that is linked otherwise to the subject's classes is a last resort."""


Fact = tuple[int, int, int]
"""Relation, subject, object: a position in a world's matrices."""


class Candidate(NamedTuple):
    """A triple asked about."""

    subject: int
    relation: int
    object: int


class Pair(NamedTuple):
    """A true candidate, its false partner, and the observed body (``nodes`` from subject to object) that proves it."""

    true: Candidate
    false: Candidate
    rule: Rule
    nodes: tuple[int, ...]


MATCHES = 3
"""Partners considered for one true candidate: the nearest may be taken."""


class Matcher:
    """What matching needs to know of a world's observed facts, counted once."""

    def __init__(self, world: World) -> None:
        observed = world.observed
        linked = observed.any(axis=0)
        adjacent = (linked | linked.T).astype(np.float32)
        self.world = world
        self.degree = adjacent.sum(axis=1)
        self.common = adjacent @ adjacent
        walks = self.common @ adjacent
        self.three_paths = walks - adjacent * (self.degree[:, None] + self.degree[None, :] - 1)
        self.distance = np.select([adjacent > 0, self.common > 0, walks > 0], [1, 2, 3], 4)
        self.leaving = observed.sum(axis=2)
        self.entering = observed.sum(axis=1)
        self.adjacent = adjacent > 0

    def match(self, true: Candidate, rule: Rule, rng: np.random.Generator) -> list[tuple[float, Candidate]]:
        """Possible false partners of ``true`` with their distance from it, nearest first."""
        s, r, o = true
        swaps = [
            np.array([(s, r, other) for other in self._same_type(o) if other != s]),
            np.array([(other, r, o) for other in self._same_type(s) if other != o]),
        ]
        candidates = np.concatenate([swap.reshape(-1, 3) for swap in swaps])
        subjects, objects = candidates[:, 0], candidates[:, 2]
        allowed = ~self.world.closure[r, subjects, objects]
        allowed &= self.distance[subjects, objects] == self.distance[s, o]
        allowed &= self._leaves(rule.body[0])[subjects] > 0
        allowed &= self._enters(rule.body[-1])[objects] > 0
        if len(rule.body) == 1:
            allowed &= self._missing(rule, subjects, objects) == self._missing(rule, s, o)
        candidates = rng.permutation(candidates[allowed])
        cost = self._cost(true, candidates)
        order = np.argsort(cost, kind="stable")
        return [(float(cost[i]), Candidate(*candidates[i].tolist())) for i in order]

    def _missing(self, rule: Rule, subjects: Any, objects: Any) -> Any:
        """How many more facts the body promises at each end than are observed, as one number for both ends.

        Where a fact is hidden one is missing, which counting the relations at an end would show.
        """
        head, step = rule.head, rule.body[0]
        at_subject = self._leaves(step)[subjects] - self.leaving[head, subjects]
        at_object = self._enters(step)[objects] - self.entering[head, objects]
        return at_subject + 1000 * at_object

    def _same_type(self, entity: int) -> np.ndarray:
        leaf = self.world.leaf
        others = np.flatnonzero(leaf[: self.world.num_entities] == leaf[entity])
        return others[others != entity]

    def _leaves(self, step: Step) -> np.ndarray:
        return self.leaving[step[0]] if step[1] else self.entering[step[0]]

    def _enters(self, step: Step) -> np.ndarray:
        return self.entering[step[0]] if step[1] else self.leaving[step[0]]

    def _cost(self, true: Candidate, candidates: np.ndarray) -> np.ndarray:
        """How far each candidate is from ``true`` in what a shortcut could count (whole numbers: no rounding)."""
        s, _, o = true
        subjects, objects = candidates[:, 0], candidates[:, 2]
        cost = np.zeros(len(candidates))
        for end, other in ((s, subjects), (o, objects)):
            cost += np.abs(self.degree[other] - self.degree[end])
            for table in (self.leaving, self.entering):
                cost += 2 * np.abs(table[:, other] - table[:, [end]]).sum(axis=0)
        cost += 3 * np.abs(self.common[subjects, objects] - self.common[s, o])
        cost += np.abs(self.three_paths[subjects, objects] - self.three_paths[s, o])
        classes = self._classes(s)
        differs = self.adjacent[classes][:, objects] != self.adjacent[classes, o][:, None]
        return cost + CLASS_LINK_COST * differs.sum(axis=0)

    def _classes(self, entity: int) -> np.ndarray:
        leaf = self.world.leaf[entity]
        n = self.world.num_entities
        return np.array([n + leaf, n + LEAVES + leaf // (LEAVES // ROOTS)])


def make_pairs(world: World, schema: Schema, per_family: int, rng: np.random.Generator) -> list[Pair]:
    """At most ``per_family`` pairs of each family of rules, the best matched ones, no triple in two of them."""
    matcher = Matcher(world)
    hidden = world.closure & ~world.observed
    pairs: list[Pair] = []
    taken: set[Candidate] = set()
    for family in range(len(FAMILIES)):
        possible = []
        for rule in schema.rules:
            if rule.family == family:
                for s, o in _proven(world, hidden, rule):
                    true = Candidate(s, rule.head, o)
                    possible += [(cost, true, false, rule) for cost, false in matcher.match(true, rule, rng)[:MATCHES]]
        found = 0
        for position in np.argsort([cost for cost, *_ in possible], kind="stable").tolist():
            _, true, false, rule = possible[position]
            if found < per_family and true not in taken and false not in taken:
                taken |= {true, false}
                pairs.append(Pair(true, false, rule, _body(world.observed, rule, true.subject, true.object)))
                found += 1
    return pairs


def _proven(world: World, hidden: np.ndarray, rule: Rule) -> list[list[int]]:
    """Hidden facts about entities that the observed facts prove by ``rule``: (subject, object)."""
    reached = step_matrix(world.observed, rule.body[0])
    for step in rule.body[1:]:
        reached = reached.astype(np.float32) @ step_matrix(world.observed, step).astype(np.float32) > 0
    n = world.num_entities
    return np.argwhere((reached & hidden[rule.head])[:n, :n]).tolist()


def _body(observed: np.ndarray, rule: Rule, s: int, o: int) -> tuple[int, ...]:
    """Nodes of one complete body, the lowest numbers that lead from ``s`` to ``o``."""
    steps = [step_matrix(observed, step) for step in rule.body]
    if len(steps) == 1:
        return (s, o)
    if len(steps) == 2:
        return (s, int(np.argmax(steps[0][s] & steps[1][:, o])), o)
    first, last = np.argwhere(steps[1] & steps[0][s][:, None] & steps[2][:, o][None, :])[0].tolist()
    return (s, first, last, o)


def plant_doubts(
    world: World, schema: Schema, pairs: list[Pair], fraction: float, rng: np.random.Generator
) -> np.ndarray:
    """False facts that make confidence matter, to be observed with low confidence: [F, 3] relation, subject, object.

    For a share of the pairs a lure completes the body of the false candidate: the body's step at the swapped end, led
    to the swapped entity instead. Decoys beside it lead the same way to the end that was swapped and complete nothing,
    so that doubtful edges lie about the true candidates too and do not give the label away.
    """
    planted: set[Fact] = set()
    linked = world.observed.any(axis=0)
    linked |= linked.T
    for pair in pairs:
        if rng.random() >= fraction:
            continue
        body, nodes, other = list(pair.rule.body), list(pair.nodes), pair.false.object
        if pair.true.object == pair.false.object:  # the subject was swapped: walk the body the other way
            body, nodes = [(relation, not forward) for relation, forward in reversed(body)], nodes[::-1]
            other = pair.false.subject
        lure = _fact(body[-1], nodes[-2], other)
        decoys = (
            _decoys_beside_one_step(world, schema, body[0], nodes, other, rng)
            if len(body) == 1
            else _decoys_beside_path(world, body, nodes, linked, rng)
        )
        if other != nodes[-2] and not world.closure[lure] and decoys:
            planted |= {lure, *decoys}
    asked = {(c.relation, c.subject, c.object) for pair in pairs for c in (pair.true, pair.false)}
    return np.array(sorted(planted - asked), dtype=np.int64).reshape(-1, 3)


def _decoys_beside_one_step(
    world: World, schema: Schema, step: Step, nodes: list[int], other: int, rng: np.random.Generator
) -> list[Fact]:
    """Another relation of the same signature between the true ends, and each relation once more at the other entity."""
    start, end = nodes
    ends = (schema.domain[step[0]], schema.range[step[0]])
    near = world.members(world.root[start])
    near = near[(near != start) & (near != end) & (near != other)]
    for relation in rng.permutation([*relation_ids("base"), *relation_ids("symmetric")]).tolist():
        if relation != step[0] and (schema.domain[relation], schema.range[relation]) == ends:
            elsewhere = rng.choice(near, 2).tolist()
            like = (relation, step[1])
            facts = [_fact(like, start, end), _fact(step, elsewhere[0], end), _fact(like, elsewhere[1], other)]
            if not any(world.closure[fact] for fact in facts):
                return facts
    return []


def _decoys_beside_path(
    world: World, body: list[Step], nodes: list[int], linked: np.ndarray, rng: np.random.Generator
) -> list[Fact]:
    """The last step of ``body`` to the last of ``nodes``, from a node that the steps before do not reach."""
    last, end = body[-1], nodes[-1]
    reached = np.zeros(len(world.leaf), dtype=bool)
    reached[nodes[0]] = True
    for step in body[:-1]:
        reached = reached @ step_matrix(world.closure, step)
    is_class = np.arange(len(world.leaf)) >= world.num_entities
    allowed = (is_class == is_class[nodes[-2]]) & ~reached & ~step_matrix(world.closure, last)[:, end]
    allowed &= is_class | (world.root == world.root[nodes[-2]])
    allowed[[end, nodes[0]]] = False
    near = allowed & linked[nodes[-3]]  # so that a doubtful path of the same length leads to the true end as well
    starts = np.flatnonzero(near if near.any() else allowed)
    return [_fact(last, int(rng.choice(starts)), end)] if len(starts) else []


def _fact(step: Step, start: int, end: int) -> Fact:
    relation, forward = step
    return (relation, start, end) if forward else (relation, end, start)


class Enclosing:
    """Cuts the graph around a candidate out of what is observed of a world, true facts and planted ones alike."""

    def __init__(self, world: World, false_facts: np.ndarray, max_nodes: int, rng: np.random.Generator) -> None:
        true_facts = np.argwhere(world.observed)
        facts = np.concatenate([true_facts, false_facts])
        confidence = np.concatenate(
            [rng.uniform(*TRUE_CONFIDENCE, len(true_facts)), rng.uniform(*FALSE_CONFIDENCE, len(false_facts))]
        )
        confidence[facts[:, 0] <= SUBCLASS_OF] = 1.0
        self.max_nodes = max_nodes
        self.relation, self.subject, self.object = facts.T
        self.confidence = confidence.astype(np.float32)
        self.linked = np.zeros((len(world.leaf), len(world.leaf)), dtype=bool)
        self.linked[self.subject, self.object] = self.linked[self.object, self.subject] = True
        roles = np.arange(len(world.leaf)) - world.num_entities
        self.level = 1 + (roles >= 0) + (roles >= LEAVES)
        self.x = np.where(roles < 0, world.leaf, LEAVES + (roles >= LEAVES))
        self.is_class = roles >= 0

    def holds(self, candidate: Candidate) -> bool:
        """Whether the triple itself is observed, true or planted."""
        same = (self.subject == candidate.subject) & (self.object == candidate.object)
        return bool((self.relation[same] == candidate.relation).any())

    def nodes(self, candidate: Candidate, rng: np.random.Generator) -> np.ndarray:
        """Both ends and their neighbours in random order, at most ``max_nodes``.

        Where there are more, classes and common neighbours stay and the others are drawn, whatever the label.
        """
        s, o = candidate.subject, candidate.object
        priority = (self.linked[s] | self.linked[o]).astype(np.int64)
        priority += priority * (self.is_class | (self.linked[s] & self.linked[o]))
        priority[[s, o]] = 3
        near = rng.permutation(np.flatnonzero(priority))
        if len(near) > self.max_nodes:
            near = near[np.argsort(-priority[near], kind="stable")[: self.max_nodes]]
            near = rng.permutation(near)
        return near

    def graph(self, candidate: Candidate, nodes: np.ndarray) -> dict[str, Any]:
        """The observed facts among ``nodes``, as the arrays of a sample."""
        number = np.full(len(self.x), -1)
        number[nodes] = np.arange(len(nodes))
        subject, object_ = number[self.subject], number[self.object]
        inside = (subject >= 0) & (object_ >= 0)
        return {
            "x": self.x[nodes],
            "level": self.level[nodes],
            "edge_index": np.stack([subject[inside], object_[inside]]),
            "edge_type": self.relation[inside],
            "edge_attr": self.confidence[inside],
            "query_index": number[[candidate.subject, candidate.object]],
            "query_type": candidate.relation,
        }
