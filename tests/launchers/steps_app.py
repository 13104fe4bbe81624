"""A job that takes steps, keeps a checkpoint after each and goes on from it, and can fail in every way a job can."""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig


@dataclass
class Steps:
    steps: int = 5
    seed: int = 0
    pause: float = 0.0
    """Seconds a step takes."""
    fails: str = "never"
    """``always`` or ``once`` with an error, ``killed`` by SIGKILL at every attempt, ``exits`` with code 3."""
    fails_for: int | None = None
    """The seed that fails; null for all."""


ConfigStore.instance().store(name="steps", node=Steps)


@hydra.main(version_base="1.3", config_path=None, config_name="steps")
def main(config: Steps) -> float:
    folder = Path(HydraConfig.get().runtime.output_dir)
    checkpoint = folder / "state.ckpt"
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "value": float(config.seed)}
    for step in range(state["step"], config.steps):
        if step == config.steps // 2 and config.fails_for in (None, config.seed):
            fail(config.fails, folder)
        with (folder / "steps.txt").open("a") as taken:
            taken.write(f"{step} {os.getpid()}\n")
        time.sleep(config.pause)
        state = {"step": step + 1, "value": state["value"] * 1.5 + step}
        beside = folder / ".state.part"
        beside.write_text(json.dumps(state))
        beside.rename(checkpoint)
    return state["value"]


def fail(how: str, folder: Path) -> None:
    """Fail as asked, half-way."""
    mark = folder / "failed_once"
    if how == "always":
        raise ValueError("this job always fails")
    if how == "once" and not mark.exists():
        mark.touch()
        raise RuntimeError("this job fails once")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exits":
        raise SystemExit(3)


if __name__ == "__main__":
    main()
