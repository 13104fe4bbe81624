"""The launcher that Hydra's sweepers call."""

import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, configure_log
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.nsm_modal.app import stop_app
from hydra_plugins.nsm_modal.collect import Result, table
from hydra_plugins.nsm_modal.config import LauncherError, ModalLauncherConfig, check_credentials, has_credentials
from hydra_plugins.nsm_modal.jobs import Job, compose_jobs
from hydra_plugins.nsm_modal.launch import Launch
from hydra_plugins.nsm_modal.status import COMPLETED
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

log = logging.getLogger(__name__)


class ModalLauncher(Launcher):
    """Runs the jobs of a multirun in containers on Modal; ``config.py`` describes the settings."""

    settings: ModalLauncherConfig

    def __init__(self, **settings: Any) -> None:
        """Hydra passes the settings here; :meth:`setup` reads them from the configuration, where they have types."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config
        try:
            settings = OmegaConf.to_object(config.hydra.launcher)
        except OmegaConfBaseException as error:
            raise LauncherError(str(error).split("\n")[0]) from error
        assert isinstance(settings, ModalLauncherConfig)
        self.settings = settings

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        import modal

        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        expected = self.settings.expected_seconds
        jobs = compose_jobs(self.context, self.config, job_overrides, initial_job_idx, expected)
        if not self.settings.dry_run:
            check_credentials(self.settings.run_here)
        try:
            return self._run(Launch(self.settings, jobs, self.task))
        except modal.exception.Error as error:
            raise LauncherError(f"Modal says: {error}") from error

    def _run(self, launch: Launch) -> Sequence[JobReturn]:
        if has_credentials():  # a dry run needs none
            asyncio.run(launch.look_back())
        launch.announce()
        if self.settings.dry_run:
            log.info("dry run: nothing was launched")
            return [job.job_return(None) for job in launch.jobs]
        try:
            asyncio.run(launch.submit())
            if self.settings.detach:
                log.info("detached; to wait for the jobs: nsm-modal attach %s", launch.sweep.name)
                return [job.job_return(None) for job in launch.jobs]
            asyncio.run(launch.collector.wait())
        except KeyboardInterrupt:
            _stop(launch)
            sys.exit(130)
        if not self.settings.keep_app:
            asyncio.run(stop_app(launch.sweep.app))
        results = launch.collector.results
        log.info("\n%s", table(results.values()))
        if any(result.status != COMPLETED for result in results.values()):
            log.warning("to run again what is not complete: %s", launch.continue_command)
        return [_job_return(job, results[job.num]) for job in launch.jobs]


def _stop(launch: Launch) -> None:
    """Stop what runs, bring home what is committed, and say how to go on."""
    log.warning(
        "stopping the jobs; what they have committed comes home. A second Ctrl-C leaves them running: "
        "nsm-modal attach %s",
        launch.sweep.name,
    )
    try:
        asyncio.run(launch.collector.stop())
        if not launch.settings.keep_app:
            asyncio.run(stop_app(launch.sweep.app))
        log.info("\n%s", table(launch.collector.results.values()))
    except KeyboardInterrupt:
        pass
    log.warning("to continue: %s", launch.continue_command)


def _job_return(job: Job, result: Result) -> JobReturn:
    if result.status == COMPLETED:
        return job.job_return(result.value)
    reason = f": {result.error['type']}: {result.error['message']}" if result.error else ""
    return job.job_return(LauncherError(f"job {job.num} {result.status}{reason}; see {job.output_dir}"), failed=True)
