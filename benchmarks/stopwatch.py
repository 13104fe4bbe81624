"""Where the time of nested calls goes, measured on the objects that a run uses anyway."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

OTHER = "other"


def now(device: str) -> float:
    """Seconds, once ``device`` has finished what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch:
    """Exclusive time of named parts: what is called within a part, and is one itself, counts for itself alone.

    While it does not run, the parts are called as if it were not there; while it runs on a GPU, it waits for the GPU
    wherever a part begins or ends.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._running = False
        self._open: list[str] = []
        self._seconds: dict[str, float] = {}
        self._since = 0.0

    def start(self) -> None:
        """Begin anew, outside all parts."""
        self._running, self._open, self._seconds, self._since = True, [OTHER], {OTHER: 0.0}, now(self.device)

    def stop(self) -> dict[str, float]:
        """Seconds of each part since :meth:`start`, and of what belongs to none as ``other``."""
        self._switch()
        self._running = False
        return self._seconds

    @contextmanager
    def watch(self, parts: Iterable[tuple[Any, str, str]]) -> Iterator[None]:
        """Count calls of a method for a part; given as (object, method, part)."""
        with ExitStack() as stack:
            for owner, method, part in parts:
                stack.enter_context(replaced(owner, method, functools.partial(self._call, part)))
            yield

    def _call(self, part: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._running:
            return method(*args, **kwargs)
        self._switch()
        self._open.append(part)
        try:
            return method(*args, **kwargs)
        finally:
            self._switch()
            self._open.pop()

    def _switch(self) -> None:
        moment = now(self.device)
        part = self._open[-1]
        self._seconds[part] = self._seconds.get(part, 0.0) + moment - self._since
        self._since = moment


@contextmanager
def replaced(owner: Any, name: str, call: Callable[..., Any]) -> Iterator[None]:
    """Within the context ``owner.name(...)`` is ``call(owner.name, ...)``, for this one object."""
    method, own = getattr(owner, name), name in vars(owner)

    @functools.wraps(method)  # Lightning looks through it to see what a module overrides
    def instead(*args: Any, **kwargs: Any) -> Any:
        return call(method, *args, **kwargs)

    setattr(owner, name, instead)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, method)
        else:
            delattr(owner, name)
