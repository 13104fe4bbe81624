"""The server: its thread, its life, and what a test can do to it."""

import asyncio
import contextlib
import os
import shutil
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import grpclib.server
from modal._utils.grpc_utils import custom_detail_codec

from tests.fake_modal.apps import Apps
from tests.fake_modal.assets import Assets, layers
from tests.fake_modal.calls import Calls
from tests.fake_modal.client import environment, reset_client
from tests.fake_modal.container_calls import ContainerCalls
from tests.fake_modal.containers import Containers
from tests.fake_modal.faults import Faults
from tests.fake_modal.functions import Functions
from tests.fake_modal.http import Transfers
from tests.fake_modal.logs import Logs
from tests.fake_modal.records import (
    AppRecord,
    CallRecord,
    CommitRecord,
    ContainerRecord,
    ContainerState,
    FunctionRecord,
    ImageRecord,
    InputRecord,
    LogRecord,
    MountRecord,
    SecretRecord,
    TunnelRecord,
    VolumeRecord,
)
from tests.fake_modal.rpc import TOKEN_ID, TOKEN_SECRET, Dispatcher
from tests.fake_modal.scheduler import Scheduler
from tests.fake_modal.settings import Settings
from tests.fake_modal.state import State
from tests.fake_modal.volumes import Volumes

Value = TypeVar("Value")


