"""Small folders of triples for tests: a graph with a rule, split into files."""

from pathlib import Path

import numpy as np

from nsm.data.scores import Scored, save_scores

Names = tuple[str, str, str]


def facts(num_entities: int, rng: np.random.Generator, prefix: str = "e") -> list[Names]:
    """``next`` at random, ``back`` its inverse, ``skip`` two steps of it."""
    names = [f"{prefix}{i}" for i in range(num_entities)]
    after = {s: rng.choice(num_entities, 2, replace=False).tolist() for s in range(num_entities)}
    found = []
    for s, objects in after.items():
        for o in (o for o in objects if o != s):
            found += [(names[s], "next", names[o]), (names[o], "back", names[s])]
            found += [(names[s], "skip", names[far]) for far in after[o] if far != s]
    return list(dict.fromkeys(found))


def write(path: Path, triples: list[Names]) -> None:
    path.write_text("".join("\t".join(triple) + "\n" for triple in triples), encoding="utf-8")


def make_folder(
    folder: Path, *, num_entities: int = 40, seed: int = 0, prefix: str = "e", types: bool = True, false: bool = False
) -> Path:
    """``train``, ``valid`` and ``test``, of which the first names every entity; perhaps types and false triples."""
    rng = np.random.default_rng(seed)
    everything = facts(num_entities, rng, prefix)
    order = rng.permutation(len(everything)).tolist()
    train, rest, seen = [], [], set()
    for triple in (everything[i] for i in order):
        new = {triple[0], triple[2], triple[1]} - seen
        (train if new or len(rest) >= len(everything) * 0.3 else rest).append(triple)
        seen |= new
    half = len(rest) // 2
    splits = {"train": train, "valid": rest[:half], "test": rest[half:]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, triples in splits.items():
        write(folder / f"{name}.txt", triples)
    if types:
        rows = [f"{prefix}{i}\t{'even' if i % 2 == 0 else 'odd'}" for i in range(num_entities)]
        (folder / "entity2types.tsv").write_text("\n".join(rows) + "\n")
    if false:
        known, made = set(everything), set()
        for name in ("valid", "test"):
            negatives = []
            for s, r, o in splits[name]:
                others = [f"{prefix}{i}" for i in range(num_entities) if f"{prefix}{i}" not in (s, o)]
                others = [x for x in others if (s, r, x) not in known | made]
                negatives.append((s, r, others[int(rng.integers(len(others)))]))
                made.add(negatives[-1])
            write(folder / f"{name}_negatives.txt", negatives)
    return folder


def read(path: Path) -> list[Names]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("\t")) for line in lines]  # type: ignore[misc]  # three columns each


def make_scores(folder: Path, noise: float, *, seed: int, size: int = 300, test_noise: float | None = None) -> Path:
    """A run's scores: the truth, the same for every seed, with noise on it; scale and order are each seed's own."""
    rng = np.random.default_rng(0)
    triples = {
        name: np.stack([np.arange(size), rng.integers(0, 3, size), rng.integers(0, 9, size)])
        for name in ("val", "test")
    }
    truth = {name: rng.integers(0, 2, size) for name in triples}
    rng = np.random.default_rng(seed)
    scored = {}
    for name, y in truth.items():
        order = rng.permutation(size)
        triples[name] = triples[name][:, order]
        spread = noise if name == "val" or test_noise is None else test_noise
        scored[name] = Scored(
            triples[name][1], y[order], 100.0 ** (seed % 3) * (y[order] + spread * rng.normal(size=size))
        )
    folder.mkdir(exist_ok=True)
    save_scores(folder, triples, scored)
    return folder
