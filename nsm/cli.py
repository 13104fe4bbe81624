"""What stands between the command line and Hydra: every configuration checked before anything is written.

Hydra makes a run's folder before it calls the run, and composes a sweep's later jobs when the earlier ones are done. So
the configurations are composed once more, ahead, and errors of the user's end in one message without a traceback.
"""

import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nsm import devices, resume, runs, sweeps
from nsm.config import Config, ConfigError, read_config, unknown_key
from nsm.failures import RunError
from nsm.interrupts import InterruptedRun

LOCAL_LAUNCHERS = (
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
)
SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def run(main: Callable[[], None], config_dir: str, config_name: str) -> None:
    """Check the command line, then run ``main``, Hydra's entry point; exit with 1 and a message where it cannot run."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print and hide
    try:
        arguments = get_args_parser().parse_args()
        if (
            devices.following()
            or arguments.help
            or arguments.hydra_help
            or arguments.cfg
            or arguments.info
            or arguments.shell_completion
        ):
            main()
            return
        searched = _searched(arguments.config_path, arguments.config_dir, arguments.overrides)
        jobs = compose_jobs([*searched, *arguments.overrides], config_dir, arguments.config_name or config_name)
        hydra = jobs[0].hydra
        if not (arguments.multirun or hydra.mode == RunMode.MULTIRUN):
            if not is_complete(jobs[0]):
                main()
            return
        devices.check_single(jobs)
        if hydra.launcher._target_ in LOCAL_LAUNCHERS and hydra.sweeper._target_ == SWEEPER:
            sweep(main, jobs)
        else:
            main()
    except (ConfigError, RunError, HydraException) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:
        sys.exit(stopped.exit_code if isinstance(stopped, InterruptedRun) else 128 + signal.SIGINT)
    except (OSError, ValueError) as error:
        trouble = error if isinstance(error, OSError) else error.__cause__  # logging wraps what its files meet
        if not isinstance(trouble, OSError):
            raise
        if trouble.errno is None:  # raised here, with a remedy, rather than by the system
            sys.exit(f"error: {trouble}")
        if trouble.filename is None:
            raise
        sys.exit(
            f"error: {trouble.filename2 or trouble.filename} cannot be used: {trouble.strerror}. A run's folder is "
            "moved with hydra.run.dir= (in a multirun hydra.sweep.dir=), the data cache with domain.cache_dir="
        )


def compose_jobs(overrides: Sequence[str], config_dir: str, config_name: str) -> list[DictConfig]:
    """Compose and check every configuration that a command line asks for: one, or those of a sweep; Hydra's included.

    Raises:
        ConfigError: naming the key, the value and what is allowed, of the first thing that cannot be used.
    """
    with initialize_config_dir(config_dir, version_base="1.3"):
        sweeps = {override.key_or_group for override in _parse(overrides) if override.is_sweep_override()}
        fixed = [str(override.input_line) for override in _parse(overrides) if override.key_or_group not in sweeps]
        hydra = _compose(config_name, _without_launcher_settings(fixed), whole=True).hydra
        params = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
        split = BasicSweeper.split_arguments(_parse([*params, *overrides]), max_batch_size=None)[0]
        try:
            launcher = _compose(config_name, fixed, whole=True).hydra.launcher
            jobs = [_compose(config_name, job, whole=True) for job in split]
        except ConfigError:  # which a setting of one launcher causes in a job that has another
            for of_job in split:
                without = _compose(config_name, _without_launcher_settings(of_job), whole=True).hydra.launcher
                check_launcher(without, hydra.launcher, of_job)
            raise
    for job, of_job in zip(jobs, split, strict=True):
        check_launcher(job.hydra.launcher, launcher, of_job)
        config = read_run(job)
        if launcher._target_ in LOCAL_LAUNCHERS:
            config.hardware.check_present()
            config.logger.check_present()
    return jobs


def check_configurations(overrides: Sequence[str], config_dir: str, config_name: str) -> list[Config]:
    """The configurations of :func:`compose_jobs`, as checked dataclasses."""
    return [read_run(job) for job in compose_jobs(overrides, config_dir, config_name)]


def read_run(job: DictConfig) -> Config:
    """A run's own configuration, without Hydra's."""
    own = job.copy()
    with open_dict(own):
        del own["hydra"]
    return read_config(own)


def check_launcher(of_job: DictConfig, of_sweep: DictConfig, overrides: Sequence[str]) -> None:
    """Raise :class:`ConfigError` if a job of a sweep asks for another launcher than the sweep's."""
    if of_job != of_sweep:
        raise ConfigError(
            f"{' '.join(overrides)} cannot be part of this multirun: a multirun runs in one place, and hardware that "
            "runs here and hardware on Modal, or two kinds of it there, are two; launch one multirun for each"
        )


