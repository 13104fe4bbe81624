"""Commits a job's folder to the volume: at an interval, and whenever a file that matters has changed."""

import logging
import threading
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hydra_plugins.nsm_modal.status import Attempt, Status

log = logging.getLogger(__name__)
POLL_SECONDS, TRIES = 0.5, 5


class Committer:
    """Keeps the volume up to date with a job, from a thread, between ``__enter__`` and ``__exit__``.

    Args:
        volume: a ``modal.Volume`` mounted above ``folder``.
        attempt: the one of ``status`` whose time and cost are kept up to date.
        usd_per_second: price of the container.
        every: seconds between commits.
        patterns: names of files whose every change is committed at once. A file is taken for whole: whoever writes it
            renames it into place.
    """

    def __init__(
        self,
        volume: Any,
        folder: Path,
        status: Status,
        attempt: Attempt,
        *,
        usd_per_second: float,
        every: float,
        patterns: Sequence[str],
    ) -> None:
        self._start = time.monotonic()
        self._volume, self._folder, self._status, self._attempt = volume, folder, status, attempt
        self._rate, self._every, self._patterns = usd_per_second, every, patterns
        self._lock, self._done = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="committer", daemon=True)

    def __enter__(self) -> "Committer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def commit(self) -> None:
        """Write the status and commit the volume; tried again where the service does not answer."""
        with self._lock:
            self._attempt.seconds = round(time.monotonic() - self._start, 3)
            self._attempt.usd = round(self._attempt.seconds * self._rate, 6)
            self._status.write(self._folder)
            for left in reversed(range(TRIES)):
                try:
                    self._volume.commit()
                    return
                except Exception as error:
                    if left == 0:
                        raise
                    log.warning("the volume was not committed, trying again: %s", error)
                    time.sleep(2 ** (TRIES - left) / 4)

    def _watch(self) -> None:
        committed, last = self._stamps(), time.monotonic()
        while not self._done.wait(POLL_SECONDS):
            stamps = self._stamps()
            if stamps != committed or time.monotonic() - last >= self._every:
                try:
                    self.commit()
                except Exception:
                    log.exception("a commit failed; the next one holds what it would have")
                committed, last = stamps, time.monotonic()

    def _stamps(self) -> dict[Path, int]:
        """When each of the files that matter was last written."""
        stamps = {}
        for path in self._folder.rglob("*"):
            if any(fnmatch(path.name, pattern) for pattern in self._patterns):
                try:
                    stamps[path] = path.stat().st_mtime_ns
                except FileNotFoundError:  # just renamed
                    continue
        return stamps
