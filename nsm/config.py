"""The schemas of every configuration group, and the checks of their values.

Hydra's ConfigStore refuses unknown keys and wrong types; ``__post_init__`` checks values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class ConfigError(ValueError):
    """A configuration value that cannot be used; the message names key, value and what is allowed."""


def check(condition: bool, key: str, value: Any, allowed: str) -> None:
    """Raise :class:`ConfigError`, saying what the value must be, unless ``condition`` holds."""
    refuse_unless(condition, key, value, f"it must be {allowed}")


def refuse_unless(condition: bool, key: str, value: Any, reason: str) -> None:
    """Raise :class:`ConfigError`, with a reason in words of its own, unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{key}={value!r} cannot be used: {reason}")


@dataclass
class DomainConfig:
    """What every domain has; a domain's own file adds its fields and the class that ``_target_`` names."""

    _target_: str = MISSING
    seed: int = 0
    batch_size: int = 64
    """Graphs in a training batch."""
    eval_batch_size: int = 256
    """Graphs in a validation or test batch."""
    num_workers: int = 0
    pin_memory: bool = False
    cache_dir: str = "data"
    """Folder for generated data, keyed by a hash of everything that decides it."""
    control: str = "none"
    """``none`` for the real task; ``shuffled_labels`` or ``rewired_edges`` for one in which nothing can be learned."""

    def __post_init__(self) -> None:
        check(self.seed >= 0, "seed", self.seed, "a whole number from 0")
        check(self.batch_size >= 1, "domain.batch_size", self.batch_size, "at least 1 graph")
        check(self.eval_batch_size >= 1, "domain.eval_batch_size", self.eval_batch_size, "at least 1 graph")
        check(self.num_workers >= 0, "domain.num_workers", self.num_workers, "0 (load in this process) or more")
        controls = ("none", "shuffled_labels", "rewired_edges")
        check(self.control in controls, "domain.control", self.control, f"one of {', '.join(controls)}")


@dataclass
class ModelConfig:
    """What every model has; a model's own file adds its fields and ``build``."""

    node_features: int = 64
    """Features of a node at every level."""
    num_bases: int = 8
    """Bases that the relations' weights are combined from."""
    dropout: float = 0.1
    query_features: int = 16
    """Size of the inner product that gates messages by the predicate asked about, where one is."""

    def __post_init__(self) -> None:
        multiple = self.node_features >= 8 and self.node_features % 8 == 0
        check(multiple, "model.node_features", self.node_features, "a multiple of 8, which grouped products need")
        check(self.num_bases >= 1, "model.num_bases", self.num_bases, "at least 1")
        check(0 <= self.dropout < 1, "model.dropout", self.dropout, "a probability below 1")
        check(self.query_features >= 0, "model.query_features", self.query_features, "0 (no gate) or more")


TASKS = ("classification", "link_prediction", "regression")


@dataclass
class DomainDefaults:
    """What a domain, or after it a model, prefers for the other groups; their YAML files refer to it."""

    task_type: str = "classification"
    num_bases: int = 8
    pool_ratio: float = 0.5
    cycle_weight: float = 0.01
    layers: int = 4
    """Of the hierarchy, before its first pooling."""
    flat_layers: int = 7
    """Of the flat baseline, so that it has about as many parameters (2 to 8 % fewer) as the hierarchy of two levels."""
    epochs: int | None = 100
    steps: int = 1000
    epoch_seconds: float | None = None
    """Of a run with the defaults on one busy CPU thread, data and test included; for estimates of what a run will cost.
    A GPU has not been measured."""
    batch_size: int = 64
    eval_batch_size: int = 256
    learning_rate: float = 2e-3
    lr_schedule: str = "plateau"
    warmup: float = 0.0
    hops: int = 1
    """Of triples of one's own: how far around a candidate the model looks."""
    ranking_budget: int = 50_000
    """Of triples of one's own: candidates that a ranking may take."""


