"""gRPC plumbing: methods of the services become methods of Modal's `ModalClient` service."""

import asyncio
import inspect
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.exceptions import StreamTerminatedError
from grpclib.server import Stream
from h2.exceptions import StreamClosedError
from modal_proto import api_pb2 as pb

from tests.fake_modal.records import ContainerRecord
from tests.fake_modal.state import State

CONTAINER_HEADER = "x-fake-modal-container"
"""Set by containers only, through MODAL_OVERRIDE_HEADERS. The real service knows them by their connection."""

TOKEN_ID, TOKEN_SECRET = "ak-fake", "as-fake"

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass(frozen=True)
class Caller:
    """Who calls what."""

    container: ContainerRecord | None
    """None for a client."""
    response_type: type[Message]
    """Where one method serves several RPCs."""

    def in_container(self) -> ContainerRecord:
        if self.container is None:
            raise GRPCError(Status.PERMISSION_DENIED, "only containers may call this")
        return self.container


def rpc(*names: str) -> Callable[[Method], Method]:
    """Mark a method ``(request, caller)`` as serving these RPCs.

    It returns the response, or is an asynchronous generator of responses where the RPC streams them.
    """

    def mark(method: Method) -> Method:
        method.__dict__["rpc_names"] = names
        return method

    return mark


class Dispatcher:
    """Hands each request to the service that knows it; what no service knows is UNIMPLEMENTED and counted."""

    def __init__(self, state: State, services: Iterable[object]) -> None:
        self._state = state
        self._methods: dict[str, Callable[..., Any]] = {}
        for service in services:
            for _, method in inspect.getmembers(service, inspect.ismethod):
                for name in getattr(method, "rpc_names", ()):
                    assert name not in self._methods, name
                    self._methods[name] = method
        self._service = pb.DESCRIPTOR.services_by_name["ModalClient"]
        assert self._methods.keys() <= {method.name for method in self._service.methods}

    def __mapping__(self) -> dict[str, Handler]:
        """Called by grpclib."""
        return {f"/{self._service.full_name}/{method.name}": self._handler(method) for method in self._service.methods}

    def _handler(self, descriptor: MethodDescriptor) -> Handler:
        response_type = GetMessageClass(descriptor.output_type)

        async def serve(stream: Stream[Message, Message]) -> None:
            request = await stream.recv_message()
            if request is not None:
                await self._serve(descriptor.name, request, stream, response_type)

        cardinality = Cardinality.UNARY_STREAM if descriptor.server_streaming else Cardinality.UNARY_UNARY
        return Handler(serve, cardinality, GetMessageClass(descriptor.input_type), response_type)

    async def _serve(
        self, name: str, request: Message, stream: Stream[Message, Message], response_type: type[Message]
    ) -> None:
        self._state.rpc_counts[name] += 1
        caller = Caller(self._authenticate(stream.metadata or {}), response_type)
        self._state.faults.check_rpc(name)
        if name not in self._methods:
            self._state.unimplemented[name] += 1
            raise GRPCError(Status.UNIMPLEMENTED, f"the stand-in does not know {name}")
        try:
            result = self._methods[name](request, caller)
            if inspect.isasyncgen(result):
                async for response in result:
                    await stream.send_message(response)
            else:
                await stream.send_message(await result)
        except (GRPCError, StreamTerminatedError, StreamClosedError, ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            self._state.errors.append(f"{name}: {''.join(traceback.format_exception(error))}")
            # Not INTERNAL, which the client would retry.
            raise GRPCError(Status.FAILED_PRECONDITION, f"the stand-in failed in {name}: {error!r}") from error

    def _authenticate(self, metadata: Mapping[str, Any]) -> ContainerRecord | None:
        if CONTAINER_HEADER in metadata:
            return self._state.containers[metadata[CONTAINER_HEADER]]
        if (metadata.get("x-modal-token-id"), metadata.get("x-modal-token-secret")) != (TOKEN_ID, TOKEN_SECRET):
            raise GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed or unknown")
        return None
