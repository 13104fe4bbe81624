"""Two worlds without a common entity: what is asked follows from what is observed, by the rules of both."""

from pathlib import Path

import numpy as np

from benchmarks.unseen import write_world
from nsm.data.triple_folder import read_folder
from nsm.data.triple_lines import Problems
from nsm.data.world import RELATIONS, Schema, make_schema
from tests.triple_folders import Names, read


def chained(facts: set[Names], schema: Schema) -> set[Names]:
    """``facts`` and everything that follows from them, rule by rule until nothing new does."""
    while True:
        after: dict[tuple[str, bool, str], set[str]] = {}
        for s, r, o in facts:
            after.setdefault((r, True, s), set()).add(o)
            after.setdefault((r, False, o), set()).add(s)
        new = set()
        for rule in schema.rules:
            for start in {s for s, _, _ in facts} | {o for _, _, o in facts}:
                ends = {start}
                for relation, forward in rule.body:
                    ends = {end for node in ends for end in after.get((RELATIONS[relation], forward, node), ())}
                new |= {(start, RELATIONS[rule.head], end) for end in ends}
        if new <= facts:
            return facts
        facts = facts | new


def test_what_is_asked_follows_from_what_is_observed(tmp_path: Path) -> None:
    schema, rng = make_schema(0), np.random.default_rng(0)
    entities = []
    for name, asked, size in (("seen", "valid", 300), ("unseen", "test", 100)):
        write_world(tmp_path / name, schema, size, asked, rng)
        known, questions = (set(read(tmp_path / name / f"{stem}.txt")) for stem in ("train", asked))
        assert len(questions) > 10
        assert not questions & known
        assert questions <= chained(known, schema)
        entities.append({end for s, _, o in known for end in (s, o)})
    assert not entities[0] & entities[1]
    assert read_folder(tmp_path / "seen", tmp_path / "unseen", Problems(strict=True)).false == {}
