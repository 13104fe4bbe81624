"""Container processes: the real ``modal._container_entrypoint`` in a file system of their own."""

import asyncio
import functools
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from grpclib import GRPCError
from modal_proto import api_pb2 as pb

from tests.fake_modal.apps import ENVIRONMENT
from tests.fake_modal.assets import environment, layers, working_directory
from tests.fake_modal.functions import handle_metadata
from tests.fake_modal.isolation import RootDirectory
from tests.fake_modal.process import Process
from tests.fake_modal.records import ContainerRecord, ContainerState, FunctionRecord, LogRecord
from tests.fake_modal.rpc import CONTAINER_HEADER
from tests.fake_modal.state import State
from tests.fake_modal.volumes import Volumes

if TYPE_CHECKING:
    from modal_proto.api_pb2 import Function

ARGUMENTS = "/__modal/arguments.pb"
ENTRYPOINT = """
import runpy
from modal._tunnel import Tunnel
Tunnel.url = property(lambda tunnel: f"http://{tunnel.host}:{tunnel.port}")
runpy.run_module("modal._container_entrypoint", run_name="__main__", alter_sys=True)
"""
"""What a container runs: Modal's own entrypoint, in whose client a tunnel's address is not https, which Modal's always
are: here none has TLS."""

EXIT_GRACE = 30.0
"""Seconds from a request to exit until SIGKILL, as Modal documents for preemption."""


