"""Training, watched from a notebook: each run is a process of its own, the one that ``python -m nsm.train`` starts.

So it leaves the same folder, gives back all its memory whatever happens, and can be interrupted and continued.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from IPython.display import HTML, DisplayHandle, display

from nsm import figures
from nsm.dashboard.plan import Plan
from nsm.dashboard.results import compare
from nsm.dashboard.tables import picture, preformatted, size
from nsm.files import HISTORY, PROGRESS
from nsm.train import CONF

JOBS = "hydra.sweep.subdir=${hydra:job.num}"
"""Where a sweep's runs lie: the same place when it is continued."""
POLL_SECONDS = 0.3
PATIENCE_SECONDS = 300
"""How long an interrupted run may take to save its state."""
TAIL = 40
"""Last lines of a run's output that are shown: its table of results, or its error."""


class FailedRunError(RuntimeError):
    """A run ended with an error; the message is its own."""


def train(plan: Plan) -> None:
    """Train every planned run, one after the other, and show how each fares.

    Interrupt the cell to stop: the run saves its state. Run the cell again to continue.

    Raises:
        FailedRunError: if a run ends with an error.
    """
    for run in plan.runs:
        if not watch([*run.overrides, f"hydra.run.dir={run.folder}"], run.folder, f"{run.domain}, {run.model}"):
            return


def sweep(plan: Plan) -> None:
    """Train what the sweep asks for, here or where its hardware says, and compare.

    Raises:
        FailedRunError: if the sweep ends with an error.
    """
    if not plan.sweep:
        display(HTML("no sweep planned: WORKFLOW = 'explore' and SWEEP"))
        return
    home = plan.outputs / "sweeps" / plan.folder.name
    if watch(["--multirun", *plan.sweep, f"hydra.sweep.dir={home}", JOBS], home, " ".join(plan.sweep)):
        compare(home)


def watch(arguments: Sequence[str], folder: Path, title: str) -> bool:
    """Run ``python -m nsm.train`` and show its progress until it ends; False if the notebook's user interrupted it.

    Args:
        folder: of the run; of a sweep, the newest run beneath is shown.

    Raises:
        FailedRunError: if it ends with an error.
    """
    bars, curves = DisplayHandle(), DisplayHandle()
    for handle in (bars, curves):
        handle.display(HTML(""))
    command = [sys.executable, "-m", "nsm.train", *arguments]
    path = os.pathsep.join([str(Path(CONF).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with TemporaryFile("w+", errors="replace") as out:
        # A session of its own: what interrupts the kernel reaches it once, from here.
        with subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONPATH": path}, start_new_session=True
        ) as child:
            drawn: Any = None
            try:
                while child.poll() is None:
                    drawn = _show(folder, title, bars, curves, drawn)
                    time.sleep(POLL_SECONDS)
            except KeyboardInterrupt:
                _stop(child)
                display(HTML(f"interrupted; run this cell again to continue <code>{escape(str(folder))}</code>"))
                return False
            finally:
                _show(folder, title, bars, curves, drawn)
                child.kill()  # only where something else than its end ended the watching
        told = _tail(out)
    if child.returncode == -signal.SIGKILL:
        raise FailedRunError(
            f"{title}: the run was killed, most likely for memory: lower schedule.batch_size or the domain's size, "
            f"close what else runs here, and run this cell again to continue\n{told}"
        )
    if child.returncode:
        raise FailedRunError(f"{title}: python -m nsm.train exited with {child.returncode}\n{told}")
    display(preformatted(told))
    return True


def _stop(child: "subprocess.Popen[Any]") -> None:
    child.send_signal(signal.SIGINT)
    child.wait(timeout=PATIENCE_SECONDS)


def _show(folder: Path, title: str, bars: DisplayHandle, curves: DisplayHandle, drawn: Any) -> Any:
    """Refresh the bars, and the curves if there is another epoch than ``drawn`` tells; what is drawn now."""
    found = sorted(folder.rglob(PROGRESS), key=lambda path: path.stat().st_mtime)
    if not found:
        bars.update(HTML(f"<b>{escape(title)}</b> starts …"))
        return drawn
    where = found[-1].parent
    bars.update(HTML(progress_bars(title, json.loads(found[-1].read_text()))))
    history = where / HISTORY
    if not history.exists() or drawn == (history, history.stat().st_mtime):
        return drawn
    stamp = (history, history.stat().st_mtime)
    drawn_for = title if where == folder else f"run {where.relative_to(folder)}, the newest in {folder.name}"
    curves.update(picture(figures.training_curves(json.loads(history.read_text()), drawn_for)))
    return stamp


def progress_bars(title: str, progress: dict[str, Any]) -> str:
    """Epochs, batches and memory as HTML that needs no widgets."""
    done = [
        ("epochs", progress["epoch"] - 1 + progress["batch"] / progress["batches"], progress["max_epochs"], ""),
        ("batches", progress["batch"], progress["batches"], f"{progress['batch']} of {progress['batches']}"),
        ("memory", progress["peak_memory_bytes"], progress["total_memory_bytes"], ""),
    ]
    told = {
        "epochs": f"{progress['epoch']} of {progress['max_epochs']}",
        "memory": f"{size(progress['peak_memory_bytes'])} at most, of {size(progress['total_memory_bytes'])}",
    }
    rows = "".join(
        f"<tr><td>{name}</td><td><progress value='{value}' max='{most}' style='width:22em'></progress></td>"
        f"<td>{told.get(name, text)}</td></tr>"
        for name, value, most, text in done
    )
    return f"<b>{escape(title)}</b><table>{rows}</table>"


def _tail(out: IO[str]) -> str:
    out.seek(0)
    lines = out.read().splitlines()
    before = len(lines) - TAIL
    return "\n".join([*([f"… {before} lines before these are in train.log"] if before > 0 else []), *lines[-TAIL:]])
