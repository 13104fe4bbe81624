"""What a domain costs: samples to generate, steps to train, predictions to make."""

import io
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from threadpoolctl import threadpool_limits

from benchmarks.meter import PARTS, StepMeter
from benchmarks.stopwatch import OTHER, now
from nsm import callbacks
from nsm.config import Config, ConfigError, read_config
from nsm.data.datamodule import TripleDataModule
from nsm.interrupts import Interrupts
from nsm.module import NSMModule, build_module, epochs_and_steps
from nsm.tracking import build_loggers
from nsm.train import CONF, build_datamodule, build_trainer, prepare_process

# What decides how much data a domain makes, with the least that is worth timing. Other domains are taken whole.
SIZES = {
    "causal": {"num_scenarios": 400},
    "planning": {"num_problems": 150, "long_problems": 10},
    "kg": {"num_worlds": 8, "ranking_queries": 5},
}


def measure_domain(name: str, *, share: float, rounds: int, threads: int) -> dict[str, Any]:
    """Train and predict with the default model on a ``share`` of the default data.

    Returns:
        Graphs a second, milliseconds of a step and the shares of its parts, what its matrix products take alone, and
        samples generated a second.
    """
    composed = compose_small(name, share=share, threads=threads)
    config = read_config(composed)
    prepare_process(config)
    datamodule = build_datamodule(composed, config)
    settings: Any = OmegaConf.to_container(composed, resolve=True)
    module = build_module(config, datamodule, settings)
    return {
        **measure_training(config, module, datamodule, rounds=rounds),
        **measure_inference(config, module, datamodule, rounds=rounds),
        "generated_per_second": measure_generation(datamodule),
    }


def compose_small(name: str, *, share: float, threads: int) -> DictConfig:
    """The default configuration for a domain, with a share of its data and training without an end."""
    endless = ["schedule.max_epochs=1000000", "schedule.early_stopping_patience=1000000"]
    with initialize_config_dir(CONF, version_base="1.3"):
        composed = compose("train", overrides=[f"domain={name}", f"hardware.threads={threads}", *endless])
    for key, fewest in SIZES.get(name, {}).items():
        composed.domain[key] = max(fewest, round(share * composed.domain[key]))
    return composed


def measure_training(config: Config, module: NSMModule, datamodule: TripleDataModule, *, rounds: int) -> dict[str, Any]:
    """Steps of the run that ``nsm.train`` makes, logs and checkpoints included."""
    batch_size, device = config.schedule.batch_size, config.hardware.device
    if len(datamodule.train_set) < 2 * batch_size:
        raise ConfigError(
            f"{datamodule.name} has {len(datamodule.train_set)} samples to train on, and timing needs two batches of "
            f"{batch_size}: take a larger --share"
        )
    meter = StepMeter(rounds=rounds, batch_size=batch_size, device=device)
    with tempfile.TemporaryDirectory() as folder, undisturbed():
        with redirect_stderr(io.StringIO()):  # which is no terminal and gets no progress bar
            loggers = build_loggers(config.logger, Path(folder))
            epochs, _ = epochs_and_steps(config.schedule, datamodule)
            history = callbacks.History(Path(folder))
            trainer = build_trainer(config, epochs, Path(folder), history, loggers, Interrupts())
        meter.fit(trainer, module, datamodule)
    steps = meter.steps
    shares = {part: statistics.median(step.parts[part] / step.watched for step in steps) for part in PARTS}
    seconds = statistics.median(step.seconds for step in steps)
    flops = sum(product.flops for product in meter.products)
    products = statistics.median(step.products for step in steps)
    return {
        "train_graphs_per_second": batch_size / seconds,
        "step_ms": 1e3 * seconds,
        "watched_step_ms": 1e3 * statistics.median(step.watched for step in steps),
        "shares": {**shares, OTHER: 1 - sum(shares.values())},
        "products": len(meter.products),
        "products_gflop": flops / 1e9,
        "products_ms": 1e3 * products,
        "step_per_products": statistics.median(step.seconds / step.products for step in steps),
    }


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without warnings about how well so short a run learns, and without what Lightning leaves set in the process."""
    deterministic, warner = torch.are_deterministic_algorithms_enabled(), logging.getLogger(callbacks.__name__)
    level = warner.level
    warner.setLevel(logging.ERROR)
    try:
        yield
    finally:
        warner.setLevel(level)
        torch.use_deterministic_algorithms(deterministic)


def measure_inference(
    config: Config, module: NSMModule, datamodule: TripleDataModule, *, rounds: int
) -> dict[str, Any]:
    """Predictions for batches as large as those of a test, drawn from the training set."""
    dataset, device, batch_size = datamodule.train_set, config.hardware.device, config.domain.eval_batch_size
    module.to(device).eval()
    rng = np.random.default_rng(0)
    seconds = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            start = now(device)
            module(dataset.__getitems__(rng.integers(len(dataset), size=batch_size).tolist()).to(device))
            seconds.append(now(device) - start)
    return {"predict_graphs_per_second": batch_size / statistics.median(seconds[1:])}


def measure_generation(datamodule: TripleDataModule) -> float:
    """Samples of all splits in a second of one thread's time, without what it waits for other processes."""
    with threadpool_limits(limits=1):
        start = time.process_time()
        sets = datamodule.generate(np.random.default_rng(0))
        return sum(map(len, sets.values())) / (time.process_time() - start)
