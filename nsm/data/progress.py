"""How far slow work on data is, told now and then."""

import logging
import time

log = logging.getLogger(__name__)
SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """A line every fifteen seconds, and none for what takes less.

    Args:
        what: the work, as in "generating kg".
        total: how many there are to do, of what ``unit`` names.
    """

    def __init__(self, what: str, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self._told = time.monotonic()

    def reached(self, count: int) -> None:
        """So many are done."""
        now = time.monotonic()
        if count < self.total and now - self._told >= SECONDS_BETWEEN_LINES:
            self._told = now
            log.info("%s: %s of %s %s", self.what, f"{count:,}", f"{self.total:,}", self.unit)
