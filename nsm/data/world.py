"""Worlds of typed entities with rules: the schema all worlds of a data set share, and one world with its closure.

Shape letters: V nodes of a world (entities, then leaf classes, then root classes), R relations.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

ROOTS, LEAVES = 4, 12
SIGNATURES = 9
COUNTS = {"base": 28, "inverse": 6, "symmetric": 6, "composition_2": 12, "composition_3": 8, "inherited": 4}
FAMILIES = ("inverse", "symmetric", "composition_2", "composition_3", "inherited")
"""Families of rules; the position is the number stored as ``family``."""
RELATIONS = ("is_a", "subclass_of", *(f"{kind}_{i}" for kind, count in COUNTS.items() for i in range(count)))
IS_A, SUBCLASS_OF = 0, 1
CLASS_FACTS = 4
"""Expected facts about classes for each inherited relation."""
POOL_SHARE = 3
"""One in so many entities of a leaf type is an object of inherited facts: few, so that classes share them."""

Step = tuple[int, bool]
"""One step of a rule's body: the relation, and whether it is walked from its subject to its object."""


def relation_ids(kind: str) -> range:
    """Ids of the relations of one kind."""
    start = 2
    for name, count in COUNTS.items():
        if name == kind:
            return range(start, start + count)
        start += count
    raise KeyError(kind)


@dataclass(frozen=True)
class Rule:
    """``head(s, o)`` holds for distinct s and o if the steps of ``body`` lead from s to o."""

    head: int
    body: tuple[Step, ...]
    family: int


@dataclass(frozen=True)
class Schema:
    """What all worlds of a data set share.

    ``domain`` and ``range`` [R] hold the root whose entities a relation links (for an inherited relation the range is
    the leaf type ``pool_type`` and the domain is every class); ``rules`` derive the relations that are not base ones.
    """

    domain: tuple[int, ...]
    range: tuple[int, ...]
    pool_type: int
    rules: tuple[Rule, ...]

    def rules_of(self, relation: int) -> list[Rule]:
        """The rules whose head is ``relation``."""
        return [rule for rule in self.rules if rule.head == relation]


@lru_cache(maxsize=8)
def make_schema(seed: int) -> Schema:
    """Draw signatures and rules. Base relations share few signatures, so that wrong relations link the right types."""
    rng = np.random.default_rng(seed)
    loops = [(root, root) for root in rng.permutation(ROOTS)[:3].tolist()]
    cycle = rng.permutation(ROOTS).tolist()
    signatures = loops + [(cycle[i], cycle[(i + 1) % ROOTS]) for i in range(ROOTS)]
    others = [(d, r) for d in range(ROOTS) for r in range(ROOTS) if d != r and (d, r) not in signatures]
    signatures += [others[i] for i in rng.permutation(len(others))[: SIGNATURES - len(signatures)]]
    ends: list[tuple[int, int]] = [(-1, -1)] * len(RELATIONS)
    base, symmetric = list(relation_ids("base")), list(relation_ids("symmetric"))
    for position, relation in enumerate(rng.permutation(base).tolist()):
        ends[relation] = signatures[position % SIGNATURES]
    for position, relation in enumerate(symmetric):
        ends[relation] = loops[position % len(loops)]

    rules = []
    inverted = rng.permutation(base)[: COUNTS["inverse"]].tolist()
    for head, relation in zip(relation_ids("inverse"), inverted, strict=True):
        ends[head] = ends[relation][::-1]
        rules.append(Rule(head, ((relation, False),), FAMILIES.index("inverse")))
    rules += [Rule(head, ((head, False),), FAMILIES.index("symmetric")) for head in symmetric]
    used: set[tuple[int, ...]] = set()
    for length in (2, 3):
        for head in relation_ids(f"composition_{length}"):
            body = _chain(rng, base + symmetric, ends, length, used)
            used.add(body)
            ends[head] = (ends[body[0]][0], ends[body[-1]][1])
            steps = tuple((relation, True) for relation in body)
            rules.append(Rule(head, steps, FAMILIES.index(f"composition_{length}")))
    for head in relation_ids("inherited"):
        for classes in (((IS_A, True),), ((IS_A, True), (SUBCLASS_OF, True))):
            rules.append(Rule(head, (*classes, (head, True)), FAMILIES.index("inherited")))
    domain, range_ = zip(*ends, strict=True)
    return Schema(domain, range_, int(rng.integers(LEAVES)), tuple(rules))


def _chain(
    rng: np.random.Generator,
    relations: list[int],
    ends: list[tuple[int, int]],
    length: int,
    used: set[tuple[int, ...]],
) -> tuple[int, ...]:
    """Relations that follow on each other by signature, none twice, in an order not used yet."""
    while True:
        body = tuple(rng.choice(relations, length, replace=False).tolist())
        if body not in used and all(ends[a][1] == ends[b][0] for a, b in pairwise(body)):
            return body


