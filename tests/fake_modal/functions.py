"""Definitions of functions."""

import math

from grpclib import GRPCError, Status
from modal_proto import api_pb2 as pb

from tests.fake_modal.apps import Apps
from tests.fake_modal.records import ContainerState, FunctionRecord, RetryPolicy
from tests.fake_modal.rpc import Caller, rpc
from tests.fake_modal.state import State

GPU_TYPES = (
    *("T4", "L4", "A10", "A10G", "L40S", "A100", "A100-40GB", "A100-80GB", "RTX-PRO-6000"),
    *("H100", "H100!", "H200", "B200", "B200+", "B300", "ANY"),
)
"""Those of modal.com/docs/guide/gpu. The client does not check them, so whoever errs learns it from the server."""


def gpu_name(gpu: pb.GPUConfig) -> str:
    return gpu.gpu_type if gpu.count == 1 else f"{gpu.gpu_type}:{gpu.count}"


def image_gpus(gpu: pb.GPUConfig) -> tuple[str, ...]:
    return (gpu_name(gpu),) if gpu.count else ()


def handle_metadata(function: FunctionRecord) -> pb.FunctionHandleMetadata:
    definition = function.definition
    return pb.FunctionHandleMetadata(
        function_name=definition.function_name,
        function_type=definition.function_type,
        function_schema=definition.function_schema,
        definition_id=f"de-{function.function_id}",
        app_id=function.app_id,
        supported_input_formats=definition.supported_input_formats,
        supported_output_formats=definition.supported_output_formats,
    )


def describe(function_id: str, app_id: str, definition: pb.Function, data: pb.FunctionData) -> FunctionRecord:
    """Record a definition; with a list of GPUs, ``data`` holds one definition for each."""
    ranked = [r.function for r in data.ranked_functions] or [definition]
    gpus = [f.resources.gpu_config for f in ranked if f.resources.gpu_config.count]
    scaling, placement, policy = (
        definition.autoscaler_settings,
        definition.scheduler_placement,
        definition.retry_policy,
    )
    return FunctionRecord(
        function_id=function_id,
        app_id=app_id,
        name=definition.function_name,
        module=definition.module_name,
        gpus=tuple(map(gpu_name, gpus)),
        cpu=definition.resources.milli_cpu / 1000,
        memory_mib=definition.resources.memory_mb,
        timeout_seconds=definition.timeout_secs,
        startup_timeout_seconds=definition.startup_timeout_secs,
        retry_policy=RetryPolicy(
            max_retries=policy.retries,
            backoff_coefficient=policy.backoff_coefficient,
            initial_delay_seconds=policy.initial_delay_ms / 1000,
            max_delay_seconds=policy.max_delay_ms / 1000 or math.inf,
        )
        if definition.HasField("retry_policy")
        else None,
        volumes={mount.mount_path: mount.volume_id for mount in definition.volume_mounts},
        secret_ids=tuple(definition.secret_ids),
        image_id=definition.image_id,
        mount_ids=tuple(definition.mount_ids),
        min_containers=scaling.min_containers,
        max_containers=scaling.max_containers,
        scaledown_window_seconds=scaling.scaledown_window,
        single_use_containers=definition.single_use_containers,
        memory_snapshot=definition.checkpointing_enabled,
        cloud=definition.cloud_provider_str,
        regions=tuple(placement.regions),
        nonpreemptible=placement.nonpreemptible,
        definition=definition,
        data=data,
    )


