"""Waiting for the jobs of a sweep: each result as it comes, its outputs brought home, and the table that ends it."""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra_plugins.nsm_modal.config import LauncherError
from hydra_plugins.nsm_modal.record import JobRecord, SweepRecord
from hydra_plugins.nsm_modal.status import CANCELLED, COMPLETED, FAILED, FILE, RUNNING, Status
from hydra_plugins.nsm_modal.sync import VolumeClient

log = logging.getLogger(__name__)
PATIENCE = 600.0
"""Seconds for which the service may be out of reach before the client gives up waiting."""
GRACE = 30.0
"""Seconds that a stopped job has to commit what it holds."""


@dataclass
class Result:
    """What became of a job."""

    job: JobRecord
    status: str
    value: Any = None
    error: dict[str, str] | None = None
    seconds: float = 0.0
    usd: float = 0.0
    attempts: int = 0
    skipped: bool = False
    """It was complete before this launch."""

    @classmethod
    def of(cls, job: JobRecord, found: Status | None, **more: Any) -> "Result":
        """From what the job says on the volume."""
        if found is None:
            return cls(job, **({"status": RUNNING} | more))
        said = {"status": found.status, "value": found.return_value, "error": found.error}
        said |= {"seconds": found.seconds, "usd": found.usd, "attempts": len(found.attempts)}
        return cls(job, **(said | more))


@dataclass
class Collector:
    """Waits for the calls of a sweep, in any process that has its record.

    Args:
        volume: that the jobs write to.
        sweep: the sweep.
        leave: names of files that do not come home; None for nothing at all.
        fail_fast: stop every job when one has failed.
        home: folder that relative output folders are below.
        say: is given a line for each job that ends.
    """

    volume: VolumeClient
    sweep: SweepRecord
    leave: Sequence[str] | None = ()
    fail_fast: bool = False
    home: Path = field(default_factory=Path.cwd)
    say: Callable[[str], None] = log.info
    results: dict[int, Result] = field(default_factory=dict)

    async def status(self, job: JobRecord) -> Status | None:
        """What a job says of itself on the volume."""
        text = await self.volume.read(f"{job.folder}/{FILE}")
        return None if text is None else Status.parse(text)

    async def statuses(self) -> list[Status | None]:
        """The same, of all jobs."""
        return list(await asyncio.gather(*map(self.status, self.sweep.jobs)))

    async def find_calls(self) -> None:
        """Learn of calls that were submitted by a client that could not write them down any more."""
        for job, found in zip(self.sweep.jobs, await self.statuses(), strict=True):
            if job.call is None and found is not None and found.attempts:
                job.call = found.attempts[-1].call

    async def wait(self) -> None:
        """Wait until every submitted job has ended; its outputs are home by then, its line is printed."""
        waiting = [job for job in self.sweep.jobs if job.num not in self.results and job.call is not None]
        tasks = [asyncio.create_task(self._wait_for(job)) for job in waiting]
        try:
            for ended in asyncio.as_completed(tasks):
                result = await ended
                self.results[result.job.num] = result
                self.say(self._line(result))
                if self.fail_fast and result.status == FAILED and len(self.results) < len(self.sweep.jobs):
                    log.warning("job %d failed: stopping the others (hydra.launcher.fail_fast)", result.job.num)
                    await self.cancel(kill=False)
        finally:
            for task in tasks:
                task.cancel()

    async def stop(self) -> int:
        """Stop every job that has not ended, and bring home what they have committed; returns how many were stopped."""
        await self.cancel(kill=False)
        try:
            await asyncio.wait_for(self.wait(), GRACE)
        except asyncio.TimeoutError:
            await self.cancel(kill=True)
        for job in self.sweep.jobs:
            if job.num not in self.results:
                await self.bring_home(job)
                self.results[job.num] = Result.of(job, await self.status(job), status=CANCELLED)
        return sum(result.status == CANCELLED for result in self.results.values())

    async def cancel(self, *, kill: bool) -> None:
        """Tell every job that has not ended to stop; ``kill`` does not let it finish what it is at."""
        import modal

        open_jobs = [job for job in self.sweep.jobs if job.num not in self.results and job.call is not None]

        async def cancel_one(job: JobRecord) -> None:
            try:
                await modal.FunctionCall.from_id(str(job.call)).cancel.aio(terminate_containers=kill)
            except modal.exception.Error as error:
                log.warning("job %d could not be stopped: %s", job.num, error)

        await asyncio.gather(*map(cancel_one, open_jobs))

    async def _wait_for(self, job: JobRecord) -> Result:
        import modal

        answer, failure = await call_outcome(str(job.call))
        found = await self.status(job)
        await self.bring_home(job)
        if answer is not None and answer["status"] == COMPLETED:
            return Result.of(job, found, status=COMPLETED, value=answer["return_value"])
        if found is not None and found.status == COMPLETED:
            return Result.of(job, found)  # only the answer was lost
        last = found.attempts[-1] if found is not None and found.attempts else None
        timed_out = isinstance(failure, modal.exception.FunctionTimeoutError)
        if last is not None and last.outcome == CANCELLED and not timed_out:
            return Result.of(job, found, status=CANCELLED)
        if last is not None and last.outcome == FAILED and last.call == job.call:
            return Result.of(job, found)
        error = {"type": type(failure).__name__, "message": str(failure), "traceback": ""}
        if timed_out:
            error["message"] = (
                "every attempt reached the time limit; the same command goes on from the last checkpoint, and "
                "hydra.launcher.timeout gives more time"
            )
        return Result.of(job, found, status=FAILED, error=error)

    async def bring_home(self, job: JobRecord) -> None:
        """Copy what the volume holds of a job, as far as it is wanted, into its output folder here.

        What cannot be brought stays on the volume, and costs no other job its outputs.
        """
        import modal

        if self.leave is None:
            return
        try:
            await self.volume.bring_home(job.folder, self.home / job.output_dir, leave=self.leave)
        except (modal.exception.Error, OSError) as error:
            log.warning(
                "the outputs of job %d stay on the volume (%s); to bring them home: nsm-modal fetch %s",
                job.num,
                error,
                self.sweep.name,
            )

    def _line(self, result: Result) -> str:
        done = f"[{len(self.results)}/{len(self.sweep.jobs)}]"
        _, status, value, seconds, usd, attempts, overrides, folder = _cells(result)
        returned = [f"returned {value}"] if value else []
        cells = [status, *returned, seconds, usd, counted(int(attempts), "attempt"), overrides, folder]
        return f"{done} job {result.job.num} {' | '.join(cells)}"