@dataclass
class TaskConfig:
    """What is predicted, and what an error costs."""

    type: str = "classification"
    """``classification``, ``link_prediction`` (both: P(y = 1) of a sample) or ``regression`` (its ``target``)."""
    num_logits: int | None = None
    """Numbers the model returns for a sample: 2, or 1 (always for regression); null for the task's usual."""
    class_weights: Any = None
    """Weight of each class in the loss: null, two numbers, or ``balanced`` (inverse frequency in training)."""

    def __post_init__(self) -> None:
        check(self.type in TASKS, "task.type", self.type, f"one of {', '.join(TASKS)}")
        if self.type == "regression":
            refuse_unless(
                self.num_logits in (None, 1), "task.num_logits", self.num_logits, "regression returns 1 number"
            )
            refuse_unless(
                self.class_weights is None, "task.class_weights", self.class_weights, "regression has no classes"
            )
        check(self.num_logits in (None, 1, 2), "task.num_logits", self.num_logits, "1, 2 or null")
        if self.class_weights not in (None, "balanced"):
            two = isinstance(self.class_weights, Sequence) and len(self.class_weights) == 2
            positive = two and all(isinstance(weight, int | float) and weight > 0 for weight in self.class_weights)
            check(positive, "task.class_weights", self.class_weights, "null, balanced, or two numbers above 0")

    @property
    def logits(self) -> int:
        """Numbers the model returns for a sample."""
        return self.num_logits or (1 if self.type == "regression" else 2)


@dataclass
class TemperatureConfig:
    """How sharp pooling's soft decisions are, by epoch."""

    start: float = 1.0
    end: float = 0.3
    decay: float = 0.9999
    """Factor an epoch, after the warm-up."""
    warmup_epochs: int = 10

    def __post_init__(self) -> None:
        check(self.end > 0, "schedule.temperature.end", self.end, "above 0")
        check(self.start >= self.end, "schedule.temperature.start", self.start, f"at least the end, {self.end}")
        check(0 < self.decay <= 1, "schedule.temperature.decay", self.decay, "a factor above 0, at most 1")
        check(self.warmup_epochs >= 0, "schedule.temperature.warmup_epochs", self.warmup_epochs, "0 epochs or more")

    def at(self, epoch: int) -> float:
        """``max(end, start * decay ** max(0, epoch - warmup_epochs))``, epochs counted from 0."""
        return max(self.end, self.start * self.decay ** max(0, epoch - self.warmup_epochs))


@dataclass
class PlateauConfig:
    """When the learning rate falls: after more than ``patience`` epochs in a row without a better validation loss."""

    factor: float = 0.5
    patience: int = 10
    min_lr: float = 1e-6

    def __post_init__(self) -> None:
        check(0 < self.factor < 1, "schedule.plateau.factor", self.factor, "a factor between 0 and 1")
        check(self.patience >= 0, "schedule.plateau.patience", self.patience, "0 epochs or more")
        check(self.min_lr >= 0, "schedule.plateau.min_lr", self.min_lr, "0 or more")


@dataclass
class ScheduleConfig:
    """How long and how fast to learn."""

    max_epochs: int | None = 100
    """Null for as many as ``steps`` take, whose number depends on how much data there is."""
    steps: int = 1000
    """Where ``max_epochs`` is null: so many steps at least, in whole epochs."""
    batch_size: int = 64
    """Graphs in a training batch."""
    accumulate_batches: int = 1
    """Batches whose gradients make one step."""
    optimizer: str = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    gradient_clip: float | None = 1.0
    """Largest norm of the gradient; null for no clipping."""
    lr_schedule: str = "plateau"
    """``plateau`` (on the validation loss), ``one_cycle`` (over all steps) or ``constant``."""
    warmup: float = 0.0
    """Share of all steps in which the learning rate rises, linearly (one-cycle: along a cosine)."""
    plateau: PlateauConfig = field(default_factory=PlateauConfig)
    temperature: TemperatureConfig = field(default_factory=TemperatureConfig)
    early_stopping_patience: int = 20
    """Epochs without a better validation loss before training stops."""
    checkpoint_every_epochs: int = 10
    checkpoint_every_minutes: float | None = 10.0
    """Within an epoch: no more work than this is repeated after a crash. 0 for after every step; null for never."""
    limit_batches: int | None = None
    """At most so many training and validation batches in an epoch; null for all."""
    skip_nonfinite: bool = False
    """Leave out a step whose loss or gradient is no finite number, with a warning, instead of stopping."""
    probe_steps: int = 300
    """Batches that the structure-only decoder learns from, after training."""

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "accumulate_batches", "checkpoint_every_epochs", "probe_steps"):
            check(getattr(self, key) >= 1, f"schedule.{key}", getattr(self, key), "at least 1")
        epochs = self.max_epochs
        check(epochs is None or epochs >= 1, "schedule.max_epochs", epochs, "at least 1, or null for schedule.steps")
        check(self.optimizer in ("adam", "adamw"), "schedule.optimizer", self.optimizer, "adam or adamw")
        check(self.learning_rate > 0, "schedule.learning_rate", self.learning_rate, "above 0")
        check(self.weight_decay >= 0, "schedule.weight_decay", self.weight_decay, "0 or more")
        clip = self.gradient_clip
        check(clip is None or clip > 0, "schedule.gradient_clip", clip, "a norm above 0, or null for no clipping")
        schedules = ("plateau", "one_cycle", "constant")
        check(self.lr_schedule in schedules, "schedule.lr_schedule", self.lr_schedule, f"one of {', '.join(schedules)}")
        check(0 <= self.warmup < 1, "schedule.warmup", self.warmup, "a share of all steps: 0 to below 1")
        patience = self.early_stopping_patience
        check(patience >= 1, "schedule.early_stopping_patience", patience, "at least 1 epoch")
        minutes = self.checkpoint_every_minutes
        allowed = "0 minutes or more, or null for only after each epoch"
        check(minutes is None or minutes >= 0, "schedule.checkpoint_every_minutes", minutes, allowed)
        limit = self.limit_batches
        check(limit is None or limit >= 1, "schedule.limit_batches", limit, "at least 1 batch, or null for all")


PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass
class HardwareConfig:
    """Where a run computes."""

    accelerator: str = "auto"
    """``cpu``, ``gpu``, or ``auto``: the GPU if there is one."""
    devices: int = 1
    """GPUs, or on the CPU processes, that share each batch."""
    precision: str = "32-true"
    tf32: bool = False
    """Let a GPU round the inputs of float32 matrix products to 10 bits."""
    num_workers: int = 0
    """Processes that make batches; 0 makes them in this one, which is fastest for data in memory."""
    pin_memory: bool = False
    threads: int | None = None
    """CPU threads of one operation; null for PyTorch's own choice."""

    def __post_init__(self) -> None:
        accelerators = ("auto", "cpu", "gpu")
        check(
            self.accelerator in accelerators,
            "hardware.accelerator",
            self.accelerator,
            f"one of {_listed(accelerators)}",
        )
        check(self.devices >= 1, "hardware.devices", self.devices, "at least 1")
        check(self.precision in PRECISIONS, "hardware.precision", self.precision, f"one of {_listed(PRECISIONS)}")
        check(self.num_workers >= 0, "hardware.num_workers", self.num_workers, "0 or more")
        check(self.threads is None or self.threads >= 1, "hardware.threads", self.threads, "at least 1, or null")

    @property
    def trainer_options(self) -> dict[str, Any]:
        """What Lightning's ``Trainer`` is told of the device."""
        return {"accelerator": "gpu" if self.device == "cuda" else "cpu", "precision": self.precision}

    @property
    def device(self) -> str:
        """``cuda`` or ``cpu``, what this machine has of what was asked for."""
        return "cuda" if self.accelerator != "cpu" and torch.cuda.is_available() else "cpu"

    def check_present(self) -> None:
        """Raise :class:`ConfigError` if this machine lacks the accelerator or its support for the precision."""
        gpu = torch.cuda.is_available()
        refuse_unless(
            gpu or self.accelerator != "gpu",
            "hardware.accelerator",
            self.accelerator,
            "no GPU was found (hardware=gpu and hardware=a100 need one); use hardware=cpu, or hardware=auto, which "
            "takes a GPU where there is one",
        )
        if self.device == "cuda":
            there = torch.cuda.device_count()
            refuse_unless(
                self.devices <= there,
                "hardware.devices",
                self.devices,
                f"this machine has {there} GPU{'s' * (there > 1)}",
            )
        if self.precision == "16-mixed":
            remedy = "float16 needs a GPU, and there is none in use; use hardware.precision=bf16-mixed or 32-true"
            refuse_unless(self.device == "cuda", "hardware.precision", self.precision, remedy)
        if self.precision == "bf16-mixed" and self.device == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            remedy = f"{torch.cuda.get_device_name()} has no bfloat16; use hardware.precision=16-mixed or 32-true"
            refuse_unless(native, "hardware.precision", self.precision, remedy)


