"""The gRPC server: its services, and its life from listening to draining."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service.api.handler import RequestHandler
from service.api.operations import OPERATIONS, Operation
from service.api.schema import Schema
from service.errors import PortTaken
from service.grpc import health
from service.grpc.calls import Call, Door, Method, Services
from service.grpc.codec import write_response
from service.grpc.health import Health, ReadableRequests
from service.grpc.streams import OpenStreams, OperationStream, run_operation
from service.memory import MemoryBudget
from service.pipelines import Pipelines
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.settings import Settings
from service.tls import Certificates, grpc_credentials

SEGMENTATION: Final = pb.DESCRIPTOR.services_by_name["Segmentation"]

_KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A caller may ping every ten seconds, with calls or without. Pings may arrive closer together than they were sent.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)
_CALLS_PER_CONNECTION: Final = 128
_METADATA_BYTES: Final = 16 * 1024

_PLAIN: Final = (
    # gRPC checks the length of a message before it decompresses it, so that 3 MB would become 3 GB. Images do not
    # shrink: compressed messages are refused (UNIMPLEMENTED, with what is accepted in grpc-accept-encoding).
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.per_message_decompression", 0),
)

OtherService = Callable[[Door], tuple[str, Mapping[str, Method]]]
"""Makes another service: its full name, and its methods by path."""


class GrpcServer:
    """The server of one worker; made and used in one event loop.

    Args:
        settings: limits.
        handler: handles calls and frames.
        memory: what all requests may hold.
        max_connections: instead of that of the settings.
        others: further services.
        shared_port: several workers listen on the same port.
    """

    def __init__(
        self,
        settings: Settings,
        handler: RequestHandler,
        *,
        memory: MemoryBudget | None = None,
        max_connections: int | None = None,
        others: tuple[OtherService, ...] = (),
        shared_port: bool = False,
    ) -> None:
        self._door = Door(settings, handler, memory or MemoryBudget())
        self._streams = OpenStreams()
        services = dict(make(self._door) for make in others)
        services[SEGMENTATION.full_name] = segmentation_methods(self._streams)
        self._health = Health(services)
        self._server = grpc.aio.server(
            interceptors=(ReadableRequests(),),
            options=[
                ("grpc.max_receive_message_length", settings.max_upload_bytes),
                ("grpc.max_send_message_length", -1),
                *_PLAIN,
                ("grpc.max_metadata_size", _METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
                ("grpc.max_concurrent_streams", _CALLS_PER_CONNECTION),
                # Without it a port that another server has is refused, instead of being shared with it.
                ("grpc.so_reuseport", int(shared_port)),
                ("grpc.max_allowed_incoming_connections", max_connections or settings.max_connections),
                # TLS, and HTTP/2's first frame.
                ("grpc.server_handshake_timeout_ms", int(settings.header_timeout_s * 1000)),
                ("grpc.max_connection_idle_ms", int(settings.idle_timeout_s * 1000)),
                *_KEEPALIVE,
            ],
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        methods = {path: method for service in services.values() for path, method in service.items()}
        self._server.add_generic_rpc_handlers((Services(self._door, methods),))

    async def start(self, host: str, port: int, certificates: Certificates | None = None) -> int:
        """Listen; calls are refused until `open`, as the models are still loading.

        Args:
            host: IP address.
            port: 0 for any free one.
            certificates: those of TLS, or None to serve without it.

        Returns:
            The port.

        Raises:
            PortTaken: it cannot be had.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if certificates is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, grpc_credentials(certificates))
        except RuntimeError as error:
            raise PortTaken(
                f"gRPC cannot listen on {address}. Choose another port with POMONA_GRPC_PORT, or none with 0."
            ) from error
        await self._server.start()
        return bound

    def open(self, pipelines: Pipelines) -> None:
        """Answer calls: the models are ready."""
        self._door.pipelines = pipelines
        self._health.serve()

    def halt(self) -> None:
        """Report that the server stops, and accept no more calls and no more frames."""
        self._door.drain.begin()
        self._health.end()
        self._streams.halt()

    async def drain(self, within: float) -> None:
        """Halt, finish what runs for at most `within` seconds, and stop."""
        self.halt()
        await self._server.stop(within)


def segmentation_methods(streams: OpenStreams) -> dict[str, Method]:
    """Return the methods of `pomona.v1.Segmentation` by path, bound to the table of operations."""
    methods: dict[str, Method] = {}
    for operation in OPERATIONS:
        descriptor = SEGMENTATION.methods_by_name[operation.rpc]
        request, response = GetMessageClass(descriptor.input_type), GetMessageClass(descriptor.output_type)
        methods[_path(operation.rpc)] = Method(request, answer=_unary(operation, response), needs=operation.needs)
        if operation.streams:
            name = f"{operation.rpc}Stream"
            stream = SEGMENTATION.methods_by_name[name]
            reply = GetMessageClass(stream.output_type)
            run = OperationStream(operation, streams, reply).run
            methods[_path(name)] = Method(GetMessageClass(stream.input_type), stream=run)
        if operation.progress is not None:
            name = f"{operation.rpc}Stream"
            reply = GetMessageClass(SEGMENTATION.methods_by_name[name].output_type)
            methods[_path(name)] = Method(request, answer=_reporting(operation, reply))
    return methods


def _path(method: str) -> str:
    return f"/{SEGMENTATION.full_name}/{method}"


def _unary(operation: Operation, response: type[Message]) -> Callable[[Any, Call], Awaitable[Message]]:
    async def answer(message: Any, call: Call) -> Message:
        call.door.ready()
        call.set_deadline(call.context)
        reply = response()
        write_response(await run_operation(operation, call, call.context, message), reply)
        return reply

    return answer


def _reporting(operation: Operation, reply_type: type[Any]) -> Callable[[Any, Call], Awaitable[Message]]:
    """Return a method that sends what the operation reports while it works, and the answer last."""

    async def report(update: Schema, call: Call) -> None:
        reply = reply_type()
        write_response(update, reply.progress)
        await call.servicer.write(reply.SerializeToString())

    async def answer(message: Any, call: Call) -> Message:
        call.door.ready()
        call.set_deadline(call.context)
        call.context.report = lambda update: report(update, call)
        reply = reply_type()
        write_response(await run_operation(operation, call, call.context, message), reply.response)
        found: Message = reply
        return found

    return answer
