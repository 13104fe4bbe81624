"""``nsm-modal``: the sweeps on a volume, from any machine with credentials, and a notebook beside them."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path, PurePosixPath

from hydra_plugins.nsm_modal.app import stop_app
from hydra_plugins.nsm_modal.collect import Collector, Result, columns, counted, table
from hydra_plugins.nsm_modal.config import (
    SYNCS,
    LauncherError,
    ModalLauncherConfig,
    check_credentials,
    files_to_leave,
)
from hydra_plugins.nsm_modal.notebook import MOST_HOURS, open_notebook, settings_of
from hydra_plugins.nsm_modal.record import RECORDS, SweepRecord, read_record
from hydra_plugins.nsm_modal.status import COMPLETED, FAILED
from hydra_plugins.nsm_modal.sync import VolumeClient
from hydra_plugins.nsm_modal.worker import LOG_FILE

Command = Callable[[argparse.Namespace, VolumeClient], Awaitable[None]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exit with 1 and a message where it cannot be done."""
    import modal

    options = parser().parse_args(arguments)
    try:
        check_credentials()
        asyncio.run(_run(options))
    except (LauncherError, modal.exception.Error) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


async def _run(options: argparse.Namespace) -> None:
    volume = VolumeClient(options.volume, create=options.command is notebook)
    await volume.check_exists()
    await options.command(options, volume)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="nsm-modal", description="The sweeps on a volume on Modal.")
    volume = argparse.ArgumentParser(add_help=False)
    volume.add_argument("--volume", default=ModalLauncherConfig().volume, help="that the sweeps are on: %(default)s")
    commands = root.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[volume])
        added.set_defaults(command=command)
        return added

    def add_for_sweep(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        added = add(name, command, text)
        added.add_argument("sweep", nargs="?", default="", help="its name, or the start of it; the newest if left out")
        return added

    add("list", list_sweeps, "List the sweeps: how many of their jobs are complete, and what they have cost.")
    attach_to = add_for_sweep("attach", attach, "Wait for a sweep's jobs and bring each one's outputs home.")
    fetch_from = add_for_sweep("fetch", fetch, "Bring home what a sweep's jobs have committed so far.")
    for added in (attach_to, fetch_from):
        added.add_argument("--sync", choices=SYNCS, default="all", help="what comes home; light: no checkpoints")
        added.add_argument("--home", type=Path, default=Path(), help="folder that relative output folders are in: here")
    logs = add_for_sweep("logs", show_log, "Print what a job printed, in all its attempts.")
    logs.add_argument("job", type=int, help="its number")
    logs.add_argument("-f", "--follow", action="store_true", help="print the last lines, and go on as more come")
    add_for_sweep("cost", cost, "List every attempt of every job: how it ended, its seconds, its estimated cost.")
    opened = add("notebook", notebook, "Open JupyterLab in a container, with this volume, and wait until it ends.")
    opened.add_argument("--gpu", default=ModalLauncherConfig().gpu, help="card, or none: %(default)s")
    opened.add_argument("--hours", type=hours, default=MOST_HOURS, help="at most, after which it ends: %(default)g")
    opened.add_argument("--package", action="append", help="Python package that travels there; nsm if left out")
    add_for_sweep("cancel", cancel, "Stop a sweep's jobs; what they have committed stays on the volume.")
    return root


def hours(text: str) -> float:
    """A time that a notebook may take."""
    number = float(text)
    if not 0 < number <= MOST_HOURS:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most {MOST_HOURS:g}")
    return number


async def list_sweeps(options: argparse.Namespace, volume: VolumeClient) -> None:
    """``nsm-modal list``."""
    rows = [("sweep", "jobs", "completed", "failed", "open", "cost", "command")]
    for name in await _names(volume):
        sweep = await _read(volume, name)
        found = [status for status in await Collector(volume, sweep).statuses() if status is not None]
        completed, failed = (sum(status.status == what for status in found) for what in (COMPLETED, FAILED))
        usd = sum(status.usd for status in found)
        jobs, still_open = len(sweep.jobs), len(sweep.jobs) - completed - failed
        counts = (str(jobs), str(completed), str(failed), str(still_open))
        rows.append((name, *counts, f"${usd:.2f}", " ".join(sweep.command)))
    print("\n".join(columns(rows)))


async def attach(options: argparse.Namespace, volume: VolumeClient) -> None:
    """``nsm-modal attach``; an interruption ends the waiting and nothing else."""
    sweep = await _find(volume, options.sweep)
    leave = files_to_leave(options.sync, sweep.commit_on)
    collector = Collector(volume.at(sweep.mount), sweep, leave=leave, home=options.home, say=print)
    await collector.find_calls()
    await collector.wait()
    if len(collector.results) == len(sweep.jobs) and not sweep.keep_app:
        await stop_app(sweep.app)
    print(f"\n{table(collector.results.values())}")
    if any(result.status != COMPLETED for result in collector.results.values()):
        sys.exit(1)


async def fetch(options: argparse.Namespace, volume: VolumeClient) -> None:
    """``nsm-modal fetch``."""
    sweep = await _find(volume, options.sweep)
    leave = files_to_leave(options.sync, sweep.commit_on)
    collector = Collector(volume.at(sweep.mount), sweep, leave=leave, home=options.home)
    for job in sweep.jobs:
        await collector.bring_home(job)
    results = [Result.of(job, status) for job, status in zip(sweep.jobs, await collector.statuses(), strict=True)]
    print(table(results))


async def show_log(options: argparse.Namespace, volume: VolumeClient) -> None:
    """``nsm-modal logs``."""
    import modal

    sweep = await _find(volume, options.sweep)
    job = next((job for job in sweep.jobs if job.num == options.job), None)
    if job is None:
        raise LauncherError(f"the sweep {sweep.name} has jobs {', '.join(str(job.num) for job in sweep.jobs)}")
    if options.follow:
        collector = Collector(volume, sweep)
        await collector.find_calls()
        if job.call is None:
            raise LauncherError(f"job {job.num} of {sweep.name} was not submitted")
        log = modal.FunctionCall.from_id(job.call).logs
        async for entry in log.tail.aio():
            print(entry.message, end="", flush=True)
        async for entry in log.stream.aio():
            print(entry.message, end="", flush=True)
        return
    text = await volume.read(str(PurePosixPath(job.folder, LOG_FILE)))
    if text is None:
        raise LauncherError(f"job {job.num} of {sweep.name} has committed nothing yet; --follow shows what it prints")
    sys.stdout.write(text.decode(errors="replace"))


async def cost(options: argparse.Namespace, volume: VolumeClient) -> None:
    """``nsm-modal cost``."""
    sweep = await _find(volume, options.sweep)
    rows = [("job", "attempt", "started", "gpu", "outcome", "seconds", "cost")]
    total = 0.0
    for job, status in zip(sweep.jobs, await Collector(volume, sweep).statuses(), strict=True):
        for number, attempt in enumerate(status.attempts if status is not None else [], 1):
            total += attempt.usd
            figures = (f"{attempt.seconds:.0f}", f"${attempt.usd:.3f}")
            gpu = attempt.gpu or "none"
            rows.append((str(job.num), str(number), attempt.started, gpu, attempt.outcome, *figures))
    print("\n".join(columns(rows)))
    print(f"\nabout ${total:.2f}, at the rates that the sweep was launched with; Modal's bill is what counts")


async def cancel(options: argparse.Namespace, volume: VolumeClient) -> None:
    """``nsm-modal cancel``."""
    sweep = await _find(volume, options.sweep)
    collector = Collector(volume, sweep, leave=None)
    await collector.find_calls()
    stopped = await collector.stop()
    print(f"{sweep.name}: {counted(stopped, 'job') if stopped else 'no job was running, none'} stopped")
    if not sweep.keep_app:
        await stop_app(sweep.app)
    print(table(collector.results.values()))


async def notebook(options: argparse.Namespace, volume: VolumeClient) -> None:
    """``nsm-modal notebook``."""
    gpu = None if options.gpu == "none" else options.gpu
    packages = options.package or ["nsm"]
    settings = settings_of(volume=options.volume, gpu=gpu, hours=options.hours, packages=packages)
    await open_notebook(settings, volume, lambda line: print(line, flush=True))


async def _names(volume: VolumeClient) -> list[str]:
    """Of all sweeps, oldest first."""
    return sorted(PurePosixPath(entry.path).stem for entry in await volume.files(RECORDS))


async def _find(volume: VolumeClient, start: str) -> SweepRecord:
    """The newest sweep whose name begins so."""
    names = await _names(volume)
    fitting = [name for name in names if name.startswith(start)]
    if not fitting:
        there = f"there are {', '.join(names)}" if names else "there is none"
        raise LauncherError(f"no sweep on the volume {volume.name} begins with {start!r}: {there}")
    return await _read(volume, fitting[-1])


async def _read(volume: VolumeClient, name: str) -> SweepRecord:
    record = await read_record(volume, name)
    if record is None:
        raise LauncherError(f"the record of the sweep {name} was removed from the volume {volume.name}")
    return record


if __name__ == "__main__":
    main()
