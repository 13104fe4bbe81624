"""Which container works on which input, and what becomes of the input when it is done, fails, or is lost."""

import asyncio
import collections
import time

from modal_proto import api_pb2 as pb

from tests.fake_modal.containers import EXIT_GRACE, Containers
from tests.fake_modal.records import ContainerRecord, ContainerState, FunctionRecord, InputRecord
from tests.fake_modal.state import State

Result = pb.GenericResult
FINAL = (Result.GENERIC_STATUS_SUCCESS, Result.GENERIC_STATUS_TERMINATED)
"""Never retried; the same as TERMINAL_STATUSES of modal._functions."""


class Scheduler:
    """Queues of inputs, one a function; starts containers as Modal's autoscaler would, without keeping any warm."""

    def __init__(self, state: State, containers: Containers) -> None:
        self._state = state
        self._containers = containers
        self._queues: collections.defaultdict[str, collections.deque[InputRecord]]
        self._queues = collections.defaultdict(collections.deque)
        self._working: dict[str, InputRecord] = {}
        self._cancellations: collections.defaultdict[str, list[str]] = collections.defaultdict(list)
        self._failed_starts: collections.Counter[str] = collections.Counter()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        containers.connect(on_exit=self._container_exited, current_input=self._current_input)

    def _current_input(self, container: ContainerRecord) -> tuple[str, str]:
        record = self._working.get(container.container_id)
        return (record.call_id, record.input_id) if record is not None else ("", "")

    # Inputs on their way to a container

    def enqueue(self, record: InputRecord, *, first: bool = False) -> None:
        if self._stopped(record):
            self._finish(record, Result(status=Result.GENERIC_STATUS_TERMINATED, exception="the app was stopped"))
            return
        queue = self._queues[record.function_id]
        if first:
            queue.appendleft(record)
        else:
            queue.append(record)
        self._scale_up(self._state.functions[record.function_id])
        self._state.changes.notify()

    def _stopped(self, record: InputRecord) -> bool:
        return self._state.apps[self._state.functions[record.function_id].app_id].stopped

    def _scale_up(self, function: FunctionRecord) -> None:
        containers = [c for c in self._state.containers.values() if c.function_id == function.function_id and c.alive]
        free = sum(c.state in (ContainerState.STARTING, ContainerState.IDLE) for c in containers)
        local = self._state.settings.containers_per_function
        limit = min(function.max_containers or local, local)
        wanted = min(limit - len(containers), len(self._queues[function.function_id]) - free)
        for _ in range(wanted):
            self._containers.start(function)

    async def next_input(self, container: ContainerRecord) -> InputRecord | None:
        """The next input for a container, or None if it shall exit."""
        function = self._state.functions[container.function_id]
        idle = min(function.scaledown_window_seconds or 60, self._state.settings.idle_seconds)
        deadline = time.monotonic() + idle
        if container.state is ContainerState.STARTING:
            container.state = ContainerState.IDLE
            self._failed_starts[container.function_id] = 0
        while container.state is ContainerState.IDLE:
            queue = self._queues[container.function_id]
            if queue:
                return self._deliver(queue.popleft(), container)
            if time.monotonic() >= deadline:
                break
            await self._state.changes.wait(deadline - time.monotonic())
        if container.alive:
            container.state = ContainerState.EXITING
        return None

    def _deliver(self, record: InputRecord, container: ContainerRecord) -> InputRecord:
        container.state = ContainerState.BUSY
        container.input_ids.append(record.input_id)
        record.container_ids.append(container.container_id)
        record.started_at, record.timed_out = time.time(), False
        self._working[container.container_id] = record
        timeout = self._state.functions[record.function_id].timeout_seconds * self._state.settings.timeout_scale
        if timeout:
            loop = asyncio.get_running_loop()
            self._timers[record.input_id] = loop.call_later(timeout, self._time_out, record, container)
        return record

    # Inputs taken back

    def _time_out(self, record: InputRecord, container: ContainerRecord) -> None:
        """Each attempt has the whole timeout. The container learns of it like of a cancellation."""
        record.timed_out = True
        self._interrupt_input(record, container)

    def cancel(self, record: InputRecord, *, terminate_container: bool) -> None:
        if record.output is not None:
            return
        record.cancelled = True
        container = next((self._state.containers[c] for c, r in self._working.items() if r is record), None)
        if container is None:
            queue = self._queues[record.function_id]
            if record in queue:
                queue.remove(record)
            self._finish(record, Result(status=Result.GENERIC_STATUS_TERMINATED))
        elif terminate_container:
            self._containers.kill(container)
        else:
            self._interrupt_input(record, container)

    def _interrupt_input(self, record: InputRecord, container: ContainerRecord) -> None:
        """Ask the container, through its heartbeat, to raise InputCancellation; kill it if that is of no use."""
        self._cancellations[container.container_id].append(record.input_id)
        self._state.changes.notify()
        grace, deliveries = self._state.settings.cancellation_grace, len(record.container_ids)
        asyncio.get_running_loop().call_later(grace, self._kill_if_still_working, record, container, deliveries)

    def _kill_if_still_working(self, record: InputRecord, container: ContainerRecord, deliveries: int) -> None:
        if self._working.get(container.container_id) is record and len(record.container_ids) == deliveries:
            self._containers.kill(container)

    def take_cancellations(self, container: ContainerRecord) -> list[str]:
        return self._cancellations.pop(container.container_id, [])

    # Outcomes

    def put_output(self, container: ContainerRecord, item: pb.FunctionPutOutputsItem) -> None:
        record = self._working.get(container.container_id)
        if record is None or record.input_id != item.input_id or record.retry_count != item.retry_count:
            return  # a repeated or outdated report
        self._release(container)
        if container.state is ContainerState.BUSY:
            leaves = container.draining or self._state.functions[container.function_id].single_use_containers
            container.state = ContainerState.EXITING if leaves else ContainerState.IDLE
        self._settle(record, item.result, item.data_format, item.output_created_at)
        self._state.changes.notify()

    def _release(self, container: ContainerRecord) -> InputRecord | None:
        self._cancellations.pop(container.container_id, None)
        record = self._working.pop(container.container_id, None)
        if record is not None and record.input_id in self._timers:
            self._timers.pop(record.input_id).cancel()
        return record

    def _settle(
        self,
        record: InputRecord,
        result: pb.GenericResult,
        data_format: "pb.DataFormat.ValueType" = pb.DATA_FORMAT_UNSPECIFIED,
        created_at: float = 0.0,
    ) -> None:
        """An attempt is over: hand out its result, or try again."""
        function = self._state.functions[record.function_id]
        if record.cancelled:
            result = Result(status=Result.GENERIC_STATUS_TERMINATED)
        elif record.timed_out:
            # Even if the function caught the cancellation and returned: its time was up.
            message = f"Task's current input {record.input_id} hit its timeout of {function.timeout_seconds}s"
            result = Result(status=Result.GENERIC_STATUS_TIMEOUT, exception=message)
        policy = function.retry_policy
        tries_again = (
            result.status not in FINAL
            and policy is not None
            and record.retry_count < policy.max_retries
            and not self._state.calls[record.call_id].synchronous  # those the client retries
            and not self._stopped(record)
        )
        if not tries_again:
            self._finish(record, result, data_format, created_at)
            return
        assert policy is not None
        delay = policy.delay(record.retry_count + 1) * self._state.settings.retry_delay_scale
        self.retry(record, delay=delay)

    def retry(self, record: InputRecord, *, delay: float = 0.0, retry_count: int = 0) -> None:
        """Begin the next attempt after a delay (s)."""
        if record.cancelled:
            return
        record.retry_count = retry_count or record.retry_count + 1
        record.losses, record.timed_out, record.output = 0, False, None
        asyncio.get_running_loop().call_later(delay, self._begin_retry, record)

    def _begin_retry(self, record: InputRecord) -> None:
        if record.output is None:
            self.enqueue(record)

    def _finish(
        self,
        record: InputRecord,
        result: pb.GenericResult,
        data_format: "pb.DataFormat.ValueType" = pb.DATA_FORMAT_UNSPECIFIED,
        created_at: float = 0.0,
    ) -> None:
        record.output = pb.FunctionGetOutputsItem(
            input_id=record.input_id,
            idx=record.index,
            result=result,
            data_format=data_format,
            retry_count=record.retry_count,
            input_started_at=record.started_at,
            output_created_at=created_at or time.time(),
            task_id=record.container_ids[-1] if record.container_ids else "",
        )
        self._state.calls[record.call_id].outputs.append(record.output)
        self._state.changes.notify()

    # Containers

    def start_failed(self, container: ContainerRecord, result: pb.GenericResult) -> None:
        """A container reports that the function could not be imported or its lifecycle methods failed."""
        container.state = ContainerState.EXITING
        self._count_failed_start(container, result)

    def _count_failed_start(self, container: ContainerRecord, result: pb.GenericResult) -> None:
        """Past the limit, the inputs that wait fail with the last reason."""
        self._failed_starts[container.function_id] += 1
        if self._failed_starts[container.function_id] < self._state.settings.failed_start_limit:
            return
        self._failed_starts[container.function_id] = 0
        queue = self._queues[container.function_id]
        while queue:
            self._finish(queue.popleft(), result)

    def preempt(self, container: ContainerRecord, grace: float) -> None:
        container.preempted = True
        self._drain(container)
        self._containers.interrupt(container, grace)

    def _drain(self, container: ContainerRecord) -> None:
        container.draining = True
        if container.state is ContainerState.IDLE:
            container.state = ContainerState.EXITING
        self._state.changes.notify()

    def stop_container(self, container: ContainerRecord, *, graceful: bool) -> None:
        """``modal container stop``: its input is delivered again elsewhere; gracefully, it is finished first."""
        if graceful or container.state is ContainerState.IDLE:
            self._drain(container)
        else:
            self.preempt(container, EXIT_GRACE)

    def stop_app(self, app_id: str) -> None:
        """Kill busy containers at once, the harshest reading of what Modal says; idle ones may still commit."""
        for function in [f for f in self._state.functions.values() if f.app_id == app_id]:
            while self._queues[function.function_id]:
                self.enqueue(self._queues[function.function_id].popleft())
        for container in [c for c in self._state.containers.values() if c.app_id == app_id and c.alive]:
            if container.state in (ContainerState.BUSY, ContainerState.STARTING):
                self._containers.kill(container)
            else:
                container.state = ContainerState.EXITING
                self._containers.kill_after(container, EXIT_GRACE)

    def _container_exited(self, container: ContainerRecord) -> None:
        record = self._release(container)
        if record is not None:
            self._container_lost(record, container)
        elif not container.input_ids and container.exit_code != 0 and not container.draining:
            message = f"Container exited with code {container.exit_code} before it took an input"
            self._count_failed_start(container, Result(status=Result.GENERIC_STATUS_INIT_FAILURE, exception=message))
        if not self._state.apps[container.app_id].stopped:
            self._scale_up(self._state.functions[container.function_id])

    def _container_lost(self, record: InputRecord, container: ContainerRecord) -> None:
        """The container died with the input: the same attempt is delivered again, up to a limit."""
        record.losses += not container.preempted
        if record.cancelled or record.timed_out:
            self._settle(record, Result())
        elif record.losses >= self._state.settings.loss_limit:
            # Of synchronous calls the client would retry an internal failure without end (_Invocation.run_function).
            synchronous = self._state.calls[record.call_id].synchronous
            status = Result.GENERIC_STATUS_FAILURE if synchronous else Result.GENERIC_STATUS_INTERNAL_FAILURE
            message = f"Container exited with code {container.exit_code}; gave up after {record.losses} containers"
            self._finish(record, Result(status=status, exception=message))
        else:
            self.enqueue(record, first=True)
