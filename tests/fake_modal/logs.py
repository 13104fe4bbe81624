"""Logs, as ``modal app logs``, ``modal container logs``, ``modal.enable_output`` and the Python client read them."""

import time
from collections.abc import AsyncIterator
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from modal_proto import api_pb2 as pb

from tests.fake_modal.records import LogRecord
from tests.fake_modal.rpc import Caller, rpc
from tests.fake_modal.state import State


class Filter(Protocol):
    """What the requests for logs have in common."""

    app_id: str
    task_id: str
    function_id: str
    function_call_id: str
    search_text: str


def matches(record: LogRecord, request: Filter, source: int) -> bool:
    return (
        request.app_id in ("", record.app_id)
        and request.task_id in ("", record.container_id)
        and request.function_id in ("", record.function_id)
        and request.function_call_id in ("", record.call_id)
        and source in (pb.FILE_DESCRIPTOR_UNSPECIFIED, record.file_descriptor)
        and request.search_text in record.text
    )


def seconds(stamp: Timestamp) -> float:
    return stamp.seconds + stamp.nanos / 1e9


class Logs:
    """What containers wrote. An entry's id is its number in the order of arrival."""

    def __init__(self, state: State) -> None:
        self._state = state

    def _batch(self, record: LogRecord, entry_id: str) -> pb.TaskLogsBatch:
        item = pb.TaskLogs(
            data=record.text,
            file_descriptor=pb.FileDescriptor.ValueType(record.file_descriptor),
            timestamp=record.time,
            timestamp_ns=int(record.time * 1e9),
            function_call_id=record.call_id,
            input_id=record.input_id,
        )
        return pb.TaskLogsBatch(
            task_id=record.container_id,
            function_id=record.function_id,
            input_id=record.input_id,
            entry_id=entry_id,
            items=[item],
        )

    def _complete(self, request: pb.AppGetLogsRequest) -> bool:
        """Whether no more logs can come."""
        if request.task_id:
            return not self._state.containers[request.task_id].alive
        containers = (c for c in self._state.containers.values() if c.app_id == request.app_id)
        return self._state.apps[request.app_id].stopped and not any(c.alive for c in containers)

    @rpc("AppGetLogs")
    async def stream(self, request: pb.AppGetLogsRequest, caller: Caller) -> AsyncIterator[pb.TaskLogsBatch]:
        deadline = time.monotonic() + request.timeout
        position = int(request.last_entry_id or 0)
        while True:
            complete = self._complete(request)
            while position < len(self._state.logs):
                record = self._state.logs[position]
                position += 1
                if matches(record, request, request.file_descriptor):
                    yield self._batch(record, str(position))
            if complete:
                yield pb.TaskLogsBatch(app_done=True)
                return
            left = deadline - time.monotonic()
            if left <= 0:
                return
            await self._state.changes.wait(left)

    def _between(self, request: pb.AppFetchLogsRequest | pb.AppCountLogsRequest) -> list[tuple[int, LogRecord]]:
        since, until = seconds(request.since), seconds(request.until)
        return [
            (number, record)
            for number, record in enumerate(self._state.logs, start=1)
            if since <= record.time <= until and matches(record, request, request.source)
        ]

    @rpc("AppFetchLogs")
    async def fetch(self, request: pb.AppFetchLogsRequest, caller: Caller) -> pb.AppFetchLogsResponse:
        """The newest entries of a time range, oldest first."""
        found = self._between(request)[-(request.limit or 0) :]
        return pb.AppFetchLogsResponse(batches=[self._batch(record, str(number)) for number, record in found])

    @rpc("AppCountLogs")
    async def count(self, request: pb.AppCountLogsRequest, caller: Caller) -> pb.AppCountLogsResponse:
        buckets: dict[int, pb.AppCountLogsResponse.LogBucket] = {}
        for _, record in self._between(request):
            start = int(record.time // request.bucket_secs) * request.bucket_secs
            bucket = buckets.setdefault(
                start, pb.AppCountLogsResponse.LogBucket(bucket_start_at=Timestamp(seconds=start))
            )
            if record.file_descriptor == pb.FILE_DESCRIPTOR_STDOUT:
                bucket.stdout_logs += 1
            else:
                bucket.stderr_logs += 1
        ordered = [buckets[start] for start in sorted(buckets)]
        return pb.AppCountLogsResponse(app_id=request.app_id, buckets=ordered)