@dataclass
class World:
    """One world: what is asserted, what follows, and what is observed of it.

    ``leaf`` [V] is the leaf type of an entity or leaf class (-1 for a root class); ``closure`` and ``observed``
    [R, V, V] are indexed by relation, subject, object. ``pool`` holds the objects of inherited facts.
    """

    num_entities: int
    leaf: np.ndarray
    pool: np.ndarray
    closure: np.ndarray
    observed: np.ndarray

    @property
    def root(self) -> np.ndarray:
        """Root of each node [V]: leaf types come in equal blocks."""
        roots = self.leaf // (LEAVES // ROOTS)
        roots[-ROOTS:] = np.arange(ROOTS)
        return roots

    def members(self, root: int) -> np.ndarray:
        """The entities below a root class."""
        return np.flatnonzero(self.root[: self.num_entities] == root)


def make_world(
    schema: Schema, num_entities: int, base_rate: float, hidden_fraction: float, rng: np.random.Generator
) -> World:
    """Draw a world: asserted facts, their closure, and the share of derived facts that stays hidden."""
    num_nodes = num_entities + LEAVES + ROOTS
    classes = np.arange(num_entities, num_entities + LEAVES)
    leaf = np.full(num_nodes, -1)
    leaf[:num_entities] = rng.permutation(np.arange(num_entities) % LEAVES)
    leaf[classes] = np.arange(LEAVES)
    asserted = np.zeros((len(RELATIONS), num_nodes, num_nodes), dtype=bool)
    asserted[IS_A, np.arange(num_entities), num_entities + leaf[:num_entities]] = True
    asserted[SUBCLASS_OF, classes, num_entities + LEAVES + leaf[classes] // (LEAVES // ROOTS)] = True

    members = [np.flatnonzero(leaf[:num_entities] // (LEAVES // ROOTS) == root) for root in range(ROOTS)]
    of_type = np.flatnonzero(leaf[:num_entities] == schema.pool_type)
    pool = of_type[: -(-len(of_type) // POOL_SHARE)]
    every_class = np.arange(num_entities, num_nodes)
    for kind, rate in (("base", base_rate), ("symmetric", base_rate / 2)):
        for relation in relation_ids(kind):
            subjects, objects = members[schema.domain[relation]], members[schema.range[relation]]
            _assert_facts(asserted[relation], subjects, objects, rate, rng)
    for relation in relation_ids("inherited"):
        _assert_facts(asserted[relation], every_class, pool, CLASS_FACTS, rng)

    closure = close(asserted, schema)
    derived = closure & ~asserted
    hidden = np.zeros_like(closure)
    where = np.flatnonzero(derived)
    hidden.flat[where[rng.random(len(where)) < hidden_fraction]] = True
    return World(num_entities, leaf, pool, closure, closure & ~hidden)


def _assert_facts(
    matrix: np.ndarray, subjects: np.ndarray, objects: np.ndarray, rate: float, rng: np.random.Generator
) -> None:
    """Set Poisson(``rate``) cells of subjects x objects; a cell whose ends coincide is left out."""
    cells = len(subjects) * len(objects)
    chosen = rng.choice(cells, min(int(rng.poisson(rate)), cells), replace=False)
    s, o = subjects[chosen // len(objects)], objects[chosen % len(objects)]
    matrix[s[s != o], o[s != o]] = True


def close(facts: np.ndarray, schema: Schema) -> np.ndarray:
    """Everything that follows from ``facts`` [R, V, V], by Boolean matrix products.

    One pass in the order of the rules suffices: the bodies of compositions hold base and symmetric relations only, and
    an inherited relation's classes pass it on through ``is_a`` and at most one ``subclass_of``.
    """
    closure = facts.copy()
    for rule in schema.rules:
        reached = step_matrix(closure, rule.body[0])
        for step in rule.body[1:]:
            reached = reached.astype(np.float32) @ step_matrix(closure, step).astype(np.float32) > 0
        np.fill_diagonal(reached, False)
        closure[rule.head] = closure[rule.head] | reached
    return closure


def step_matrix(facts: np.ndarray, step: Step) -> np.ndarray:
    """Where one step leads: [V, V] from row to column."""
    relation, forward = step
    return facts[relation] if forward else facts[relation].T


def expected_observed(base_rate: float, num_entities: int, hidden_fraction: float) -> float:
    """Expected number of observed true facts of a world with ``base_rate`` facts for each base relation."""
    members, kept = num_entities / ROOTS, 1 - hidden_fraction
    facts = num_entities + LEAVES + (COUNTS["base"] + COUNTS["symmetric"] / 2) * base_rate
    derived = (COUNTS["inverse"] + COUNTS["symmetric"] / 2) * base_rate
    for length in (2, 3):
        derived += COUNTS[f"composition_{length}"] * base_rate**length / members ** (length - 1)
    facts += COUNTS["inherited"] * CLASS_FACTS
    derived += COUNTS["inherited"] * CLASS_FACTS * num_entities * 2 / (LEAVES + ROOTS)
    return facts + kept * derived


def base_rate_for(num_triples: int, num_entities: int, hidden_fraction: float) -> float:
    """The Poisson rate of base facts at which a world has ``num_triples`` observed facts on average (by bisection)."""
    low, high = 0.0, float(num_triples)
    for _ in range(60):
        middle = (low + high) / 2
        if expected_observed(middle, num_entities, hidden_fraction) < num_triples:
            low = middle
        else:
            high = middle
    return high
