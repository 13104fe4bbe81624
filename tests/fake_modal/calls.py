"""Calls of functions, as clients make them."""

import time
from collections.abc import Iterable

from google.protobuf.empty_pb2 import Empty
from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.fake_modal.records import CallRecord, InputRecord
from tests.fake_modal.rpc import Caller, rpc
from tests.fake_modal.scheduler import Scheduler
from tests.fake_modal.state import State


class Calls:
    """Function calls from the client's side."""

    def __init__(self, state: State, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    def _find(self, call_id: str) -> CallRecord:
        if call_id not in self._state.calls:
            raise GRPCError(Status.NOT_FOUND, f"Function call {call_id} not found")
        return self._state.calls[call_id]

    def _put(
        self, call: CallRecord, items: Iterable[pb.FunctionPutInputsItem]
    ) -> list[pb.FunctionPutInputsResponseItem]:
        responses = []
        for item in items:
            record = InputRecord(
                input_id=self._state.new_id("in"),
                call_id=call.call_id,
                function_id=call.function_id,
                index=item.idx,
                payload=item.input,
            )
            self._state.inputs[record.input_id] = record
            call.inputs.append(record)
            self._scheduler.enqueue(record)
            # The token of the input is opaque to the client.
            responses.append(
                pb.FunctionPutInputsResponseItem(idx=item.idx, input_id=record.input_id, input_jwt=record.input_id)
            )
        return responses

    @rpc("FunctionMap")
    async def create(self, request: pb.FunctionMapRequest, caller: Caller) -> pb.FunctionMapResponse:
        function = self._state.functions[request.function_id]
        if self._state.apps[function.app_id].stopped:
            raise GRPCError(Status.NOT_FOUND, f"App {function.app_id} is stopped")
        call = CallRecord(
            call_id=self._state.new_id("fc"),
            function_id=function.function_id,
            app_id=function.app_id,
            synchronous=request.function_call_invocation_type == pb.FUNCTION_CALL_INVOCATION_TYPE_SYNC,
            parent_input_id=request.parent_input_id,
        )
        self._state.calls[call.call_id] = call
        policy = pb.FunctionRetryPolicy()
        policy.CopyFrom(function.definition.retry_policy)
        policy.initial_delay_ms = round(policy.initial_delay_ms * self._state.settings.retry_delay_scale)
        return pb.FunctionMapResponse(
            function_call_id=call.call_id,
            function_call_jwt=call.call_id,
            pipelined_inputs=self._put(call, request.pipelined_inputs),
            retry_policy=policy,
            sync_client_retries_enabled=True,
            max_inputs_outstanding=1000,
        )

    @rpc("FunctionPutInputs")
    async def put_inputs(self, request: pb.FunctionPutInputsRequest, caller: Caller) -> pb.FunctionPutInputsResponse:
        return pb.FunctionPutInputsResponse(inputs=self._put(self._find(request.function_call_id), request.inputs))

    @rpc("FunctionRetryInputs")
    async def retry_inputs(
        self, request: pb.FunctionRetryInputsRequest, caller: Caller
    ) -> pb.FunctionRetryInputsResponse:
        """The client retries a synchronous call after its own delay."""
        for item in request.inputs:
            self._scheduler.retry(self._state.inputs[item.input_jwt], retry_count=item.retry_count)
        return pb.FunctionRetryInputsResponse(input_jwts=[item.input_jwt for item in request.inputs])

    @rpc("FunctionFinishInputs")
    async def finish_inputs(self, request: pb.FunctionFinishInputsRequest, caller: Caller) -> Empty:
        return Empty()

    @rpc("FunctionGetOutputs")
    async def get_outputs(self, request: pb.FunctionGetOutputsRequest, caller: Caller) -> pb.FunctionGetOutputsResponse:
        """By index, the final outputs; otherwise those that came after the last one seen, failed attempts included."""
        call = self._find(request.function_call_id)
        deadline = time.monotonic() + request.timeout
        seen = int((request.last_entry_id or "0-0").partition("-")[0])
        while True:
            if request.HasField("start_idx"):
                wanted = [i.output for i in call.inputs if request.start_idx <= i.index <= request.end_idx]
                outputs = [output for output in wanted if output is not None]
            else:
                outputs = call.outputs[seen:]
            left = deadline - time.monotonic()
            if outputs or left <= 0:
                break
            await self._state.changes.wait(left)
        return pb.FunctionGetOutputsResponse(
            outputs=outputs, last_entry_id=f"{len(call.outputs)}-0", num_unfinished_inputs=call.unfinished
        )

    @rpc("FunctionCallCancel")
    async def cancel(self, request: pb.FunctionCallCancelRequest, caller: Caller) -> Empty:
        for record in self._find(request.function_call_id).inputs:
            self._scheduler.cancel(record, terminate_container=request.terminate_containers)
        return Empty()

    @rpc("FunctionCallFromId")
    async def get_call(self, request: pb.FunctionCallFromIdRequest, caller: Caller) -> pb.FunctionCallFromIdResponse:
        call = self._find(request.function_call_id)
        metadata = pb.FunctionCallHandleMetadata(app_id=call.app_id, function_id=call.function_id)
        return pb.FunctionCallFromIdResponse(
            function_call_id=call.call_id, num_inputs=len(call.inputs), metadata=metadata
        )

    @rpc("FunctionCallGetInfo")
    async def get_info(self, request: pb.FunctionCallGetInfoRequest, caller: Caller) -> pb.FunctionCallGetInfoResponse:
        call = self._find(request.function_call_id)

        def count(*statuses: str) -> pb.InputCategoryInfo:
            return pb.InputCategoryInfo(total=sum(record.status in statuses for record in call.inputs))

        return pb.FunctionCallGetInfoResponse(
            info=pb.FunctionCallInfo(
                function_call_id=call.call_id,
                created_at=call.created_at,
                total_inputs=len(call.inputs),
                pending_inputs=count("UNSPECIFIED"),
                succeeded_inputs=count("SUCCESS"),
                failed_inputs=count("FAILURE", "INIT_FAILURE", "INTERNAL_FAILURE"),
                timeout_inputs=count("TIMEOUT"),
                cancelled_inputs=count("TERMINATED"),
            )
        )

    @rpc("FunctionGetCallGraph")
    async def get_graph(
        self, request: pb.FunctionGetCallGraphRequest, caller: Caller
    ) -> pb.FunctionGetCallGraphResponse:
        """The calls below the one at the top of the call that is asked for."""
        top = self._find(request.function_call_id)
        while top.parent_input_id:
            top = self._state.calls[self._state.inputs[top.parent_input_id].call_id]
        calls = [top]
        for call in calls:  # grows meanwhile
            own = {record.input_id for record in call.inputs}
            calls += [c for c in self._state.calls.values() if c.parent_input_id in own]
        return pb.FunctionGetCallGraphResponse(
            inputs=[
                pb.InputCallGraphInfo(
                    input_id=record.input_id,
                    status=pb.GenericResult.GenericStatus.Value(f"GENERIC_STATUS_{record.status}"),
                    function_call_id=call.call_id,
                    task_id=record.container_ids[-1] if record.container_ids else "",
                )
                for call in calls
                for record in call.inputs
            ],
            function_calls=[
                pb.FunctionCallCallGraphInfo(
                    function_call_id=call.call_id,
                    parent_input_id=call.parent_input_id,
                    function_name=self._state.functions[call.function_id].name,
                    module_name=self._state.functions[call.function_id].module,
                )
                for call in calls
            ],
        )
