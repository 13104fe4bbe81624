"""Stop runs at random moments, continue them, and compare them with runs that were left alone.

Each stop is a signal to a process that runs ``python -m nsm.train``'s own entry point, forked from this one so that the
moments fall into its work and not into its imports.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.context import ForkProcess
from pathlib import Path

import numpy as np

from nsm import checkpoints, cli
from nsm.storage import UNFINISHED
from nsm.train import CONF, main
from tests.same import differences

SHORT = [
    "schedule=smoke",
    "schedule.max_epochs=3",
    "schedule.limit_batches=8",
    "schedule.batch_size=16",
    "model.node_features=16",
    "hardware=cpu",
    "hardware.threads=1",
]
SMALL = {
    "causal": ["domain.num_scenarios=1000"],
    "planning": ["domain.num_problems=150", "domain.long_problems=20", "domain.max_blocks=5"],
    "kg": ["domain.num_worlds=12", "domain.num_entities=80", "domain.num_triples=500", "domain.ranking_queries=20"],
}
EVERY_STEP = "schedule.checkpoint_every_minutes=0"
STOPS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
COUNTS = ("killed", "interrupted", "continued", "bit-identical", "files half-written", "files lost")


def kill(number: int, *, seed: int, folder: Path) -> Counter[str]:
    """Kill ``number`` runs or a few more, spread over the domains; counts what became of them and of their files."""
    rng, total = np.random.default_rng(seed), Counter(dict.fromkeys(COUNTS, 0))
    for name, small in SMALL.items():
        counts = try_domain(name, [f"domain={name}", *SHORT, *small], -(-number // len(SMALL)), rng, folder)
        print(f"{name}: {told(counts)}", flush=True)
        total.update(counts)
    return total


def told(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[what]} {what}" for what in COUNTS)


def try_domain(name: str, overrides: Sequence[str], kills: int, rng: np.random.Generator, folder: Path) -> Counter[str]:
    """Stop runs of one domain, each one to three times, until ``kills`` were killed; then each is run to its end."""
    counts: Counter[str] = Counter()
    whole = folder / f"{name}-whole"
    start = time.monotonic()
    process = launch(overrides, whole)
    process.join()
    seconds = time.monotonic() - start
    if process.exitcode != 0:
        raise RuntimeError(f"{name} fails without faults: see {whole}.out")
    trial = 0
    while counts["killed"] < kills:
        trial += 1
        parted = folder / f"{name}-{trial}"
        for stop in rng.choice(STOPS, size=rng.integers(1, 4)):
            before = sound_files(parted)[0]
            begun = time.monotonic()
            process = launch([*overrides, EVERY_STEP], parted)
            process.join(rng.uniform(0.02, 1.1) * seconds)
            if process.is_alive():
                os.kill(process.pid or 0, stop)
                process.join()
                counts["killed" if stop == signal.SIGKILL else "interrupted"] += process.exitcode != 0
            elif not before:  # a whole run, faster than the first
                seconds = min(seconds, time.monotonic() - begun)
            after, damaged = sound_files(parted)
            lost = before - after - damaged
            counts["files half-written"] += len(damaged)
            counts["files lost"] += len(lost)
            for path in damaged | lost:
                print(f"{path} is damaged or gone")
        process = launch([*overrides, EVERY_STEP], parted)
        process.join()
        found = differences(whole, parted) if process.exitcode == 0 else [f"it ended with {process.exitcode}"]
        found += [f"{path.name} was left" for path in parted.rglob("*") if path.suffix == UNFINISHED]
        found += ["the lock was left"] if (parted / ".lock").exists() else []
        counts["continued"] += 1
        counts["bit-identical"] += not found
        for line in found[:5]:
            print(f"{parted}: {line}")
        if not found:
            shutil.rmtree(parted)
            shutil.rmtree(f"{parted}.data")
    return counts


def launch(overrides: Sequence[str], folder: Path) -> ForkProcess:
    """Start the command in a process of its own, which prints into ``<folder>.out``."""

    def run() -> None:
        with folder.with_suffix(".out").open("ab") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        sys.argv = ["nsm.train", *overrides, f"hydra.run.dir={folder}", f"domain.cache_dir={folder}.data"]
        cli.run(main, CONF, "train")

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def sound_files(folder: Path) -> tuple[set[Path], set[Path]]:
    """The files of a run and of its data that are whole, and those that are not."""
    sound, damaged = set(), set()
    for path in [*folder.glob("*.ckpt"), *folder.glob("*.json"), *Path(f"{folder}.data").glob("*.json")]:
        try:
            if path.suffix == ".ckpt":
                checkpoints.load(path)
            else:
                json.loads(path.read_text())
            sound.add(path)
        except ValueError:
            damaged.add(path)
    return sound, damaged
