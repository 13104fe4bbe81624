"""What a notebook is going to do: runs by workflow, composed and checked before anything is started."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict

from nsm.cli import check_configurations
from nsm.config import Config, ConfigError, check, read_config, refuse_unless
from nsm.dashboard.tables import Table
from nsm.reporting.records import find_runs
from nsm.train import CONF

DOMAINS = ("causal", "planning", "kg")
WORKFLOWS = {
    "quick": "ten epochs of one run, to see whether everything works",
    "full": "one run as configured",
    "domains": "one run of each domain, and how they compare",
    "checkpoints": "no training: what an earlier run has left",
    "explore": "one run, and a sweep of hyperparameters",
}


@dataclass(frozen=True)
class PlannedRun:
    """One run that the notebook starts."""

    overrides: tuple[str, ...]
    folder: Path
    domain: str
    model: str
    composed: DictConfig
    config: Config

    def __str__(self) -> str:
        schedule = self.config.schedule
        length = f"{schedule.steps} steps" if schedule.max_epochs is None else f"{schedule.max_epochs} epochs"
        length += f" at most, batches of {schedule.batch_size}"
        return f"{self.model}, {length}, seed {self.config.seed}, {self.config.hardware.device}, into {self.folder}"


@dataclass(frozen=True)
class Plan:
    """What was configured; the notebook's other cells take it."""

    workflow: str
    runs: tuple[PlannedRun, ...]
    """Those to train."""
    sweep: tuple[str, ...]
    """Overrides of the sweep, all of them; empty for none."""
    outputs: Path
    folder: Path
    """Of the run that checkpoint browser, evaluation and export look at."""

    @property
    def first(self) -> PlannedRun:
        """The run whose data and model are shown."""
        return self.runs[0]

    def _repr_markdown_(self) -> str:
        rows = [("workflow", f"{self.workflow}: {WORKFLOWS[self.workflow]}")]
        rows += [(run.domain, str(run)) for run in self.runs]
        if not self.runs:
            rows.append(("looks at", str(self.folder)))
        if self.sweep:
            rows.append(("sweep", " ".join(self.sweep)))
        rows.append(("checks", "every configuration is valid; the device is there; the folder can be written"))
        return Table(("plan", "this notebook"), rows)._repr_markdown_()


def configure(
    workflow: str = "quick",
    overrides: Sequence[str] = (),
    *,
    run: str = "",
    sweep: Sequence[str] = (),
    outputs: str = "outputs",
) -> Plan:
    """Decide and check what the notebook does.

    Args:
        workflow: one of :data:`WORKFLOWS`.
        overrides: settings as ``nsm.train`` takes them on the command line.
        run: folder of an earlier run, for ``checkpoints``; the newest in ``outputs`` if empty.
        sweep: what varies in ``explore``, as in ``model.pool_ratio=0.3,0.5``.
        outputs: folder of all runs.

    Raises:
        ConfigError: for anything that cannot be used, with a remedy.
    """
    check(workflow in WORKFLOWS, "WORKFLOW", workflow, f"one of {', '.join(WORKFLOWS)}")
    explores = workflow == "explore"
    check(bool(sweep) or not explores, "SWEEP", list(sweep), "what to explore, such as ['model.pool_ratio=0.3,0.5']")
    refuse_unless(
        not run or workflow == "checkpoints", "RUN", run, "only the workflow checkpoints looks at an earlier run"
    )
    home = Path(outputs)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"OUTPUTS={outputs!r} cannot be used: {error.strerror}; choose another folder") from error
    check(os.access(home, os.W_OK), "OUTPUTS", outputs, "a folder that can be written")
    if workflow == "checkpoints":
        return Plan(workflow, (), (), home, Path(run) if run else newest(home))
    chosen = [[f"domain={domain}", *overrides] for domain in DOMAINS] if workflow == "domains" else [list(overrides)]
    if workflow == "quick":
        chosen = [[*_unless_given("schedule=validation", words), *words] for words in chosen]
    planned = tuple(_planned(words, home) for words in chosen)
    for one in planned:
        one.config.hardware.check_present()
    swept: tuple[str, ...] = ()
    if explores:
        swept = (*(word for word in overrides if _key(word) not in set(map(_key, sweep))), *sweep)
        check_configurations(swept, CONF, "train")
    return Plan(workflow, planned, swept, home, planned[0].folder)


def newest(outputs: Path) -> Path:
    """The run beneath ``outputs`` that was written last and has a checkpoint.

    Raises:
        ConfigError: if there is none.
    """
    found = [run for run in find_runs([outputs]) if any(run.folder.glob("*.ckpt"))]
    if not found:
        raise ConfigError(f"no run with a checkpoint beneath {outputs}: train one first (WORKFLOW = 'quick')")
    return max(found, key=lambda run: run.written).folder


def _planned(words: Sequence[str], outputs: Path) -> PlannedRun:
    check_configurations(words, CONF, "train")
    with initialize_config_dir(CONF, version_base="1.3"):
        composed = compose("train", overrides=list(words), return_hydra_config=True)
    choices, mode = composed.hydra.runtime.choices, composed.hydra.mode
    if mode is not None and mode.name == "MULTIRUN":
        raise ConfigError(
            "a run on Modal cannot be watched batch by batch from here: put hardware=a100 into SWEEP, or open this "
            "notebook there with nsm-modal notebook"
        )
    with open_dict(composed):
        del composed.hydra
    folder = outputs / choices.domain / datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    return PlannedRun(tuple(words), folder, choices.domain, choices.model, composed, read_config(composed))


def _unless_given(word: str, words: Sequence[str]) -> list[str]:
    return [] if _key(word) in map(_key, words) else [word]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")
