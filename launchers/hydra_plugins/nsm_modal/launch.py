"""One launch: find what an earlier one left, say what will run and what it will cost, submit it."""

import asyncio
import hashlib
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.types import TaskFunction
from hydra_plugins.nsm_modal import app as modal_app
from hydra_plugins.nsm_modal.collect import Collector, Result, call_outcome, counted
from hydra_plugins.nsm_modal.config import LauncherError, ModalLauncherConfig, files_to_leave
from hydra_plugins.nsm_modal.cost import dearest, estimate
from hydra_plugins.nsm_modal.jobs import Job, git_commit, identity, source_files
from hydra_plugins.nsm_modal.record import RECORDS, JobRecord, SweepRecord, newest, read_record
from hydra_plugins.nsm_modal.status import COMPLETED, FAILED, Status
from hydra_plugins.nsm_modal.sync import VolumeClient
from hydra_plugins.nsm_modal.task import TaskName, pack

log = logging.getLogger(__name__)
COMMIT_VARIABLE = "GIT_COMMIT"
"""Environment variable that tells a job which commit its code is of: its container has no checkout."""
DIGEST_TAG = "nsm-modal-digest"
SUBMISSIONS = 20
"""Calls submitted at once."""


class Launch:
    """The jobs of one call of the launcher, on their way to Modal.

    Args:
        settings: of the launcher.
        jobs: at least one.
        task: what each of them runs.
    """

    def __init__(self, settings: ModalLauncherConfig, jobs: Sequence[Job], task: TaskFunction) -> None:
        self.settings, self.jobs, self.task = settings, jobs, task
        self.task_name = TaskName.of(task)
        self.sources = modal_app.sources(settings.image, self.task_name)
        ident = identity(jobs, self.sources)
        name = settings.sweep or SweepRecord.new_name(ident)
        self.sweep = SweepRecord(
            name=name,
            identity=ident,
            app=settings.app_name if settings.keep_app else f"{settings.app_name}-{name}",
            keep_app=settings.keep_app,
            mount=settings.mount,
            commit_on=list(settings.commit_on),
            command=_command(),
            gpus=settings.gpus,
            usd_per_second=dearest(settings),
        )
        self.volume = VolumeClient(settings.volume, settings.mount, version=settings.volume_version, create=True)
        leave = files_to_leave(settings.sync, settings.commit_on)
        self.collector = Collector(self.volume, self.sweep, leave=leave, fail_fast=settings.fail_fast)
        self.to_submit = list(jobs)
        self._to_replace: list[str] = []

    @property
    def continue_command(self) -> str:
        """What to type to go on with this sweep, whatever happened to it."""
        kept = [word for word in self.sweep.command if not word.startswith("hydra.launcher.sweep=")]
        return shlex.join([*kept, f"hydra.launcher.sweep={self.sweep.name}"])

    async def look_back(self) -> None:
        """Find the launch that this one continues, what is complete of it and what still runs.

        Raises:
            LauncherError: if there is no such sweep, or a job's folder holds something else.
        """
        earlier = await self._earlier() if self.settings.resume else None
        if earlier is not None:
            self.sweep.name = earlier.name
            if not (earlier.keep_app or self.settings.keep_app):
                self.sweep.app = earlier.app
            by_hash = {job.config_hash: job for job in earlier.jobs}
            for job in self.jobs:
                if job.config_hash not in by_hash:
                    raise LauncherError(
                        f"the sweep {earlier.name} has no job like {' '.join(job.overrides) or 'this one'}: "
                        "hydra.launcher.sweep= continues a sweep with the overrides that it was launched with"
                    )
                job.output_dir = by_hash[job.config_hash].output_dir
        self.sweep.jobs = [
            JobRecord(job.num, job.overrides, job.config_hash, job.folder, job.output_dir) for job in self.jobs
        ]
        calls = {job.folder: job.call for job in earlier.jobs} if earlier is not None else {}
        found = await asyncio.gather(*(self._look_at(record, calls.get(record.folder)) for record in self.sweep.jobs))
        self.to_submit = [job for job, submit in zip(self.jobs, found, strict=True) if submit]
        if earlier is not None:
            done, total = len(self.collector.results), len(self.jobs)
            log.info("continuing the sweep %s: %d of %d jobs are complete", earlier.name, done, total)

    def announce(self) -> None:
        """Print the jobs, what each gets and what they will cost.

        Raises:
            LauncherError: if that is more than ``budget_usd``.
        """
        settings = self.settings
        for job in self.jobs:
            state = "" if job in self.to_submit else "  (complete)" if job.num in self.collector.results else "  (runs)"
            log.info("#%d %s -> %s%s", job.num, " ".join(job.overrides), job.output_dir, state)
        if not self.to_submit:
            return
        cost = estimate(settings, [job.expected_seconds for job in self.to_submit])
        retries = settings.retries.max_retries
        log.info(
            "%s on %s, %g cores, %g GiB, at most %d s an attempt and %d more after failures: %s",
            counted(len(self.to_submit), "job"),
            " or ".join(gpu or "no GPU" for gpu in settings.gpus),
            settings.cpu,
            settings.memory / 1024,
            settings.timeout,
            retries,
            cost,
        )
        for job in self.to_submit:
            if job.expected_seconds is not None and job.expected_seconds > settings.timeout:
                log.warning(
                    "job %d is expected to take %.0f s, and hydra.launcher.timeout=%d ends an attempt: a retry goes on "
                    "from the last checkpoint, %d times",
                    job.num,
                    job.expected_seconds,
                    settings.timeout,
                    retries,
                )
        if settings.budget_usd is not None and cost.usd > settings.budget_usd:
            raise LauncherError(
                f"hydra.launcher.budget_usd={settings.budget_usd:g} does not allow this launch, estimated at {cost}: "
                "launch fewer or shorter jobs, a cheaper hydra.launcher.gpu, or raise the budget"
            )

    async def submit(self) -> None:
        """Deploy the app and submit every job that is neither complete nor running."""
        if not self.to_submit:
            return
        start = time.monotonic()
        function = await self._function()
        deployed = time.monotonic()
        await asyncio.gather(*map(self.volume.remove, self._to_replace))
        await self.volume.write(self.sweep.path, self.sweep.to_json())
        slots = asyncio.Semaphore(SUBMISSIONS)
        commit = git_commit(self.sources[0]) if self.sources else None
        env = {} if commit is None else {COMMIT_VARIABLE: commit}
        records = {record.num: record for record in self.sweep.jobs}

        async def submit_one(job: Job) -> None:
            spec = job.spec(self.settings, sweep=self.sweep.name, task=self.task_name, env=env)
            payload = pack(self.task, self.task_name, job.config)
            async with slots:
                call = await function.spawn.aio(spec, payload)
            records[job.num].call = call.object_id

        outcomes = await asyncio.gather(*map(submit_one, self.to_submit), return_exceptions=True)
        await self.volume.write(self.sweep.path, self.sweep.to_json())
        for job, error in zip(self.to_submit, outcomes, strict=True):
            if isinstance(error, Exception):
                said = {"type": type(error).__name__, "message": f"not submitted: {error}", "traceback": ""}
                self.collector.results[job.num] = Result(records[job.num], FAILED, error=said)
        seconds = time.monotonic() - deployed
        log.info(
            "sweep %s: app deployed in %.1f s, %s submitted in %.1f s (%.0f ms each)",
            self.sweep.name,
            deployed - start,
            counted(len(self.to_submit), "job"),
            seconds,
            1000 * seconds / len(self.to_submit),
        )

    async def _earlier(self) -> SweepRecord | None:
        """The sweep that this launch continues."""
        name = self.settings.sweep
        if name is None:
            names = [Path(entry.path).stem for entry in await self.volume.files(RECORDS)]
            name = newest(names, self.sweep.identity)
        record = None if name is None else await read_record(self.volume, name)
        if record is None and self.settings.sweep is not None:
            raise LauncherError(
                f"hydra.launcher.sweep={self.settings.sweep} cannot be continued: the volume "
                f"{self.settings.volume} has no record of it; nsm-modal list names those there are"
            )
        return record

    async def _look_at(self, record: JobRecord, call: str | None) -> bool:
        """Whether a job is to be submitted; notes its result if it is complete, and its call if it runs."""
        found = await self.collector.status(record)
        call = call or (found.attempts[-1].call if found is not None and found.attempts else None)
        if found is not None and found.status == COMPLETED and found.config_hash == record.config_hash:
            if self.settings.resume:
                self.collector.results[record.num] = Result.of(record, found, skipped=True)
                await self.collector.bring_home(record)
                return False
        elif call is not None and await _runs(call):
            if not self.settings.resume or _another(found, record):
                raise LauncherError(
                    f"{record.folder} on the volume belongs to a job that is running: nsm-modal cancel stops its sweep"
                )
            record.call = call
            return False
        if self.settings.resume and _another(found, record):
            raise LauncherError(
                f"{record.folder} on the volume holds a job of another configuration: choose another hydra.sweep.dir, "
                "or hydra.launcher.resume=false, which replaces it"
            )
        if not self.settings.resume and await self.volume.files(record.folder):
            self._to_replace.append(record.folder)
        return True

    async def _function(self) -> Any:
        """The deployed function: a kept app's if nothing changed since, else one deployed now."""
        import modal

        digest = self._digest()
        if self.settings.keep_app:
            try:
                deployed = await modal.App.lookup.aio(self.sweep.app)
                if (await deployed.get_tags.aio()).get(DIGEST_TAG) == digest:
                    log.info("the app %s is deployed as it is now", self.sweep.app)
                    return modal.Function.from_name(self.sweep.app, modal_app.FUNCTION)
            except modal.exception.NotFoundError:
                pass
        tags = {DIGEST_TAG: digest} if self.settings.keep_app else {"sweep": self.sweep.name}
        app, function = modal_app.build_app(self.settings, name=self.sweep.app, task=self.task_name, tags=tags)
        with modal.enable_output():
            await app.deploy.aio(name=self.sweep.app)
        return function

    def _digest(self) -> str:
        """Of everything that decides how a deployed app behaves."""
        import modal

        digest = hashlib.sha256(json.dumps(asdict(self.settings), sort_keys=True).encode())
        files = [path for source in self.sources for path in source_files(source)]
        for key in ("constraints", "pyproject"):
            if (name := getattr(self.settings.image, key)) is not None:
                files.append(modal_app.find(name, f"image.{key}", self.task_name))
        for here in self.settings.image.local_dirs:
            folder = modal_app.find(here, f"image.local_dirs.{here}", self.task_name)
            ignored = modal.FilePatternMatcher(*modal_app.NO_CODE)
            inside = sorted(path for path in folder.rglob("*") if path.is_file())
            files += [path for path in inside if not ignored(path.relative_to(folder))]
        for path in [*files, *source_files(Path(__file__).parent)]:
            digest.update(path.read_bytes())
        variables = {variable: os.environ[variable] for variable in self.settings.env_passthrough}
        digest.update(json.dumps(variables).encode())
        return digest.hexdigest()[:32]


async def _runs(call: str) -> bool:
    try:
        await call_outcome(call, wait=False)
    except TimeoutError:
        return True
    return False


def _another(found: Status | None, record: JobRecord) -> bool:
    return found is not None and found.config_hash != record.config_hash


def _command() -> list[str]:
    """The command line of this process, as a person would type it."""
    spec = sys.modules["__main__"].__spec__
    start = ["python", "-m", spec.name] if spec is not None else ["python", sys.argv[0]]
    return [*start, *sys.argv[1:]]
