"""``python -m benchmarks.unseen FOLDER``: two worlds with the same rules and no common entity, as files of triples.

``FOLDER/seen`` is to learn from, ``FOLDER/unseen`` is asked about:
``python -m nsm.train domain=triples domain.path=FOLDER/seen domain.inference_path=FOLDER/unseen``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nsm.data.world import RELATIONS, Schema, base_rate_for, close, make_schema, make_world, relation_ids

SEEN, UNSEEN = 1500, 400
"""Entities of the two worlds."""
DENSITY = 6.5
"""Observed facts for each entity, as in the kg domain."""
HIDDEN = 0.3
"""Share of the derived facts that is not in ``train.txt``."""
KINDS = ("base", "inverse", "symmetric", "composition_2", "composition_3")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write both folders."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.unseen", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng, schema = np.random.default_rng(options.seed), make_schema(0)
    write_world(options.folder / "seen", schema, SEEN, "valid", rng)
    write_world(options.folder / "unseen", schema, UNSEEN, "test", rng)


def write_world(folder: Path, schema: Schema, num_entities: int, asked: str, rng: np.random.Generator) -> None:
    """One world: ``train.txt`` with what is observed, ``<asked>.txt`` with what is hidden and follows from it.

    Facts about classes are left out; each entity's leaf type goes into ``entity2types.tsv``.
    """
    rate = base_rate_for(int(DENSITY * num_entities), num_entities, HIDDEN)
    world = make_world(schema, num_entities, rate, HIDDEN, rng)
    relations = [relation for kind in KINDS for relation in relation_ids(kind)]
    hidden = world.closure & ~world.observed & close(world.observed, schema)
    names = [f"{folder.name}_{number}" for number in rng.permutation(num_entities)]
    folder.mkdir(parents=True, exist_ok=True)
    there: set[int] = set()
    for stem, facts in (("train", world.observed), (asked, hidden)):
        lines = []
        for relation in (r for r in relations if world.observed[r].any()):
            for s, o in np.argwhere(facts[relation, :num_entities, :num_entities]).tolist():
                if stem == "train" or {s, o} <= there:
                    lines.append(f"{names[s]}\t{RELATIONS[relation]}\t{names[o]}")
                    there |= {s, o}
        (folder / f"{stem}.txt").write_text("\n".join(lines) + "\n")
    types = [f"{names[entity]}\tleaf_{world.leaf[entity]}" for entity in sorted(there)]
    (folder / "entity2types.tsv").write_text("\n".join(types) + "\n")


if __name__ == "__main__":
    main()