async def call_outcome(call: str, *, wait: bool = True) -> tuple[dict[str, Any] | None, BaseException | None]:
    """What a call returned or raised; waits through outages of the service.

    Raises:
        TimeoutError: the call has not ended, and ``wait`` is false.
        LauncherError: the service was out of reach for too long; the jobs go on without this client.
    """
    import modal

    unreachable = (modal.exception.ServiceError, modal.exception.ConnectionError, OSError)
    out_of_reach = 0.0
    while True:
        try:
            return await modal.FunctionCall.from_id(call).get.aio(timeout=None if wait else 0), None
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except TimeoutError:
            if not wait:
                raise
        except unreachable as error:
            if out_of_reach >= PATIENCE:
                raise LauncherError(
                    f"Modal is out of reach ({error}); the jobs go on there, and nsm-modal attach waits for them"
                ) from error
            pause = min(30.0, 1.0 + out_of_reach)
            log.warning("Modal does not answer (%s); asking again in %.0f s", error, pause)
            await asyncio.sleep(pause)
            out_of_reach += pause
        except BaseException as error:  # whatever a container can raise, InputCancellation too
            return None, error


def table(results: Iterable[Result]) -> str:
    """All jobs of a sweep, failures first, each failure with all its overrides and its traceback."""
    ordered = sorted(results, key=lambda result: (result.status == COMPLETED, result.job.num))
    head = ("job", "status", "returned", "seconds", "cost", "attempts", "what varies", "folder")
    common = set.intersection(*(set(result.job.overrides) for result in ordered)) if len(ordered) > 1 else set()
    lines = columns([head, *(_cells(result, common) for result in ordered)])
    failed = [result for result in ordered if result.status == FAILED]
    for result in failed:
        assert result.error is not None
        lines += ["", f"job {result.job.num} failed: {' '.join(result.job.overrides)}"]
        lines += [result.error["traceback"].rstrip() or f"{result.error['type']}: {result.error['message']}"]
    total = sum(result.usd for result in ordered)
    done = sum(result.status == COMPLETED for result in ordered)
    jobs = counted(len(ordered), "job")
    return "\n".join([*lines, "", f"{done} of {jobs} completed, about ${total:.2f} for all their attempts so far"])


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines whose columns stand below each other."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def counted(number: int, what: str) -> str:
    """``1 job``, ``2 jobs``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _cells(result: Result, common: Collection[str] = ()) -> tuple[str, ...]:
    value = (
        f"{result.value:.4f}" if isinstance(result.value, float) else "" if result.value is None else str(result.value)
    )
    return (
        str(result.job.num),
        f"{result.status}{' before' if result.skipped else ''}",
        value,
        f"{result.seconds:.0f} s",
        f"${result.usd:.3f}",
        str(result.attempts),
        " ".join(override for override in result.job.overrides if override not in common),
        result.job.output_dir,
    )
