"""Faults that a test asks for."""

import collections
import random

from grpclib import GRPCError, Status


class Faults:
    """What goes wrong on purpose, apart from what is done to a running container (see `FakeModal.kill`)."""

    def __init__(self) -> None:
        self._next_failures: collections.Counter[str] = collections.Counter()
        self._failed_starts = 0
        self._share = 0.0
        self._seed = 0
        self._drawn: collections.Counter[str] = collections.Counter()
        self.injected: collections.Counter[str] = collections.Counter()
        """How often each RPC was failed."""

    def fail_next(self, method: str, times: int = 1) -> None:
        """Answer the next calls of an RPC, such as ``"FunctionMap"``, with UNAVAILABLE."""
        self._next_failures[method] += times

    def fail_at_random(self, share: float, *, seed: int) -> None:
        """Answer that share of all calls with UNAVAILABLE; a share of 0 ends it.

        Which calls of a method fail depends only on the seed and on how many of that method came before.
        """
        if not 0 <= share < 1:
            raise ValueError(f"share={share} must be in [0, 1)")
        self._share, self._seed = share, seed
        self._drawn.clear()

    def fail_starts(self, times: int = 1) -> None:
        """Let the next containers exit with code 1 before they ask for input."""
        self._failed_starts += times

    def check_rpc(self, method: str) -> None:
        """Called before an RPC has any effect; raises what the test asked for."""
        fails = False
        if self._next_failures[method] > 0:
            self._next_failures[method] -= 1
            fails = True
        elif self._share:
            self._drawn[method] += 1
            fails = random.Random(f"{self._seed} {method} {self._drawn[method]}").random() < self._share
        if fails:
            self.injected[method] += 1
            raise GRPCError(Status.UNAVAILABLE, f"injected failure of {method}")

    def take_failed_start(self) -> bool:
        """Whether the container that starts now shall fail to."""
        if self._failed_starts == 0:
            return False
        self._failed_starts -= 1
        return True
