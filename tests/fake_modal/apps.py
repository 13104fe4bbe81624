"""Apps: ephemeral, detached and deployed."""

import asyncio
import time
from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.fake_modal.records import AppRecord, ContainerState
from tests.fake_modal.rpc import Caller, rpc
from tests.fake_modal.state import State

ENVIRONMENT = "main"
IMAGE_BUILDER_VERSION = "2025.06"


def state_name(state: int) -> str:
    return pb.AppState.Name(pb.AppState.ValueType(state)).removeprefix("APP_STATE_")


class Apps:
    """The life of apps; what stopping one does to its containers is up to ``on_stop``."""

    def __init__(self, state: State, on_stop: Callable[[str], None]) -> None:
        self._state = state
        self._on_stop = on_stop

    def stop(self, app: AppRecord) -> None:
        if app.stopped:
            return
        app.state, app.stopped_at = "STOPPED", time.time()
        self._on_stop(app.app_id)
        self._state.changes.notify()

    async def watch_clients(self) -> None:
        """Stop ephemeral apps whose client is gone without a word."""
        while True:
            timeout = self._state.settings.client_timeout
            for app in self._state.apps.values():
                if app.state == "EPHEMERAL" and time.time() - app.last_heartbeat > timeout:
                    app.disconnect_reason = "heartbeat timeout"
                    self.stop(app)
            await asyncio.sleep(min(1.0, timeout / 4))

    def deployed(self, name: str) -> AppRecord | None:
        return next((a for a in self._state.apps.values() if a.deployment_name == name and a.state == "DEPLOYED"), None)

    def _find(self, app_id: str) -> AppRecord:
        if app_id not in self._state.apps:
            raise GRPCError(Status.NOT_FOUND, f"App {app_id} not found")
        return self._state.apps[app_id]

    def _lifecycle(self, app: AppRecord) -> pb.AppLifecycle:
        return pb.AppLifecycle(
            app_state=pb.AppState.Value(f"APP_STATE_{app.state}"),
            created_at=app.created_at,
            deployed_at=app.deployed_at,
            stopped_at=app.stopped_at,
            version=app.version,
        )

    def _running_containers(self, app: AppRecord) -> int:
        return sum(c.app_id == app.app_id and c.alive for c in self._state.containers.values())

    @rpc("ClientHello")
    async def hello(self, request: Empty, caller: Caller) -> pb.ClientHelloResponse:
        return pb.ClientHelloResponse()

    @rpc("EnvironmentGetOrCreate")
    async def get_environment(
        self, request: pb.EnvironmentGetOrCreateRequest, caller: Caller
    ) -> pb.EnvironmentGetOrCreateResponse:
        settings = pb.EnvironmentSettings(image_builder_version=IMAGE_BUILDER_VERSION)
        metadata = pb.EnvironmentMetadata(name=request.deployment_name or ENVIRONMENT, settings=settings)
        return pb.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    @rpc("AppCreate")
    async def create(self, request: pb.AppCreateRequest, caller: Caller) -> pb.AppCreateResponse:
        app = AppRecord(
            app_id=self._state.new_id("ap"),
            description=request.description,
            state=state_name(request.app_state),
            tags=dict(request.tags),
        )
        self._state.apps[app.app_id] = app
        return pb.AppCreateResponse(app_id=app.app_id, app_page_url=f"{self._state.http_url}/apps/{app.app_id}")

    @rpc("AppGetOrCreate")
    async def get_or_create(self, request: pb.AppGetOrCreateRequest, caller: Caller) -> pb.AppGetOrCreateResponse:
        app = self.deployed(request.app_name)
        if app is None:
            if request.object_creation_type != pb.OBJECT_CREATION_TYPE_CREATE_IF_MISSING:
                raise GRPCError(Status.NOT_FOUND, f"App {request.app_name!r} not found")
            app = AppRecord(app_id=self._state.new_id("ap"), description=request.app_name, state="DEPLOYED", tags={})
            app.deployment_name = request.app_name
            self._state.apps[app.app_id] = app
        return pb.AppGetOrCreateResponse(app_id=app.app_id, handle_metadata=self._metadata(app))

    def _metadata(self, app: AppRecord) -> pb.AppHandleMetadata:
        return pb.AppHandleMetadata(
            description=app.description,
            app_id=app.app_id,
            environment_name=ENVIRONMENT,
            lifecycle=self._lifecycle(app),
            functions=app.function_ids,
        )

    @rpc("AppGetInfo")
    async def get_info(self, request: pb.AppGetInfoRequest, caller: Caller) -> pb.AppGetInfoResponse:
        return pb.AppGetInfoResponse(info=self._metadata(self._find(request.app_id)))

    @rpc("AppHeartbeat")
    async def heartbeat(self, request: pb.AppHeartbeatRequest, caller: Caller) -> Empty:
        self._find(request.app_id).last_heartbeat = time.time()
        return Empty()

    @rpc("AppPublish")
    async def publish(self, request: pb.AppPublishRequest, caller: Caller) -> pb.AppPublishResponse:
        app = self._find(request.app_id)
        if request.app_state != pb.APP_STATE_UNSPECIFIED:
            app.state = state_name(request.app_state)
        app.function_ids = dict(request.function_ids)
        app.tags.update(request.tags)
        if app.state == "DEPLOYED":
            app.deployment_name = request.name
            app.version += 1
            app.deployed_at = time.time()
        self._state.changes.notify()
        return pb.AppPublishResponse(url=f"{self._state.http_url}/apps/{app.app_id}", deployed_at=time.time())

    @rpc("AppClientDisconnect")
    async def disconnect(self, request: pb.AppClientDisconnectRequest, caller: Caller) -> Empty:
        """Stops an app unless it is deployed or detached, as modal.runner says of this RPC."""
        app = self._find(request.app_id)
        app.disconnect_reason = pb.AppDisconnectReason.Name(request.reason).removeprefix("APP_DISCONNECT_REASON_")
        if app.state == "DETACHED":
            app.state = "DETACHED_DISCONNECTED"
        elif app.state in ("EPHEMERAL", "INITIALIZING"):
            self.stop(app)
        return Empty()

    @rpc("AppStop")
    async def stop_by_id(self, request: pb.AppStopRequest, caller: Caller) -> Empty:
        self.stop(self._find(request.app_id))
        return Empty()

    @rpc("AppSetTags")
    async def set_tags(self, request: pb.AppSetTagsRequest, caller: Caller) -> Empty:
        self._find(request.app_id).tags = dict(request.tags)
        return Empty()

    @rpc("AppGetTags")
    async def get_tags(self, request: pb.AppGetTagsRequest, caller: Caller) -> pb.AppGetTagsResponse:
        return pb.AppGetTagsResponse(tags=self._find(request.app_id).tags)

    @rpc("AppList")
    async def list_apps(self, request: pb.AppListRequest, caller: Caller) -> pb.AppListResponse:
        return pb.AppListResponse(
            apps=[
                pb.AppListResponse.AppListItem(
                    app_id=app.app_id,
                    description=app.description,
                    name=app.deployment_name,
                    state=pb.AppState.Value(f"APP_STATE_{app.state}"),
                    created_at=app.created_at,
                    stopped_at=app.stopped_at,
                    n_running_tasks=self._running_containers(app),
                    metadata=self._metadata(app),
                )
                for app in self._state.apps.values()
            ]
        )

    @rpc("AppGetLayout")
    async def get_layout(self, request: pb.AppGetLayoutRequest, caller: Caller) -> pb.AppGetLayoutResponse:
        return pb.AppGetLayoutResponse(app_layout=pb.AppLayout(function_ids=self._find(request.app_id).function_ids))

    @rpc("AppGetLifecycle")
    async def get_lifecycle(self, request: pb.AppGetLifecycleRequest, caller: Caller) -> pb.AppGetLifecycleResponse:
        return pb.AppGetLifecycleResponse(lifecycle=self._lifecycle(self._find(request.app_id)))

    @rpc("AppGetByDeploymentName")
    async def get_by_name(
        self, request: pb.AppGetByDeploymentNameRequest, caller: Caller
    ) -> pb.AppGetByDeploymentNameResponse:
        app = self.deployed(request.name)
        if app is not None:
            return pb.AppGetByDeploymentNameResponse(
                app_id=app.app_id, environment_name=ENVIRONMENT, lifecycle=self._lifecycle(app)
            )
        former = [a for a in self._state.apps.values() if a.deployment_name == request.name]
        if former:
            return pb.AppGetByDeploymentNameResponse(
                previous_app_id=former[-1].app_id, environment_name=ENVIRONMENT, lifecycle=self._lifecycle(former[-1])
            )
        return pb.AppGetByDeploymentNameResponse(environment_name=ENVIRONMENT)

    @rpc("ObjectSuggest")
    async def suggest(self, request: pb.ObjectSuggestRequest, caller: Caller) -> pb.ObjectSuggestResponse:
        """Names like a mistyped one: none."""
        return pb.ObjectSuggestResponse()

    @rpc("TaskList")
    async def list_containers(self, request: pb.TaskListRequest, caller: Caller) -> pb.TaskListResponse:
        return pb.TaskListResponse(
            tasks=[
                pb.TaskStats(
                    task_id=container.container_id,
                    app_id=container.app_id,
                    app_description=self._state.apps[container.app_id].description,
                    enqueued_at=container.enqueued_at,
                    started_at=0.0 if container.state is ContainerState.STARTING else container.enqueued_at,
                )
                for container in self._state.containers.values()
                if container.alive and request.app_id in ("", container.app_id)
            ]
        )
