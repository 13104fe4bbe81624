"""Worlds: rules and closure against forward chaining over sets of triples, and the sizes asked for."""

import numpy as np
import pytest

from nsm.data.world import (
    FAMILIES,
    IS_A,
    LEAVES,
    RELATIONS,
    ROOTS,
    SIGNATURES,
    SUBCLASS_OF,
    Schema,
    World,
    base_rate_for,
    close,
    make_schema,
    make_world,
    relation_ids,
)

HIDDEN = 0.3
SCHEMA_SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=SCHEMA_SEEDS)
def schema(request: pytest.FixtureRequest) -> Schema:
    return make_schema(request.param)


@pytest.fixture(scope="module")
def world(schema: Schema) -> World:
    return make_world(schema, 120, 14.0, HIDDEN, np.random.default_rng(7))


def triples(matrix: np.ndarray) -> set[tuple[int, int, int]]:
    return {(s, r, o) for r, s, o in np.argwhere(matrix).tolist()}


def forward_chain(facts: set[tuple[int, int, int]], schema: Schema) -> set[tuple[int, int, int]]:
    """Apply every rule to every fact until nothing new follows."""
    known = set(facts)
    while True:
        after: dict[tuple[int, bool], dict[int, set[int]]] = {}
        for s, r, o in known:
            after.setdefault((r, True), {}).setdefault(s, set()).add(o)
            after.setdefault((r, False), {}).setdefault(o, set()).add(s)
        new = set()
        for rule in schema.rules:
            for start in after.get(rule.body[0], {}):
                ends = {start}
                for step in rule.body:
                    ends = {end for node in ends for end in after.get(step, {}).get(node, ())}
                new |= {(start, rule.head, end) for end in ends if end != start}
        if new <= known:
            return known
        known |= new


def test_closure_is_what_forward_chaining_finds(schema: Schema, world: World) -> None:
    # only derived facts are hidden, so everything follows from what is observed
    assert forward_chain(triples(world.observed), schema) == triples(world.closure)
    assert np.array_equal(close(world.closure, schema), world.closure)


def test_hidden_facts_are_derived_and_their_share_is_the_one_asked_for(schema: Schema, world: World) -> None:
    hidden = world.closure & ~world.observed
    assert not hidden[[IS_A, SUBCLASS_OF, *relation_ids("base")]].any()
    derived = world.closure[[r for kind in ("inverse", "composition_2") for r in relation_ids(kind)]].sum()
    share = hidden[[r for kind in ("inverse", "composition_2") for r in relation_ids(kind)]].sum() / derived
    assert abs(share - HIDDEN) < 4 * np.sqrt(HIDDEN * (1 - HIDDEN) / derived)


def test_schema_has_the_relations_and_families_promised(schema: Schema) -> None:
    assert len(RELATIONS) == len(set(RELATIONS)) == 66
    assert len({(schema.domain[r], schema.range[r]) for r in relation_ids("base")}) == SIGNATURES
    heads = {family: {rule.head for rule in schema.rules if FAMILIES[rule.family] == family} for family in FAMILIES}
    assert heads == {family: set(relation_ids(family)) for family in FAMILIES}
    bodies = [rule.body for rule in schema.rules if FAMILIES[rule.family].startswith("composition")]
    assert len(bodies) == len(set(bodies)) == 20
    assert sorted({len(body) for body in bodies}) == [2, 3]


def test_facts_respect_the_signatures(schema: Schema, world: World) -> None:
    for kind in ("base", "inverse", "symmetric", "composition_2", "composition_3"):
        for relation in relation_ids(kind):
            subjects, objects = np.nonzero(world.closure[relation])
            assert (world.root[subjects] == schema.domain[relation]).all()
            assert (world.root[objects] == schema.range[relation]).all()
            assert (subjects != objects).all()
    for relation in relation_ids("inherited"):
        assert (world.leaf[np.nonzero(world.closure[relation])[1]] == schema.pool_type).all()


def test_every_entity_has_a_class_and_every_class_a_root(world: World) -> None:
    n = world.num_entities
    assert (world.closure[IS_A][:n, n : n + LEAVES].sum(axis=1) == 1).all()
    assert world.closure[IS_A].sum() == n
    assert (world.closure[SUBCLASS_OF][n : n + LEAVES, n + LEAVES :].sum(axis=0) == LEAVES // ROOTS).all()


@pytest.mark.parametrize("num_triples", [1300, 2500])
def test_worlds_have_the_observed_triples_asked_for(num_triples: int) -> None:
    rate = base_rate_for(num_triples, 200, HIDDEN)
    sizes = [
        make_world(make_schema(0), 200, rate, HIDDEN, np.random.default_rng([3, i])).observed.sum() for i in range(8)
    ]
    assert np.mean(sizes) == pytest.approx(num_triples, rel=0.05)


def test_schema_follows_its_seed_alone() -> None:
    assert make_schema(0) == make_schema.__wrapped__(0)
    assert make_schema(0) != make_schema(1)
