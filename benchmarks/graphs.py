"""What a sample of one's own triples costs, in graphs of 10,000 to a million of them."""

import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nsm.data.own_triples import OwnTriplesDataModule
from nsm.models.hierarchy import NSMConfig

SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (2_000,)
BATCH_SIZE = 128
RELATIONS = 100
TRIPLES_PER_ENTITY = 5
ASKED = 2_000
"""Validation triples, and test triples."""


def measure_graphs(sizes: tuple[int, ...], *, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Each size in a fresh process, so that its peak memory is its own."""
    spawn = multiprocessing.get_context("spawn")
    found = []
    for size in sizes:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            found.append(pool.submit(measure_graph, size, rounds=rounds, threads=threads).result())
    return found


def measure_graph(size: int, *, rounds: int, threads: int) -> dict[str, Any]:
    """Write, load and train on a graph of ``size`` triples.

    Returns:
        Seconds to load (read, corrupt, audit, cache) and to load again, peak memory in bytes, and milliseconds of a
        sample: to cut out, and to train on, which includes that.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_graph(folder, size, np.random.default_rng(0))
        settings = {"path": str(folder), "cache_dir": str(folder / "cache"), "batch_size": BATCH_SIZE}
        seconds = []
        for _ in range(2):
            datamodule = OwnTriplesDataModule(**settings)
            start = time.perf_counter()
            datamodule.prepare_data()
            datamodule.setup()
            seconds.append(time.perf_counter() - start)
        cut, trained = measure_samples(datamodule, rounds)
    return {
        "triples": size,
        "load_seconds": seconds[0],
        "load_again_seconds": seconds[1],
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "cut_ms": 1e3 * cut,
        "train_ms": 1e3 * trained,
    }


def measure_samples(datamodule: OwnTriplesDataModule, rounds: int) -> tuple[float, float]:
    """Seconds of a sample, cut out alone and trained on by the default model; medians over batches seen once."""
    model = NSMConfig(num_bases=12).build(
        num_relations=len(datamodule.relations),
        num_entity_types=len(datamodule.entity_types),
        num_levels=datamodule.num_levels,
        num_logits=2,
        has_query=True,
    )
    dataset = datamodule.train_set
    order = np.random.default_rng(0).permutation(len(dataset))
    cut, trained = [], []
    for i in range(rounds + 1):
        indices = order[np.arange(i * BATCH_SIZE, (i + 1) * BATCH_SIZE) % len(order)].tolist()
        start = time.perf_counter()
        batch = dataset.__getitems__(indices)
        cut.append((time.perf_counter() - start) / BATCH_SIZE)
        output = model(batch)
        loss = torch.nn.functional.cross_entropy(output.logits, batch.y) + output.cycle_loss
        loss.backward()
        trained.append((time.perf_counter() - start) / BATCH_SIZE)
    return float(np.median(cut[1:])), float(np.median(trained[1:]))


def write_graph(folder: Path, size: int, rng: np.random.Generator) -> None:
    """``size`` training triples, whose entities and relations occur very unequally often, and some to ask about."""
    num_entities, asked = size // TRIPLES_PER_ENTITY, min(ASKED, size // 20)
    drawn = rng.random((3, size + 4 * asked + size // 10)) ** 2 * [[num_entities], [RELATIONS], [num_entities]]
    triples = np.unique(drawn.astype(np.int64), axis=1)
    triples = triples[:, rng.permutation(triples.shape[1])]
    train, others = np.split(triples, [size], axis=1)
    others = others[:, np.isin(others[::2], train[::2]).all(axis=0) & np.isin(others[1], train[1])]
    splits = {"train": train, "valid": others[:, :asked], "test": others[:, asked : 2 * asked]}
    for name, part in splits.items():
        np.savetxt(folder / f"{name}.txt", part.T, fmt=["entity_%d", "relation_%d", "entity_%d"], delimiter="\t")