def is_complete(job: DictConfig) -> bool:
    """Whether a single run is complete already; Hydra writes into its folder before it calls the run, so look before.

    Raises:
        RunError: if the folder holds another run, or another process writes into it.
    """
    HydraConfig.instance().set_config(job)  # which names of folders may refer to
    folder = Path(job.hydra.run.dir)
    if not folder.exists():
        return False
    with runs.writing(folder):
        complete = resume.look(folder, sweeps.settings_of(job)).results is not None
    if complete:
        print(f"{folder} is complete already; resume=never trains it anew")
    return complete


def sweep(main: Callable[[], None], configurations: Sequence[DictConfig]) -> None:
    """Run a sweep on this machine, and say what is complete at its end, however it ends.

    Raises:
        RunError: naming the jobs that failed, each of which told its error when it happened.
    """
    with sweeps.named(configurations) as jobs:
        try:
            if any(job.state() != "complete" for job in jobs):
                main()
        except (ConfigError, RunError) as error:  # that of the first job that failed
            failed = [job for job in jobs if job.state().startswith("failed")]
            if not failed:
                raise
            raise RunError(f"{sweeps.named_jobs(failed)} of {len(jobs)} failed") from error
        finally:
            print(sweeps.summary(jobs), flush=True)


def python() -> str:
    """How this interpreter is called from here: by its name where PATH leads to it, else by its path."""
    here = Path(sys.executable)
    if Path(shutil.which("python") or "").parent == here.parent:
        return "python"
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)


def _searched(config_path: str | None, config_dir: str | None, overrides: Sequence[str]) -> list[str]:
    """The override that makes ``--config-dir`` count when configurations are composed here."""
    if config_path is not None:
        raise ConfigError("--config-path would hide NSM's own configurations: --config-dir adds a folder to them")
    if config_dir is None:
        return []
    if any(override.startswith("hydra.searchpath=") for override in overrides):
        raise ConfigError(f"--config-dir={config_dir} and hydra.searchpath= say the same: put both into the latter")
    if not os.path.isdir(config_dir):
        raise ConfigError(f"--config-dir={config_dir} cannot be used: there is no such folder")
    return [f"hydra.searchpath=[file://{os.path.abspath(config_dir)}]"]


def _without_launcher_settings(overrides: Sequence[str]) -> list[str]:
    return [override for override in overrides if not override.lstrip("+~").startswith("hydra.launcher.")]


def _parse(overrides: Sequence[str]) -> list[Override]:
    return OverridesParser.create().parse_overrides(list(overrides))


def _compose(config_name: str, overrides: Sequence[str], whole: bool = False) -> DictConfig:
    try:
        return compose(config_name, overrides=list(overrides), return_hydra_config=whole)
    except HydraException as error:
        raise ConfigError(_explain(error, config_name, overrides)) from error
    except Exception as error:  # Hydra meets overrides that it did not foresee with exceptions of any kind
        raise ConfigError(f"{' '.join(overrides)} cannot be used: {error or type(error).__name__}") from error


def _explain(error: HydraException, config_name: str, overrides: Sequence[str]) -> str:
    """Hydra's message, with a remedy: its own would be to add the key with ``+``, which nothing would read."""
    unknown = re.match(r"Could not override '([^']+)'", str(error))
    if unknown is None:
        cause = error.__cause__
        reason = "\n" + str(cause).split("\n")[0] if isinstance(cause, OmegaConfBaseException) else ""
        if "is not a ListConfig" in reason:
            reason += " Here a list is expected, written [a] or [a,b]."
        return str(error).split("\nConfig search path")[0] + reason
    key = unknown[1].split("@")[0]
    others = [override for override in overrides if override.lstrip("+~").split("=")[0].split("@")[0] != key]
    whole = _compose(config_name, others, whole=key.startswith("hydra."))
    parent = OmegaConf.select(whole, key.rpartition(".")[0]) if "." in key else whole
    if not isinstance(parent, DictConfig | ListConfig):
        return f"there is no setting {key}"
    return unknown_key(key, [str(name) for name in parent])
