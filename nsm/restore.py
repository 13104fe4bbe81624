"""A finished run taken up again: its configuration, its data and the model of one of its checkpoints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nsm import checkpoints
from nsm.config import Config, ConfigError, read_config
from nsm.data.datamodule import LOADER_FIELDS, TripleDataModule
from nsm.failures import RunError
from nsm.module import NSMModule, build_module
from nsm.storage import DamagedError
from nsm.train import CONF, build_datamodule, prepare_process

ALIASES = {"best": checkpoints.BEST, "last": checkpoints.LAST}
"""Short names of checkpoints."""
ELSEWHERE = ("hardware", "domain.cache_dir=", "domain.eval_batch_size=")
"""Beginnings of the overrides that change where a run is taken up, and nothing of what it is."""
DECISIVE = ("domain", "model", "task")
"""Groups of the configuration that decide what a checkpoint's numbers mean."""


class Restored(NamedTuple):
    """A run as it was when the checkpoint was written."""

    config: Config
    datamodule: TripleDataModule
    module: NSMModule
    checkpoint: Path
    epoch: int
    """Epochs that the checkpoint's model had learned."""


def restore(folder: Path, checkpoint: str = "best", elsewhere: Sequence[str] = ()) -> Restored:
    """Build the run in ``folder`` anew and load the checkpoint into it.

    Args:
        checkpoint: ``best``, ``last``, the name of a file in ``folder``, or a path.
        elsewhere: overrides that say where to compute and where the data lies (:data:`ELSEWHERE`).

    Raises:
        ConfigError: if the folder holds no run, the checkpoint is missing or damaged, or belongs to another run.
    """
    composed = read_configuration(folder, elsewhere)
    config = read_config(composed)
    prepare_process(config)
    path = find_checkpoint(folder, checkpoint)
    state = read_checkpoint(path)
    settings: Any = OmegaConf.to_container(composed, resolve=True)
    check_same(path, state.get("hyper_parameters") or {}, folder, settings)
    datamodule = build_datamodule(composed, config)
    module = build_module(config, datamodule, settings)
    try:
        module.restore(state)
    except (RuntimeError, KeyError) as error:
        raise ConfigError(f"checkpoint={path} does not fit the model of {folder}: {error}") from error
    return Restored(config, datamodule, module.eval(), path, int(state.get("epoch", 0)) + 1)


def read_configuration(folder: Path, elsewhere: Sequence[str] = ()) -> DictConfig:
    """The configuration of the run in ``folder``, checked against today's schemas.

    The run's hardware is left behind: ``hardware=auto`` unless ``elsewhere`` says otherwise.

    Raises:
        ConfigError: if there is no run, its configuration cannot be read, or it uses settings that no longer exist.
    """
    if not folder.is_dir():
        raise ConfigError(f"run={folder} is no folder; a run's folder is outputs/<domain>/<timestamp>")
    files = {name: folder / ".hydra" / f"{name}.yaml" for name in ("config", "overrides", "hydra")}
    if not files["config"].is_file():
        inside = sorted(path.parent.parent for path in folder.glob("*/**/.hydra/config.yaml"))
        hint = f"; there are runs beneath it, such as run={inside[-1]}" if inside else ""
        raise ConfigError(f"run={folder} holds no run: .hydra/config.yaml is missing{hint}")
    for override in elsewhere:
        if not override.startswith(ELSEWHERE):
            raise ConfigError(f"{override} would make it another run; what may be said here: {', '.join(ELSEWHERE)}")
    try:
        saved, overrides, hydra = (OmegaConf.load(path) if path.exists() else None for path in files.values())
        if not isinstance(saved, DictConfig):
            raise ValueError(f"{files['config']} holds no settings")
        for key in ("hardware", "resume", "logger"):
            saved.pop(key, None)
        search = OmegaConf.select(hydra, "hydra.overrides.hydra", default=[]) if hydra else []
        kept = [str(override) for override in overrides or [] if not str(override).startswith("hardware")]
        kept += [str(override) for override in search if str(override).startswith("hydra.searchpath=")]
        with initialize_config_dir(CONF, version_base="1.3"):
            composed = compose("train", overrides=[*kept, *(o for o in elsewhere if o.startswith("hardware"))])
        merged = OmegaConf.merge(composed, saved)
        merged.merge_with_dotlist([override for override in elsewhere if override.startswith("domain.")])
    except (HydraException, OmegaConfBaseException, OSError, ValueError, YAMLError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"the configuration of run={folder} cannot be used: {reason}") from error
    assert isinstance(merged, DictConfig)
    return merged


def find_checkpoint(folder: Path, name: str) -> Path:
    """The checkpoint file that ``name`` means for the run in ``folder``.

    Raises:
        ConfigError: if there is none, naming those that there are.
    """
    asked = ALIASES.get(name, name)
    for path in (folder / asked, Path(asked)):
        if path.is_file():
            return path
    there = sorted(path.name for path in folder.glob("*.ckpt"))
    listed = f"it has {', '.join(there)}" if there else "it has none yet"
    raise ConfigError(f"checkpoint={name} is not in {folder}: {listed}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a checkpoint file holds, on the CPU.

    Raises:
        ConfigError: if it is damaged, no checkpoint of a run, or a newer version's.
    """
    try:
        return checkpoints.load(path)
    except DamagedError as error:
        raise ConfigError(f"checkpoint={path} is damaged or no checkpoint: {error}") from error
    except RunError as error:
        raise ConfigError(f"checkpoint={path} cannot be used: {error}") from error


def check_same(path: Path, theirs: Mapping[str, Any], folder: Path, ours: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that another configuration wrote.

    Raises:
        ConfigError: naming the settings that differ.
    """
    differing = []
    for group in DECISIVE:
        left, right = theirs.get(group) or {}, ours.get(group) or {}
        for key in sorted(left.keys() & right.keys()):
            if left[key] != right[key] and not (group == "domain" and key in LOADER_FIELDS[1:]):
                differing.append(f"{group}.{key} is {left[key]!r} there and {right[key]!r} here")
    if differing:
        more = f" (and {len(differing) - 4} more)" if len(differing) > 4 else ""
        raise ConfigError(
            f"checkpoint={path} is of another configuration than run={folder}: {'; '.join(differing[:4])}{more}"
        )
