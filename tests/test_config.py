"""Every shipped configuration composes; every wrong key and value is refused with a remedy."""

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from nsm import cli
from nsm.config import Config, ConfigError, HardwareConfig, ScheduleConfig, TaskConfig, TemperatureConfig, read_config
from nsm.models.hierarchy import NSMConfig
from nsm.train import CONF
from tests.toy import TinyConfig, ToyConfig


def shipped(group: str) -> list[str]:
    return sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml"))


def configurations(*overrides: str) -> list[Config]:
    return cli.check_configurations(overrides, CONF, "train")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old GPU")


@pytest.mark.parametrize(("domain", "model"), list(product(shipped("domain"), shipped("model"))))
def test_every_domain_composes_with_every_model(domain: str, model: str) -> None:
    (config,) = configurations(f"domain={domain}", f"model={model}", "seed=7")
    assert config.domain.seed == 7
    assert config.domain._target_.startswith("nsm.data.")
    assert config.model.num_bases >= 1


@pytest.mark.parametrize("schedule", shipped("schedule"))
def test_every_schedule_composes(schedule: str) -> None:
    (config,) = configurations(f"schedule={schedule}")
    assert config.domain.batch_size == config.schedule.batch_size


@pytest.mark.parametrize("hardware", shipped("hardware"))
@pytest.mark.usefixtures("gpu")
def test_every_hardware_composes(hardware: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    (config,) = configurations(f"hardware={hardware}")
    assert config.domain.num_workers == config.hardware.num_workers
    assert config.hardware.device == ("cpu" if hardware == "cpu" else "cuda")


@pytest.mark.parametrize("experiment", shipped("experiment"))
def test_every_experiment_composes(experiment: str) -> None:
    assert configurations(f"experiment={experiment}")


@pytest.mark.parametrize(
    ("domain", "bases", "ratio", "weight", "task", "sizes"),
    [
        ("planning", 8, 0.5, 0.01, "classification", {"num_problems": 2858}),
        ("causal", 5, 0.5, 0.01, "classification", {"num_scenarios": 2000}),
        ("kg", 12, 0.13, 0.05, "link_prediction", {"num_entities": 200, "num_triples": 2500}),
    ],
)
def test_original_is_the_specification(
    domain: str, bases: int, ratio: float, weight: float, task: str, sizes: dict[str, int]
) -> None:
    (config,) = configurations("experiment=original", f"domain={domain}")
    model, schedule = config.model, config.schedule
    assert isinstance(model, NSMConfig)
    assert (model.num_bases, model.pool_ratio, model.cycle_weight) == (bases, ratio, weight)
    assert model.node_features == 64
    assert config.task.type == task
    assert {key: getattr(config.domain, key) for key in sizes} == sizes
    assert (schedule.optimizer, schedule.learning_rate, schedule.weight_decay) == ("adam", 1e-4, 1e-5)
    assert (schedule.batch_size, schedule.gradient_clip, schedule.max_epochs) == (64, 1.0, 100)
    assert (schedule.lr_schedule, schedule.plateau.factor, schedule.plateau.patience) == ("plateau", 0.5, 10)
    assert (schedule.early_stopping_patience, schedule.checkpoint_every_epochs) == (20, 10)
    assert schedule.temperature == TemperatureConfig(start=1.0, end=0.3, decay=0.9999, warmup_epochs=10)


def test_experiments_sweep_what_they_say() -> None:
    ratios = [config.model.pool_ratio for config in configurations("experiment=kg_pool_ratio")]
    assert ratios == [0.13, 0.15, 0.17, 0.20]
    levels = [getattr(config.model, "levels", None) for config in configurations("experiment=levels", "seed=0,1")]
    assert sorted(map(str, levels)) == ["2", "2", "3", "3", "None", "None"]


def test_command_line_wins_over_what_the_domain_prefers() -> None:
    (config,) = configurations("model.pool_ratio=0.2", "schedule.max_epochs=3")
    assert isinstance(config.model, NSMConfig)
    assert config.model.pool_ratio == 0.2
    assert config.schedule.max_epochs == 3


def test_a_new_domain_is_one_class_and_one_file(composed: Callable[..., DictConfig]) -> None:
    config = read_config(composed("domain.num_samples=50"))
    assert isinstance(config.domain, ToyConfig)
    assert isinstance(config.model, TinyConfig)
    assert config.domain.num_samples == 50
    assert config.schedule.max_epochs == 2


@pytest.mark.parametrize(
    ("override", "key", "hint"),
    [
        ("model.pool_rato=0.2", "model.pool_rato", "did you mean pool_ratio?"),
        ("+model.pool_rato=0.2", "model.pool_rato", "did you mean pool_ratio?"),
        ("schedule.plateau.patiense=3", "schedule.plateau.patiense", "did you mean patience?"),
        ("+hardware.cores=2", "hardware.cores", "threads"),
        ("sede=1", "sede", "did you mean seed?"),
        ("+extra.key=1", "extra", "schedule"),
    ],
)
def test_unknown_keys_are_refused(override: str, key: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no setting") as caught:
        configurations(override)
    message = str(caught.value)
    assert key in message
    assert hint in message
    assert f"+{key}" not in message


def test_a_setting_that_is_a_list_says_how_lists_are_written() -> None:
    with pytest.raises(ConfigError, match=r"domain\.protocols=auc_pr\n.* a list is expected, written \[a\] or \[a,b\]"):
        configurations("domain=triples", "domain.protocols=auc_pr")


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("model.pool_ratio=0", "above 0"),
        ("model.levels=9", "2 to 6"),
        ("model.levels=many", "could not be converted to Integer"),
        ("model.node_features=-8", "a multiple of 8"),
        ("domain.num_scenarios=-5", "at least"),
        ("schedule.batch_size=-1", "at least 1"),
        ("schedule.max_epochs=0", "at least 1"),
        ("schedule.learning_rate=0", "above 0"),
        ("schedule.optimizer=sgd", "adam or adamw"),
        ("schedule.lr_schedule=cosine", "one_cycle"),
        ("schedule.gradient_clip=0", "null"),
        ("schedule.warmup=1", "share"),
        ("schedule.limit_batches=0", "at least 1"),
        ("schedule.temperature.end=0", "above 0"),
        ("schedule.temperature.end=2", "at least the end"),
        ("schedule.plateau.factor=1", "between 0 and 1"),
        ("hardware.accelerator=tpu", "gpu"),
        ("hardware.precision=8", "bf16-mixed"),
        ("hardware.threads=0", "at least 1"),
        ("task.type=clustering", "regression"),
        ("task.num_logits=3", "1, 2 or null"),
        ("task.class_weights=[1]", "two numbers"),
        ("task.class_weights=[1,-1]", "two numbers"),
        ("seed=-1", "from 0"),
        ("resume=perhaps", "never"),
        ("domain=weather", "causal"),
        ("model=transformer", "flat"),
    ],
)
def test_wrong_values_are_refused(override: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configurations(override)
    key, value = override.split("=")
    assert key.rpartition(".")[2] in str(caught.value)
    assert value.strip("[]").split(",")[0] in str(caught.value)
    assert allowed in str(caught.value)


def test_a_sweep_with_one_wrong_value_is_refused_as_a_whole() -> None:
    with pytest.raises(ConfigError, match=r"model\.pool_ratio=1\.5"):
        configurations("model.pool_ratio=0.3,1.5")


def test_regression_has_no_classes() -> None:
    assert TaskConfig("regression").logits == 1
    assert TaskConfig("link_prediction").logits == 2
    with pytest.raises(ConfigError, match=r"task\.num_logits=2"):
        TaskConfig("regression", num_logits=2)
    with pytest.raises(ConfigError, match=r"task\.class_weights"):
        TaskConfig("regression", class_weights="balanced")


def test_temperature_by_epoch() -> None:
    temperature = TemperatureConfig(start=1.0, end=0.3, decay=0.5, warmup_epochs=2)
    assert [temperature.at(epoch) for epoch in range(6)] == [1.0, 1.0, 1.0, 0.5, 0.3, 0.3]
    assert ScheduleConfig().temperature.at(110) == pytest.approx(0.9999**100)


def test_an_absent_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="hardware=cpu"):
        HardwareConfig(accelerator="gpu").check_present()
    HardwareConfig(accelerator="auto").check_present()


def test_float16_is_refused_on_the_cpu() -> None:
    with pytest.raises(ConfigError, match=r"hardware\.precision='16-mixed'.*bf16-mixed"):
        HardwareConfig(accelerator="cpu", precision="16-mixed").check_present()
    HardwareConfig(accelerator="cpu", precision="bf16-mixed").check_present()


@pytest.mark.usefixtures("gpu")
def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"hardware\.devices=2 cannot be used: this machine has 1 GPU"):
        configurations("hardware=gpu", "hardware.devices=2")


@pytest.mark.usefixtures("gpu")
def test_bfloat16_is_refused_on_a_gpu_that_lacks_it() -> None:
    with pytest.raises(ConfigError, match="an old GPU has no bfloat16"):
        HardwareConfig(accelerator="gpu", precision="bf16-mixed").check_present()
    HardwareConfig(accelerator="gpu", precision="16-mixed").check_present()


def test_models_need_neither_hydra_nor_lightning() -> None:
    program = "import sys, nsm.models; assert not {'hydra', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
