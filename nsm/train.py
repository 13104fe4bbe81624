"""``python -m nsm.train``: compose, build, fit, test, write the results."""

import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
from hydra.core.hydra_config import HydraConfig
from lightning import Callback, Trainer
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

import nsm.data
import nsm.models
from nsm import callbacks, runs
from nsm.config import Config, ConfigError, check, read_config, register_schemas
from nsm.data.cache import content_hash
from nsm.data.datamodule import TripleDataModule
from nsm.module import NSMModule, build_module

log = logging.getLogger(__name__)
CYCLE_ERRORS = ("cycle_error", "cycle_error_shuffled", "cycle_error_structure_only")
register_schemas()
CONF = str(Path(__file__).parent.parent / "conf")


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def main(composed: DictConfig) -> float:
    """One run, in the folder that Hydra made for it."""
    return train(composed, Path(HydraConfig.get().runtime.output_dir))


def train(composed: DictConfig, folder: Path) -> float:
    """Train as configured, write the run into ``folder``, and return the best validation loss."""
    start = time.perf_counter()
    config = read_config(composed)
    prepare_process(config)
    runs.prepare_folder(folder)
    datamodule = build_datamodule(composed, config)
    settings: Any = OmegaConf.to_container(composed, resolve=True)
    module = build_module(config, datamodule, settings)
    history = callbacks.History(folder)
    trainer = build_trainer(config, folder, history, module)
    last = folder / runs.LAST
    trainer.fit(module, datamodule=datamodule, ckpt_path=last if config.resume == "auto" and last.exists() else None)
    trainer.test(module, datamodule=datamodule, ckpt_path=folder / runs.BEST, verbose=False)
    results = collect_results(config, settings, module, datamodule, history)
    results["seconds"] = time.perf_counter() - start
    runs.write_json(folder / runs.RESULTS, results)
    log.info("\n%s", runs.format_table(results, datamodule.ceilings))
    return results["best_val_loss"]


def prepare_process(config: Config) -> None:
    """Set what holds for the whole process: seeds, threads, precision, and where messages go."""
    hardware = config.hardware
    hardware.check_present()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    if hardware.threads is not None:
        torch.set_num_threads(hardware.threads)
    torch.set_float32_matmul_precision("high" if hardware.tf32 else "highest")
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing here reads memory before writing it
    lightning_log = logging.getLogger("lightning.pytorch")
    lightning_log.handlers.clear()
    lightning_log.propagate = True  # into train.log
    lightning_log.setLevel(logging.WARNING)
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
        check(has_target, "task.type", "regression", f"samples of {datamodule.name} have no number to predict")
    return datamodule


def build_trainer(config: Config, folder: Path, history: callbacks.History, module: NSMModule) -> Trainer:
    """Lightning's trainer with everything that watches a run."""
    schedule, hardware = config.schedule, config.hardware
    on_gpu, in_terminal = hardware.device == "cuda", sys.stderr.isatty()
    watching: list[Callback] = [
        history,
        callbacks.ProgressBar(history) if in_terminal else callbacks.EpochLog(history),
        callbacks.FirstBatch(),
        callbacks.CollapseWarning(),
        LearningRateMonitor(logging_interval="epoch"),
        EarlyStopping("val/loss", patience=schedule.early_stopping_patience),
        callbacks.PeriodicCheckpoint(folder, every_epochs=schedule.checkpoint_every_epochs),
        ModelCheckpoint(folder, "best_model", monitor="val/loss", save_last=True, enable_version_counter=False),
        OnExceptionCheckpoint(folder, "error"),
    ]
    if on_gpu:
        watching.append(DeviceStatsMonitor())
    return Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        precision=hardware.precision,  # type: ignore[arg-type]
        deterministic=not on_gpu,
        max_epochs=schedule.max_epochs,
        gradient_clip_val=schedule.gradient_clip,
        accumulate_grad_batches=schedule.accumulate_batches,
        limit_train_batches=schedule.limit_batches,
        limit_val_batches=schedule.limit_batches,
        limit_test_batches=schedule.limit_batches,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=in_terminal,
        enable_model_summary=False,
        default_root_dir=folder,
        logger=TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False),
        callbacks=watching,
    )


def collect_results(
    config: Config,
    settings: dict[str, Any],
    module: NSMModule,
    datamodule: TripleDataModule,
    history: callbacks.History,
) -> dict[str, Any]:
    """What ``final_results.json`` holds; the same keys for every domain and model."""
    best = min(history.rows, key=lambda row: row["val/loss"])
    by_set, cycle_errors = module.test_results()
    test = dict(by_set["test"]) | {"loss": float(module.trainer.callback_metrics["loss"])}
    test |= {f"accuracy_{name}": by_set[name]["accuracy"] for name in datamodule.ceilings if name != "test"}
    test |= {name: cycle_errors.get(name) for name in CYCLE_ERRORS}
    test |= datamodule.metrics({name: torch.cat(parts) for name, parts in module.predictions.items()})
    is_class = config.task.type != "regression"
    return {
        "status": "completed",
        "domain": datamodule.name,
        "model": type(config.model).__name__.removesuffix("Config").lower(),
        "levels": getattr(config.model, "levels", None),
        "seed": config.seed,
        "epochs": history.rows[-1]["epoch"],
        "best_epoch": best["epoch"],
        "best_val_loss": best["val/loss"],
        "val": {key.removeprefix("val/"): value for key, value in best.items() if key.startswith("val/")},
        "test": test,
        "majority": datamodule.majority if is_class else None,
        "shortcuts": datamodule.shortcuts if is_class else {},
        "ceiling": datamodule.ceiling,
        "ceiling_do": datamodule.ceilings.get("do"),
        "collapsed": is_class and callbacks.collapsed(test["accuracy_class_0"], test["accuracy_class_1"]),
        "parameters": sum(parameter.numel() for parameter in module.model.parameters()),
        "seconds": None,
        "graphs_per_second": history.graphs_per_second,
        "peak_memory_bytes": runs.peak_memory_bytes(),
        "device": torch.cuda.get_device_name() if config.hardware.device == "cuda" else "cpu",
        "cost_usd": None,
        "versions": runs.versions(),
        "git_commit": runs.git_commit(),
        "config_hash": content_hash({key: value for key, value in settings.items() if key != "resume"}),
    }


if __name__ == "__main__":
    main()