@dataclass
class LoggerConfig:
    """Where curves go beside the run's own files; ``logger=[tensorboard,csv]`` asks for several."""

    tensorboard: bool = False
    csv: bool = False
    wandb: bool = False
    mlflow: bool = False
    project: str = "nsm"
    """Project in Weights & Biases, experiment in MLflow."""
    wandb_mode: str = "offline"
    """``offline`` (``wandb sync`` uploads later) or ``online``."""
    mlflow_uri: str = "sqlite:///mlruns.db"
    """MLflow's store, or the address of its server."""
    figures_every_epochs: int = 1
    """How often TensorBoard gets pictures of the validation; 0 for never."""

    def __post_init__(self) -> None:
        check(self.wandb_mode in ("offline", "online"), "logger.wandb_mode", self.wandb_mode, "offline or online")
        every = self.figures_every_epochs
        check(every >= 0, "logger.figures_every_epochs", every, "a number of epochs, or 0 for never")

    def check_present(self) -> None:
        """Raise :class:`ConfigError` if a logger needs a package that is not installed."""
        for name in ("wandb", "mlflow"):
            here = find_spec(name) is not None
            refuse_unless(
                here or not getattr(self, name), "logger", name, f"it is not installed: pip install -e '.[{name}]'"
            )


@dataclass
class Config:
    """One run."""

    domain: DomainConfig = MISSING
    model: ModelConfig = MISSING
    domain_defaults: DomainDefaults = field(default_factory=DomainDefaults)
    task: TaskConfig = field(default_factory=TaskConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 0
    resume: str = "auto"
    """``auto`` continues a run whose folder holds ``last.ckpt``; ``never`` starts anew."""

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**32, "seed", self.seed, "a whole number from 0 to 2**32 - 1")
        check(self.resume in ("auto", "never"), "resume", self.resume, "auto or never")
        devices, allowed = self.hardware.devices, "a number that schedule.batch_size is a multiple of"
        check(self.domain.batch_size % devices == 0, "hardware.devices", devices, allowed)


def register_schemas(*packages: ModuleType) -> None:
    """Tell Hydra the schemas: ``Config``, each group's, and those of every domain and model.

    Args:
        packages: in which domains and models are defined, so that they are imported by now.
    """
    from hydra.core.config_store import ConfigStore  # here, so that models need no Hydra

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    store.store(group="schema/schedule", name="schedule", node=ScheduleConfig)
    store.store(group="schema/hardware", name="hardware", node=HardwareConfig)
    for group, base in (("domain", DomainConfig), ("model", ModelConfig)):
        for schema in _subclasses(base):
            store.store(group=f"schema/{group}", name=schema_name(schema), node=schema)


def schema_name(schema: type[Any]) -> str:
    """Name of a domain or model by its schema's class: ``CausalConfig`` is ``causal``."""
    return schema.__name__.removesuffix("Config").lower()


def read_config(composed: DictConfig) -> Config:
    """Turn a composed configuration into checked dataclasses.

    Raises:
        ConfigError: naming the first key that does not exist or the first value that cannot be used.
    """
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).split("\n")[0]) from error
    assert isinstance(config, Config)
    _check_keys(composed, config, "")
    return config


def expected_seconds(composed: DictConfig) -> float | None:
    """How long a run will take at most, by its domain's ``epoch_seconds``; None where that is not known."""
    seconds, epochs = composed.domain_defaults.epoch_seconds, composed.schedule.max_epochs
    return None if seconds is None or epochs is None else seconds * epochs


def _check_keys(composed: DictConfig, config: Any, prefix: str) -> None:
    """Refuse what ``+key=value`` added beside the schema: Hydra lets it in and nothing would read it."""
    known = [f.name for f in fields(config)]
    for key in map(str, composed):
        if key not in known:
            raise ConfigError(unknown_key(prefix + key, known))
        if is_dataclass(getattr(config, key)):
            _check_keys(composed[key], getattr(config, key), f"{prefix}{key}.")


def unknown_key(key: str, known: Sequence[str]) -> str:
    """The message for a key that no schema has."""
    parent, _, name = key.rpartition(".")
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"there is no setting {key}: {hint}{parent or 'the configuration'} has {', '.join(sorted(known))}"


def _subclasses(base: type[Any]) -> list[type[Any]]:
    return [found for child in base.__subclasses__() for found in (child, *_subclasses(child))]


def _listed(values: Sequence[str]) -> str:
    return ", ".join(values)