class Functions:
    """Definitions of functions and how to find them."""

    def __init__(self, state: State, apps: Apps) -> None:
        self._state = state
        self._apps = apps

    def _find(self, function_id: str) -> FunctionRecord:
        if function_id not in self._state.functions:
            raise GRPCError(Status.NOT_FOUND, f"Function {function_id} not found")
        return self._state.functions[function_id]

    @rpc("FunctionPrecreate")
    async def precreate(self, request: pb.FunctionPrecreateRequest, caller: Caller) -> pb.FunctionPrecreateResponse:
        """Give a function its id, so that others can refer to it before it is created."""
        definition = pb.Function(
            function_name=request.function_name,
            function_type=request.function_type,
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
        )
        function_id = request.existing_function_id or self._state.new_id("fu")
        metadata = handle_metadata(describe(function_id, request.app_id, definition, pb.FunctionData()))
        return pb.FunctionPrecreateResponse(function_id=function_id, handle_metadata=metadata)

    @rpc("FunctionCreate")
    async def create(self, request: pb.FunctionCreateRequest, caller: Caller) -> pb.FunctionCreateResponse:
        data = request.function_data
        definition = data.ranked_functions[0].function if data.ranked_functions else request.function
        function = describe(request.existing_function_id or self._state.new_id("fu"), request.app_id, definition, data)
        for gpu in function.gpus:
            if gpu.partition(":")[0] not in GPU_TYPES:
                raise GRPCError(Status.INVALID_ARGUMENT, f"Unknown GPU type {gpu!r}")
        if function.gpus and function.nonpreemptible:
            raise GRPCError(Status.INVALID_ARGUMENT, "Functions with a GPU cannot be nonpreemptible")
        if not data.ranked_functions:
            data.CopyFrom(self._data(definition))
        self._state.functions[function.function_id] = function
        return pb.FunctionCreateResponse(
            function_id=function.function_id,
            function=definition,
            function_data=data,
            handle_metadata=handle_metadata(function),
        )

    def _data(self, definition: pb.Function) -> pb.FunctionData:
        """What the client reads of a function with one definition (modal.types.FunctionInfo)."""
        return pb.FunctionData(
            ranked_functions=[pb.FunctionData.RankedFunction(rank=0, function=definition)],
            module_name=definition.module_name,
            function_name=definition.function_name,
            function_type=definition.function_type,
            function_schema=definition.function_schema,
            autoscaler_settings=definition.autoscaler_settings,
            timeout_secs=definition.timeout_secs,
            startup_timeout_secs=definition.startup_timeout_secs,
            supported_input_formats=definition.supported_input_formats,
            supported_output_formats=definition.supported_output_formats,
        )

    @rpc("FunctionGet")
    async def get(self, request: pb.FunctionGetRequest, caller: Caller) -> pb.FunctionGetResponse:
        app = self._apps.deployed(request.app_name)
        if app is None:
            raise GRPCError(Status.NOT_FOUND, f"App '{request.app_name}' not found in environment 'main'")
        if request.object_tag not in app.function_ids:
            raise GRPCError(Status.NOT_FOUND, f"App has no function named '{request.object_tag}'")
        function = self._find(app.function_ids[request.object_tag])
        return pb.FunctionGetResponse(
            function_id=function.function_id, handle_metadata=handle_metadata(function), function=function.data
        )

    @rpc("FunctionGetById")
    async def get_by_id(self, request: pb.FunctionGetByIdRequest, caller: Caller) -> pb.FunctionGetByIdResponse:
        function = self._find(request.function_id)
        return pb.FunctionGetByIdResponse(function=function.data, handle_metadata=handle_metadata(function))

    @rpc("FunctionGetCurrentStats")
    async def get_stats(self, request: pb.FunctionGetCurrentStatsRequest, caller: Caller) -> pb.FunctionStats:
        function = self._find(request.function_id)
        containers = [c for c in self._state.containers.values() if c.function_id == function.function_id and c.alive]
        busy = sum(c.state is ContainerState.BUSY for c in containers)
        unfinished = sum(
            i.function_id == function.function_id and i.output is None for i in self._state.inputs.values()
        )
        return pb.FunctionStats(backlog=unfinished - busy, num_total_tasks=len(containers), num_running_inputs=busy)

    @rpc("FunctionUpdateSchedulingParams")
    async def update_scaling(
        self, request: pb.FunctionUpdateSchedulingParamsRequest, caller: Caller
    ) -> pb.FunctionUpdateSchedulingParamsResponse:
        function = self._find(request.function_id)
        current = function.definition.autoscaler_settings
        current.MergeFrom(request.settings)
        function.min_containers, function.max_containers = current.min_containers, current.max_containers
        function.scaledown_window_seconds = current.scaledown_window
        return pb.FunctionUpdateSchedulingParamsResponse(current_settings=current)
