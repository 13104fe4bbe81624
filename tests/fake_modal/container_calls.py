"""Requests of containers."""

import time

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.fake_modal.records import ContainerState, TunnelRecord
from tests.fake_modal.rpc import Caller, rpc
from tests.fake_modal.scheduler import Scheduler
from tests.fake_modal.state import State

HEARTBEAT_HOLD = 14.0
"""Seconds that a container's heartbeat waits for a cancellation; the client gives up after 15.1 s and then sleeps for
the rest of 15 s, in which cancellations would wait."""


class ContainerCalls:
    """What the entrypoint in a container asks and reports (modal._runtime.container_io_manager)."""

    def __init__(self, state: State, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    @rpc("ContainerHello")
    async def hello(self, request: Empty, caller: Caller) -> Empty:
        return Empty()

    @rpc("ContainerHeartbeat")
    async def heartbeat(self, request: pb.ContainerHeartbeatRequest, caller: Caller) -> pb.ContainerHeartbeatResponse:
        """Cancellations and timeouts travel in its response; the entrypoint raises InputCancellation for them."""
        container = caller.in_container()
        deadline = time.monotonic() + HEARTBEAT_HOLD
        while container.alive and (left := deadline - time.monotonic()) > 0:
            if input_ids := self._scheduler.take_cancellations(container):
                return pb.ContainerHeartbeatResponse(cancel_input_event=pb.CancelInputEvent(input_ids=input_ids))
            await self._state.changes.wait(left)
        return pb.ContainerHeartbeatResponse()

    @rpc("FunctionGetInputs")
    async def get_inputs(self, request: pb.FunctionGetInputsRequest, caller: Caller) -> pb.FunctionGetInputsResponse:
        record = await self._scheduler.next_input(caller.in_container())
        if record is None:
            return pb.FunctionGetInputsResponse(inputs=[pb.FunctionGetInputsItem(kill_switch=True)])
        synchronous = self._state.calls[record.call_id].synchronous
        item = pb.FunctionGetInputsItem(
            input_id=record.input_id,
            input=record.payload,
            function_call_id=record.call_id,
            function_call_invocation_type=pb.FUNCTION_CALL_INVOCATION_TYPE_SYNC
            if synchronous
            else pb.FUNCTION_CALL_INVOCATION_TYPE_ASYNC,
            retry_count=record.retry_count,
        )
        return pb.FunctionGetInputsResponse(inputs=[item])

    @rpc("FunctionPutOutputs")
    async def put_outputs(self, request: pb.FunctionPutOutputsRequest, caller: Caller) -> Empty:
        for item in request.outputs:
            self._scheduler.put_output(caller.in_container(), item)
        return Empty()

    @rpc("TaskResult")
    async def start_failed(self, request: pb.TaskResultRequest, caller: Caller) -> Empty:
        self._scheduler.start_failed(caller.in_container(), request.result)
        return Empty()

    @rpc("ContainerStop")
    async def stop(self, request: pb.ContainerStopRequest, caller: Caller) -> pb.ContainerStopResponse:
        if request.task_id not in self._state.containers:
            raise GRPCError(Status.NOT_FOUND, f"Container {request.task_id} not found")
        self._scheduler.stop_container(self._state.containers[request.task_id], graceful=request.graceful)
        return pb.ContainerStopResponse()

    @rpc("TaskGetInfo")
    async def get_info(self, request: pb.TaskGetInfoRequest, caller: Caller) -> pb.TaskGetInfoResponse:
        if request.task_id not in self._state.containers:
            raise GRPCError(Status.NOT_FOUND, f"Container {request.task_id} not found")
        container = self._state.containers[request.task_id]
        started = 0.0 if container.state is ContainerState.STARTING else container.enqueued_at
        info = pb.TaskInfo(
            id=container.container_id,
            enqueued_at=container.enqueued_at,
            started_at=started,
            finished_at=container.finished_at,
        )
        return pb.TaskGetInfoResponse(app_id=container.app_id, info=info)

    @rpc("TunnelStart")
    async def start_tunnel(self, request: pb.TunnelStartRequest, caller: Caller) -> pb.TunnelStartResponse:
        """Containers share this machine's network, so the tunnel leads to the port itself, without TLS."""
        container_id = caller.in_container().container_id
        self._state.tunnels.append(
            TunnelRecord(container_id=container_id, port=request.port, unencrypted=request.unencrypted)
        )
        response = pb.TunnelStartResponse(host="127.0.0.1", port=request.port)
        if request.unencrypted:
            response.unencrypted_host, response.unencrypted_port = "127.0.0.1", request.port
        return response

    @rpc("TunnelStop")
    async def stop_tunnel(self, request: pb.TunnelStopRequest, caller: Caller) -> pb.TunnelStopResponse:
        return pb.TunnelStopResponse(exists=True)
