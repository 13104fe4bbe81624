"""What runs in a container: one attempt at one job, in the job's folder on the volume.

Modal delivers a call again after a preemption (if KeyboardInterrupt leaves the function), after a crash of the
container, and, as often as the retry policy says, after an error or the time limit. Each attempt starts from what was
committed.
"""

import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.nsm_modal.committer import Committer
from hydra_plugins.nsm_modal.status import (
    CANCELLED,
    COMPLETED,
    CRASHED,
    FAILED,
    PREEMPTED,
    TIMEOUT,
    Attempt,
    Status,
)
from hydra_plugins.nsm_modal.task import unpack
from omegaconf import DictConfig, open_dict, read_write

log = logging.getLogger(__name__)
LOG_FILE = "modal.log"
"""Everything an attempt prints, after that of the attempts before it."""
COST_RATE = "USD_PER_SECOND"
"""Environment variable that tells the task the price of its container."""
PRELOAD = "NSM_MODAL_PRELOAD"
"""Environment variable: a module to import together with this one, so that a memory snapshot holds it."""
if PRELOAD in os.environ:
    with suppress(Exception):  # the job will meet it again, and can report it: a container that fails to start cannot
        importlib.import_module(os.environ[PRELOAD])


class JobFailedError(Exception):
    """An attempt failed, and another may do better."""


def run(spec: dict[str, Any], payload: bytes) -> dict[str, Any]:
    """Attempt a job.

    Args:
        spec: plain values; see :meth:`hydra_plugins.nsm_modal.jobs.Job.spec`.
        payload: of :func:`hydra_plugins.nsm_modal.task.pack`.

    Returns:
        ``status``: ``completed``, with the task's ``return_value``; or ``failed``, where another attempt is in vain.

    Raises:
        JobFailedError: the task raised.
        KeyboardInterrupt: the container is preempted.
        modal.exception.InputCancellation: the time limit is reached, or the client stops the job.
    """
    import modal  # here, since Hydra imports this module in every app

    start = time.monotonic()
    folder = Path(spec["mount"], spec["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    status = _read_status(folder, spec)
    gpu = _gpu_in_use(spec["usd_per_second"])
    attempt = Attempt(modal.current_function_call_id() or "", os.environ.get("MODAL_TASK_ID", ""), gpu)
    before = status.begin(attempt)
    rate = spec["usd_per_second"][gpu or "none"]
    os.environ.update(spec["env"], **{COST_RATE: str(rate)})
    committer = Committer(
        modal.Volume.from_name(spec["volume"]),
        folder,
        status,
        attempt,
        usd_per_second=rate,
        every=spec["commit_seconds"],
        patterns=spec["commit_on"],
    )
    crashes = sum(earlier.outcome == CRASHED for earlier in before)
    if crashes > spec["max_retries"]:
        attempt.outcome = FAILED
        status.fail(JobFailedError(f"the container died {crashes} times without a word: out of memory? See {LOG_FILE}"))
        committer.commit()
        return {"status": FAILED}
    committer.commit()  # so that a crash of this attempt leaves a trace
    value, error = None, None
    with _printed_into(folder / LOG_FILE), committer, _interruptions() as interrupted:
        try:
            value = _run_task(*unpack(spec["task"], payload), folder=folder)
        except BaseException as raised:
            error = raised
        late = time.monotonic() - start > 0.9 * spec["timeout"] - 1
        attempt.outcome = _outcome(error, interrupted=bool(interrupted), late=late)
        in_vain = False
        if attempt.outcome == COMPLETED:
            status.complete(value)
        elif attempt.outcome == FAILED:
            assert error is not None
            certain = any(f"{kind.__module__}.{kind.__qualname__}" in spec["not_after"] for kind in type(error).__mro__)
            again = status.fail(error, with_traceback=not certain)
            in_vain = certain or (again and bool(before) and before[-1].outcome == FAILED)
            log.error("attempt %d failed", len(before) + 1, exc_info=error)
    committer.commit()
    if attempt.outcome == COMPLETED:
        return {"status": COMPLETED, "return_value": value}
    if attempt.outcome == PREEMPTED:
        raise KeyboardInterrupt  # Lightning makes a SystemExit of it, which Modal would take for a failure
    if attempt.outcome == FAILED:
        if in_vain:
            return {"status": FAILED}
        raise JobFailedError(f"{type(error).__name__}: {error}")
    assert error is not None
    raise error


def _outcome(error: BaseException | None, *, interrupted: bool, late: bool) -> str:
    """What became of an attempt, by what left the task."""
    if error is None:
        return COMPLETED
    if isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and interrupted):
        return PREEMPTED
    if isinstance(error, SystemExit):
        return COMPLETED if error.code in (None, 0) else FAILED
    if isinstance(error, Exception):
        return FAILED
    return TIMEOUT if late else CANCELLED  # Modal's InputCancellation, which says both


def _run_task(task: TaskFunction, config: DictConfig, *, folder: Path) -> Any:
    """Run the task as Hydra does, with ``folder`` for its outputs, and raise what it raises."""
    setup_globals()
    JobRuntime.instance().set("name", config.hydra.job.name)
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(folder)
    context = HydraContext(
        config_loader=ConfigLoaderImpl(config_search_path=ConfigSearchPathImpl()), callbacks=Callbacks(config)
    )
    done: JobReturn = run_job(
        task_function=task,
        config=config,
        job_dir_key="hydra.runtime.output_dir",
        job_subdir_key=None,
        hydra_context=context,
    )
    if done.status is JobStatus.FAILED:
        raise done._return_value  # the property would print beside raising
    return done.return_value


def _read_status(folder: Path, spec: Mapping[str, Any]) -> Status:
    """What earlier attempts left, or a fresh one."""
    found = Status.read(folder)
    if found is not None and found.config_hash == spec["config_hash"]:
        return found
    return Status(spec["sweep"], spec["num"], spec["overrides"], spec["config_hash"])


def _gpu_in_use(prices: Mapping[str, float]) -> str | None:
    """Which of the cards that were asked for this container has."""
    asked = [gpu for gpu in prices if gpu != "none"]
    if len(asked) < 2 or shutil.which("nvidia-smi") is None:
        return asked[0] if asked else None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    name = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    fitting = [gpu for gpu in asked if all(part in name for part in gpu.partition(":")[0].split("-"))]
    return fitting[0] if fitting else asked[0]


@contextmanager
def _printed_into(path: Path) -> Iterator[None]:
    """Copy all that the process prints, from Python or below it, into a file too."""
    saved = {fd: os.dup(fd) for fd in (1, 2)}
    copies = []
    for fd, original in saved.items():
        # In a session of its own, so that no signal to this process ends it early.
        copy = subprocess.Popen(["tee", "-a", path], stdin=subprocess.PIPE, stdout=original, start_new_session=True)
        assert copy.stdin is not None
        os.dup2(copy.stdin.fileno(), fd)
        copy.stdin.close()
        copies.append(copy)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for fd, original in saved.items():
            os.dup2(original, fd)
            os.close(original)
        for copy in copies:
            try:
                copy.wait(timeout=5)
            except subprocess.TimeoutExpired:  # a child that outlives the task still holds the pipe
                copy.kill()


@contextmanager
def _interruptions() -> Iterator[list[int]]:
    """Remember SIGINT, which the task may turn into another exception."""
    seen: list[int] = []
    handler = signal.getsignal(signal.SIGINT)

    def remember(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)
        (handler if callable(handler) else signal.default_int_handler)(signum, frame)

    signal.signal(signal.SIGINT, remember)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, handler)
