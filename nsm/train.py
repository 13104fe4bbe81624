"""``python -m nsm.train``: compose, build, fit, test, write the results."""

import contextlib
import dataclasses
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import Callback, Trainer
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from nsm import callbacks, checkpoints, cli, data, devices, models, resume, runs, saving, tracking
from nsm.config import Config, read_config, refuse_unless, register_schemas, schema_name
from nsm.data.datamodule import TripleDataModule
from nsm.failures import RunError, explained, explaining
from nsm.files import continuing
from nsm.interrupts import Interrupts
from nsm.module import NSMModule, build_module, epochs_and_steps
from nsm.probe import structure_only_error

log = logging.getLogger(__name__)
CYCLE_ERRORS = (
    "cycle_error",
    "cycle_error_shuffled",
    "cycle_error_structure_only",
    "cycle_error_within_types",
)
register_schemas(data, models)
CONF = str(Path(__file__).parent.parent / "conf")


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def main(composed: DictConfig) -> float:
    """One run, in the folder that Hydra made for it; if it is interrupted, says how to continue."""
    launched = HydraConfig.get()
    folder = Path(launched.runtime.output_dir)
    try:
        return train(composed, folder, launched.overrides.task)
    except KeyboardInterrupt:
        log.warning("interrupted; to continue: %s", continuing(launched.overrides.task, folder, cli.python()))
        raise
    except Exception as error:
        if launched.mode == RunMode.MULTIRUN:  # Hydra goes on, and tells of the first failure when all jobs are done
            log.error("job %s failed: %s: %s", launched.job.num, type(error).__name__, error)
        raise


def train(composed: DictConfig, folder: Path, given: Sequence[str] = ()) -> float:
    """Train as configured, write the run into ``folder``, and return the best epoch's validation task loss.

    Where the folder holds the same run, it is continued; where that is complete, nothing is done.

    Args:
        given: what the command line asked for.
    """
    config = read_config(composed)
    settings: Any = OmegaConf.to_container(composed, resolve=True)
    prepare_process(config)
    interrupts = Interrupts()
    if devices.following():
        with interrupts.heeded(), interrupts.patiently():
            follow(composed, config, settings, folder, interrupts)
        sys.exit()
    with interrupts.heeded(), explaining(config.schedule.batch_size), runs.writing(folder):
        past = resume.look(folder, settings)
        if past.results is not None:
            log.info("%s is complete already; resume=never trains it anew", folder)
            return past.results["val"]["task_loss"]
        if config.resume == "never":
            runs.forget(folder)
        history = callbacks.History(folder)
        with recorded(folder, config, settings, history) as record:
            datamodule = build_datamodule(composed, config)
            module = build_module(config, datamodule, settings)
            past.check_fits(module)
            loggers = tracking.build_loggers(config.logger, folder)
            epochs, _ = epochs_and_steps(config.schedule, datamodule)
            trainer = build_trainer(config, epochs, folder, history, loggers, interrupts)
            with interrupts.patiently():
                trainer.fit(module, datamodule=datamodule, ckpt_path=past.checkpoint, weights_only=True)
            if config.hardware.devices > 1:
                devices.part()
                alone = dataclasses.replace(config, hardware=dataclasses.replace(config.hardware, devices=1))
                trainer = build_trainer(alone, epochs, folder, history, loggers, interrupts)
            module.restore(checkpoints.load(folder / checkpoints.BEST))
            log.info("testing on %s", ", ".join(f"{name} ({len(s):,})" for name, s in datamodule.test_sets.items()))
            trainer.test(module, datamodule=datamodule, verbose=False)
            parameters = sum(parameter.numel() for parameter in module.model.parameters())
            results = record("completed") | runs.judged(
                test_results(config, module, datamodule, folder), datamodule, parameters
            )
            runs.write_json(folder / runs.RESULTS, results)
            tracking.log_results(loggers, settings, results, given)
    log.info("%s\n%s", folder, runs.format_table(results, datamodule.ceilings, datamodule.notes))
    return results["val"]["task_loss"]


def follow(composed: DictConfig, config: Config, settings: Any, folder: Path, interrupts: Interrupts) -> None:
    """Train along on a further device with the process that started this one, which alone writes and tells."""
    devices.be_silent()
    datamodule = build_datamodule(composed, config)
    module = build_module(config, datamodule, settings)
    epochs, _ = epochs_and_steps(config.schedule, datamodule)
    trainer = build_trainer(config, epochs, folder, callbacks.History(folder), [], interrupts)
    checkpoint = resume.look(folder, settings).checkpoint
    trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    devices.part()


@contextlib.contextmanager
def recorded(folder: Path, config: Config, settings: Any, history: callbacks.History) -> Iterator[Callable[..., Any]]:
    """Give a function that collects the results so far; those that an exception ends are written, with its reason."""
    start = time.perf_counter()

    def record(status: str, error: str | None = None) -> dict[str, Any]:
        return runs.collect_results(
            domain=schema_name(type(config.domain)),
            model=schema_name(type(config.model)),
            settings=settings,
            history=history.rows,
            seconds=history.seconds_before + time.perf_counter() - start,
            device=config.hardware.device,
            status=status,
            error=error,
        )

    try:
        yield record
    except resume.RefusedError:  # the folder's results are another run's
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        told = explained(error, config.schedule.batch_size)
        stopped = isinstance(told, KeyboardInterrupt)
        with contextlib.suppress(OSError):  # of a full disk, say; what ended the run tells more
            results = record("interrupted" if stopped else "failed", f"{type(told).__name__}: {told}")
            runs.write_json(folder / runs.RESULTS, results)
        if isinstance(told, RunError):
            raise type(told)(f"{told}. {checkpoints.describe(folder)}") from error
        raise


