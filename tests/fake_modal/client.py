"""Help for tests on the client's side."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping


def wait_for(condition: Callable[[], object], timeout: float = 30.0, interval: float = 0.02) -> None:
    """Wait until ``condition()`` is true; raises TimeoutError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the condition was still false after {timeout} s")
        time.sleep(interval)


def reset_client() -> None:
    """Make the modal client of this process forget the server it talked to.

    Closes the client that `modal.Client.from_env` shares, and empties the cache of environments. Handles that a test
    made before (apps, functions, volumes) keep the ids of the former server and must be made anew.
    """
    import modal
    from modal._environments import ENVIRONMENT_CACHE
    from modal._utils.async_utils import synchronizer
    from modal.client import _Client

    former = _Client._client_from_env
    _Client._client_from_env = None
    ENVIRONMENT_CACHE.clear()
    if former is not None:
        client = synchronizer._translate_out(former)
        assert isinstance(client, modal.Client)
        client.close()


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
