"""SIGINT and SIGTERM: training stops after the batch that it is at, with that state saved."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptedRun(KeyboardInterrupt):
    """A run was told to stop; what was done is saved, or repeated when the run is continued."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum
        self.exit_code = 128 + signum
        """Of the process, by the shell's convention."""

    def __reduce__(self) -> tuple[type["InterruptedRun"], tuple[int]]:
        return type(self), (self.signum,)  # what travels from one process of a sweep to another


class Interrupts:
    """Turns the signals that ask a process to stop into :class:`InterruptedRun`, at once or by :meth:`obey`."""

    def __init__(self) -> None:
        self._received: int | None = None
        self._patient = False

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Heed the signals inside, and whoever did so before again afterwards."""
        before = {name: signal.getsignal(name) for name in SIGNALS}
        self.listen()
        try:
            yield
        finally:
            for name, handler in before.items():
                _handle(name, handler)

    @contextlib.contextmanager
    def patiently(self) -> Iterator[None]:
        """Inside, the first signal waits for :meth:`obey`; a second one interrupts at once."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False
        self.obey()

    def listen(self) -> None:
        """Receive the signals from here on; Lightning adds a handler of its own when a fit begins."""
        for name in SIGNALS:
            _handle(name, self._receive)

    @property
    def waiting(self) -> bool:
        """Whether a signal waits to be obeyed."""
        return self._received is not None

    def obey(self, *, asked: bool = False) -> None:
        """Raise :class:`InterruptedRun` if a signal waits, or if another process of this run was ``asked`` to stop."""
        if asked or self.waiting:
            raise InterruptedRun(signal.SIGTERM if self._received is None else self._received)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if not self._patient or self.waiting:
            raise InterruptedRun(signum)
        self._received = signum
        log.warning("%s: stopping when the state is saved; once more to stop at once", signal.Signals(signum).name)


def _handle(name: signal.Signals, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(name, handler)