def prepare_process(config: Config) -> None:
    """Set what holds for the whole process: seeds, threads, precision, and where messages go."""
    hardware = config.hardware
    hardware.check_present()
    config.logger.check_present()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    torch.set_float32_matmul_precision("high" if hardware.tf32 else "highest")
    deterministic: Any = torch.utils.deterministic  # which PyTorch does not declare
    deterministic.fill_uninitialized_memory = False  # an aid to debugging, which costs time
    lightning_log = logging.getLogger("lightning.pytorch")
    lightning_log.handlers.clear()
    lightning_log.propagate = True  # into train.log
    lightning_log.setLevel(logging.WARNING)
    # The folder holds Hydra's files from the start, and a continued run's own.
    warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty", UserWarning)
    # Lightning 2.6 uses what PyTorch 2.13 deprecates.
    warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
    # Batches are made by indexing tensors in memory, which workers only slow down.
    warnings.filterwarnings("ignore", r"The '\w+' does not have many workers", PossibleUserWarning)


def build_datamodule(composed: DictConfig, config: Config) -> TripleDataModule:
    """The domain's data, generated or from the cache, its splits proved disjoint."""
    datamodule: TripleDataModule = hydra.utils.instantiate(composed.domain, _convert_="all")
    datamodule.prepare_data()
    datamodule.setup()
    datamodule.check_disjoint()
    if config.task.type == "regression":
        has_target = "target" in datamodule.train_set.columns
        refuse_unless(has_target, "task.type", "regression", f"samples of {datamodule.name} have no number to predict")
    return datamodule


def build_trainer(
    config: Config,
    epochs: int,
    folder: Path,
    history: callbacks.History,
    loggers: list[Logger],
    interrupts: Interrupts,
) -> Trainer:
    """Lightning's trainer with everything that watches a run."""
    schedule, hardware = config.schedule, config.hardware
    on_gpu, in_terminal = hardware.device == "cuda", sys.stdout.isatty()
    watching: list[Callback] = [
        history,
        callbacks.ProgressBar(history) if in_terminal else callbacks.EpochLog(history),
        callbacks.FirstBatch(),
        callbacks.CollapseWarning(),
        tracking.Rates(),
        tracking.Progress(folder),
        saving.Patience(schedule.early_stopping_patience),
        saving.ErrorCheckpoint(folder),
        saving.BestCheckpoint(folder),
        saving.PeriodicCheckpoint(folder, every_epochs=schedule.checkpoint_every_epochs),
        saving.LastCheckpoint(folder, every_minutes=schedule.checkpoint_every_minutes, interrupts=interrupts),
    ]
    if config.logger.figures_every_epochs:
        watching.append(tracking.ValidationFigures(config.logger.figures_every_epochs))
    if on_gpu:
        watching.insert(0, callbacks.GPUStats())  # before the history, which writes them
    return Trainer(
        **hardware.trainer_options,
        devices=hardware.devices,
        strategy=devices.strategy(hardware),
        use_distributed_sampler=False,  # the loaders give every device its part
        deterministic=not on_gpu,
        max_epochs=epochs,
        gradient_clip_val=schedule.gradient_clip,
        accumulate_grad_batches=schedule.accumulate_batches,
        limit_train_batches=schedule.limit_batches,
        limit_val_batches=schedule.limit_batches,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=in_terminal,
        enable_model_summary=False,
        default_root_dir=folder,
        logger=loggers or False,
        callbacks=watching,
        plugins=checkpoints.CheckpointFiles(),
    )


def test_results(
    config: Config, module: NSMModule, datamodule: TripleDataModule, folder: Path
) -> dict[str, float | None]:
    """Every figure of the test sets, after ``trainer.test``."""
    by_set, cycle_errors = module.test_results()
    logged = module.trainer.callback_metrics
    test: dict[str, float | None] = {
        **by_set["test"],
        **{name: float(logged[f"test/{name}"]) for name in ("loss", "task_loss")},
    }
    test |= dict.fromkeys(CYCLE_ERRORS) | cycle_errors
    if module.model.reconstructs:
        steps = config.schedule.probe_steps
        log.info("measuring how much of the way down structure alone explains (schedule.probe_steps=%d)", steps)
        test["cycle_error_structure_only"] = structure_only_error(
            module.model.eval(),
            datamodule.train_dataloader(),
            datamodule.test_dataloader()[0],
            temperature=module.temperature,
            steps=steps,
        )
    if config.task.type != "regression":
        test |= datamodule.metrics({name: torch.cat(parts) for name, parts in module.predictions.items()})
        test |= datamodule.evaluate(module.to(config.hardware.device).eval().scorer, folder)
    return test


if __name__ == "__main__":
    cli.run(main, CONF, "train")
