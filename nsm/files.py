"""Names of the files in a run's folder, and how a run is continued, for those who read runs without loading PyTorch."""

import shlex
from collections.abc import Sequence
from pathlib import Path

HISTORY, RESULTS = "training_history.json", "final_results.json"
PROGRESS = "progress.json"
SCORES = "scores.npz"


def continuing(overrides: Sequence[str], folder: Path, python: str = "python") -> str:
    """The command that goes on with the run of a folder, which these overrides began."""
    return shlex.join([python, "-m", "nsm.train", *overrides, "hydra.mode=RUN", f"hydra.run.dir={folder}"])