class Containers:
    """Starts containers, signals them, and reports their end."""

    def __init__(self, state: State, volumes: Volumes) -> None:
        self._state = state
        self._volumes = volumes
        self._processes: dict[str, Process] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._current_input: Callable[[ContainerRecord], tuple[str, str]] = lambda container: ("", "")
        self._on_exit: Callable[[ContainerRecord], None] = lambda container: None

    def connect(
        self,
        *,
        on_exit: Callable[[ContainerRecord], None],
        current_input: Callable[[ContainerRecord], tuple[str, str]],
    ) -> None:
        """Say what to do at a container's end, and how to know the call and input ids that it works on."""
        self._on_exit, self._current_input = on_exit, current_input

    def start(self, function: FunctionRecord) -> ContainerRecord:
        container_id = self._state.new_id("ta")
        container = ContainerRecord(
            container_id=container_id,
            function_id=function.function_id,
            app_id=function.app_id,
            directory=self._state.directory / "containers" / container_id,
        )
        self._state.containers[container_id] = container
        task = asyncio.create_task(self._run(container, function))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return container

    def kill(self, container: ContainerRecord) -> None:
        if container.container_id in self._processes:
            self._processes[container.container_id].kill()

    def interrupt(self, container: ContainerRecord, grace: float) -> None:
        """SIGINT now and SIGKILL after the grace (s), as Modal does on preemption."""
        if container.container_id in self._processes:
            self._processes[container.container_id].interrupt()
            self.kill_after(container, grace)

    def kill_after(self, container: ContainerRecord, grace: float) -> None:
        asyncio.get_running_loop().call_later(grace, self.kill, container)

    async def stop_all(self) -> None:
        """Kill every container and wait for its end."""
        while self._tasks:
            for container in self._state.containers.values():
                self.kill(container)
            await asyncio.wait(set(self._tasks), timeout=1.0)

    async def _run(self, container: ContainerRecord, function: FunctionRecord) -> None:
        exit_code = 1
        try:
            command, variables = self._prepare(container, function)
            process = Process(command, variables, functools.partial(self._log, container))
            self._processes[container.container_id], container.pid = process, process.pid
            committing = asyncio.create_task(self._commit_at_intervals(container))
            exit_code = await process.wait()
            committing.cancel()
            (outcome,) = await asyncio.gather(committing, return_exceptions=True)
            if not isinstance(outcome, asyncio.CancelledError):
                self._state.errors.append(f"background commit of {container.container_id}: {outcome!r}")
        except (OSError, ValueError, GRPCError) as error:
            self._state.errors.append(f"start of {container.container_id}: {error!r}")
        finally:
            self._processes.pop(container.container_id, None)
            container.state, container.exit_code, container.finished_at = ContainerState.DEAD, exit_code, time.time()
            self._on_exit(container)
            self._state.changes.notify()

    def _prepare(self, container: ContainerRecord, function: FunctionRecord) -> tuple[list[str], dict[str, str]]:
        """Lay out the file system; returns the command and the environment."""
        root = RootDirectory(container.directory)
        for mount_id in function.mount_ids:
            for path, file in self._state.mounts[mount_id].files.items():
                mode = file.mode if file.HasField("mode") else None
                root.write(path, self._state.contents[file.sha256_hex], mode)
        for mount in function.definition.volume_mounts:
            copy = self._volumes.attach(container, mount)
            if mount.read_only:
                root.protect(copy)
        root.write(ARGUMENTS, self._arguments(container, function).SerializeToString(), None)

        image = layers(self._state, function.image_id)
        directory = working_directory(image)
        (container.directory / directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
        command = ["env", "-C", directory, sys.executable, "-c", ENTRYPOINT]
        if self._state.faults.take_failed_start():
            command = ["sh", "-c", "echo 'injected failure of the start' >&2; exit 1"]
        return root.command(command), self._environment(container, function)

    def _environment(self, container: ContainerRecord, function: FunctionRecord) -> dict[str, str]:
        variables = {
            "PATH": f"{sys.prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONPATH": "/root:/pkg",
            "PYTHONUNBUFFERED": "1",
            "MODAL_IS_REMOTE": "1",
            "MODAL_SERVER_URL": self._state.grpc_url,
            "MODAL_TASK_ID": container.container_id,
            "MODAL_IMAGE_ID": function.image_id,
            "MODAL_ENVIRONMENT": ENVIRONMENT,
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_AWS",
            "MODAL_REGION": "us-east-1",
            "MODAL_CONTAINER_ARGUMENTS_PATH": ARGUMENTS,
            "MODAL_OVERRIDE_HEADERS": f"{CONTAINER_HEADER}:{container.container_id}",
        }
        variables.update(self._state.settings.container_environment)
        variables.update(environment(layers(self._state, function.image_id)))
        for secret_id in function.secret_ids:
            variables.update(self._state.secrets[secret_id].environment)
        return variables

    def _arguments(self, container: ContainerRecord, function: FunctionRecord) -> pb.ContainerArguments:
        definition: Function = pb.Function()
        definition.CopyFrom(function.definition)
        for mount in definition.volume_mounts:
            # The entrypoint commits at its exit those volumes that allow it (user_code_imports.volume_commit).
            mount.allow_background_commits &= self._state.settings.exit_commits
        function_ids = self._state.apps[function.app_id].function_ids or {function.name: function.function_id}
        object_ids = [*function_ids.values(), *(d.object_id for d in definition.object_dependencies)]
        return pb.ContainerArguments(
            task_id=container.container_id,
            function_id=function.function_id,
            app_id=function.app_id,
            function_def=definition,
            environment_name=ENVIRONMENT,
            app_layout=pb.AppLayout(
                function_ids=function_ids, objects=[self._object(object_id) for object_id in dict.fromkeys(object_ids)]
            ),
        )

    def _object(self, object_id: str) -> pb.Object:
        """What a container's entrypoint must know of an object that its function refers to."""
        if object_id in self._state.functions:
            metadata = handle_metadata(self._state.functions[object_id])
            return pb.Object(object_id=object_id, function_handle_metadata=metadata)
        if object_id in self._state.volumes:
            volume = self._state.volumes[object_id]
            version = pb.VolumeFsVersion.ValueType(volume.version)
            volume_metadata = pb.VolumeMetadata(version=version, name=volume.name)
            return pb.Object(object_id=object_id, volume_metadata=volume_metadata)
        if object_id in self._state.mounts:
            return pb.Object(object_id=object_id, mount_handle_metadata=pb.MountHandleMetadata())
        return pb.Object(object_id=object_id)

    async def _commit_at_intervals(self, container: ContainerRecord) -> None:
        while True:
            interval = self._state.settings.background_commit_interval
            await asyncio.sleep(interval or 0.1)
            if interval is None:
                continue
            for attachment in self._volumes.attached(container):
                if attachment.background_commits:
                    await self._volumes.commit(container, attachment.volume.volume_id, background=True)

    def _log(self, container: ContainerRecord, descriptor: int, text: str) -> None:
        call_id, input_id = self._current_input(container)
        self._state.logs.append(
            LogRecord(
                app_id=container.app_id,
                function_id=container.function_id,
                container_id=container.container_id,
                call_id=call_id,
                input_id=input_id,
                file_descriptor=pb.FILE_DESCRIPTOR_STDOUT if descriptor == 1 else pb.FILE_DESCRIPTOR_STDERR,
                time=time.time(),
                text=text,
            )
        )
        self._state.changes.notify()
