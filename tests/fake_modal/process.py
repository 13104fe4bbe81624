"""A child process whose output and exit are awaited in the event loop."""

import asyncio
import codecs
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

OUTPUT_GRACE = 2.0
"""Seconds that output may still come after the exit, from processes that left the group."""


def processes_in_session(leader: int) -> list[int]:
    """The ids of all processes in the session that a process leads."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) == leader:
                found.append(pid)
    return found


def uses(pid: int, directory: Path) -> bool:
    """Whether a process has a file of a directory open, or works inside it."""
    links = [Path(f"/proc/{pid}/cwd")]
    with contextlib.suppress(OSError):
        links += Path(f"/proc/{pid}/fd").iterdir()
    for link in links:
        with contextlib.suppress(OSError):
            if link.readlink().is_relative_to(directory):
                return True
    return False


class Process:
    """A process in a group of its own; the group ends with it.

    Not `asyncio.subprocess`, whose ``wait`` also waits for every heir of the pipes, and whose way to watch children
    depends on the version of Python.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], on_output: Callable[[int, str], None]
    ) -> None:
        """Start it. ``on_output`` gets 1 or 2, for stdout and stderr, and text."""
        self._popen = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._pumps = [
            asyncio.create_task(self._pump(pipe, descriptor, on_output))
            for descriptor, pipe in ((1, self._popen.stdout), (2, self._popen.stderr))
        ]

    @property
    def pid(self) -> int:
        return self._popen.pid

    async def _pump(self, pipe: IO[bytes], descriptor: int, on_output: Callable[[int, str], None]) -> None:
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        try:
            while data := await reader.read(1 << 16):
                if text := decoder.decode(data):
                    on_output(descriptor, text)
        finally:
            transport.close()

    def interrupt(self) -> None:
        """SIGINT to the main process alone."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for the exit and the rest of the output; returns the exit code, negative for a signal."""
        descriptor = os.pidfd_open(self._popen.pid)
        loop = asyncio.get_running_loop()
        exited = asyncio.Event()
        loop.add_reader(descriptor, exited.set)
        try:
            await exited.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self.kill()
        exit_code = self._popen.wait()
        _, late = await asyncio.wait(self._pumps, timeout=OUTPUT_GRACE)
        for pump in late:
            pump.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        return exit_code