class FakeModal:
    """A Modal control plane on loopback, with containers that are processes of this machine.

    Use it as a context manager. Its records (``apps``, ``functions``, ``images``, ``calls``, ``containers``,
    ``commits``, …) can be read at any time, also after its end.

    Args:
        settings: How it behaves; a test may change them while it runs.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings if settings is not None else Settings()
        self.faults = Faults()
        self._state = state = State(self.settings, self.faults)
        self._volumes = Volumes(state)
        self._containers = Containers(state, self._volumes)
        self._scheduler = Scheduler(state, self._containers)
        self._apps = Apps(state, on_stop=self._scheduler.stop_app)
        self._assets = Assets(state)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # Life

    def __enter__(self) -> "FakeModal":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        self._state.directory = Path(tempfile.mkdtemp(prefix="fake-modal-")).resolve()
        started = threading.Event()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                asyncio.run(self._serve(started))
            except BaseException as error:
                failures.append(error)
                started.set()

        self._thread = threading.Thread(target=run, name="fake-modal", daemon=True)
        self._thread.start()
        started.wait()
        if failures:
            self._thread.join()
            shutil.rmtree(self._state.directory)
            raise failures[0]

    def stop(self) -> None:
        """Kill the containers and remove every trace; the records stay readable."""
        if self._thread is None or self._loop is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = self._loop = None
        shutil.rmtree(self._state.directory)

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        transfers = Transfers(self._state)
        self._state.http_url = await transfers.start()
        services = [
            self._apps,
            self._assets,
            self._volumes,
            Functions(self._state, self._apps),
            Calls(self._state, self._scheduler),
            ContainerCalls(self._state, self._scheduler),
            Logs(self._state),
        ]
        server = grpclib.server.Server([Dispatcher(self._state, services)], status_details_codec=custom_detail_codec)
        # asyncio sets TCP_NODELAY only where it sees the protocol; without it every call takes 40 ms.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.bind(("127.0.0.1", 0))
        await server.start(sock=listener)
        self._state.grpc_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        watching = asyncio.create_task(self._apps.watch_clients())
        started.set()
        await self._stopping.wait()
        watching.cancel()
        for app in self._state.apps.values():
            self._apps.stop(app)
        await self._containers.stop_all()
        server.close()
        await server.wait_closed()
        await transfers.stop()

    def _in_loop(self, function: Callable[[], Value]) -> Value:
        """Run something in the server's thread."""
        if self._loop is None:
            raise RuntimeError("the stand-in is not running")

        async def run() -> Value:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    # Clients

    @property
    def client_environment(self) -> dict[str, str]:
        """What a client's environment must contain to talk to this server and to no other."""
        return {
            "MODAL_SERVER_URL": self._state.grpc_url,
            "MODAL_TOKEN_ID": TOKEN_ID,
            "MODAL_TOKEN_SECRET": TOKEN_SECRET,
            "MODAL_CONFIG_PATH": os.devnull,
            "MODAL_ENVIRONMENT": "main",
        }

    @contextlib.contextmanager
    def in_process_client(self) -> Iterator[None]:
        """Let the modal client of this very process talk to this server."""
        with environment(self.client_environment):
            reset_client()
            try:
                yield
            finally:
                reset_client()

    # Records: copies, since the server goes on

    @property
    def apps(self) -> dict[str, AppRecord]:
        return self._state.apps.copy()

    @property
    def functions(self) -> dict[str, FunctionRecord]:
        return self._state.functions.copy()

    @property
    def images(self) -> dict[str, ImageRecord]:
        """Layers; see `image_commands`."""
        return self._state.images.copy()

    @property
    def mounts(self) -> dict[str, MountRecord]:
        return self._state.mounts.copy()

    @property
    def secrets(self) -> dict[str, SecretRecord]:
        return self._state.secrets.copy()

    @property
    def volumes(self) -> dict[str, VolumeRecord]:
        return self._state.volumes.copy()

    @property
    def calls(self) -> dict[str, CallRecord]:
        return self._state.calls.copy()

    @property
    def inputs(self) -> dict[str, InputRecord]:
        return self._state.inputs.copy()

    @property
    def containers(self) -> dict[str, ContainerRecord]:
        return self._state.containers.copy()

    @property
    def commits(self) -> list[CommitRecord]:
        return self._state.commits.copy()

    @property
    def logs(self) -> list[LogRecord]:
        return self._state.logs.copy()

    @property
    def tunnels(self) -> list[TunnelRecord]:
        return self._state.tunnels.copy()

    @property
    def rpc_counts(self) -> Counter[str]:
        return self._state.rpc_counts.copy()

    @property
    def unimplemented(self) -> Counter[str]:
        """RPCs that the stand-in does not know; a test asserts that there are none."""
        return self._state.unimplemented.copy()

    @property
    def errors(self) -> list[str]:
        """Mistakes of the stand-in itself, as tracebacks; a test asserts that there are none."""
        return self._state.errors.copy()

    # Look-ups

    def function(self, name: str) -> FunctionRecord:
        """The newest function of that name."""
        return [function for function in self.functions.values() if function.name == name][-1]

    def image_commands(self, image_id: str) -> list[str]:
        """All Dockerfile lines of an image, from its base on."""
        return [line for layer in layers(self._state, image_id) for line in layer.dockerfile_commands]

    def volume(self, name: str) -> VolumeRecord:
        volume = self._volumes.find_by_name(name)
        if volume is None:
            raise KeyError(name)
        return volume

    def busy_containers(self) -> list[ContainerRecord]:
        """Those that work on an input now."""
        return [c for c in self.containers.values() if c.state is ContainerState.BUSY]

    def log_text(self, *, container_id: str = "", call_id: str = "") -> str:
        """What containers wrote, of one container or call if said so."""
        return "".join(
            record.text
            for record in self.logs
            if container_id in ("", record.container_id) and call_id in ("", record.call_id)
        )

    # What a test can do to it

    def create_secret(self, name: str, variables: dict[str, str]) -> SecretRecord:
        return self._in_loop(lambda: self._assets.create_secret(name, variables))

    def create_volume(self, name: str, version: int = 1) -> VolumeRecord:
        return self._in_loop(lambda: self._volumes.create(name, version))

    def preempt(self, container_id: str, grace: float = 30.0) -> None:
        """SIGINT, and SIGKILL after ``grace`` seconds; its input will be delivered to another container."""
        self._in_loop(lambda: self._scheduler.preempt(self.containers[container_id], grace))

    def kill(self, container_id: str) -> None:
        """SIGKILL to all processes of a container; its input will be delivered to another one."""
        self._in_loop(lambda: self._containers.kill(self.containers[container_id]))
