"""The gRPC door's life: listening, ready, draining."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from models.errors import PomonaError
from service.grpc import health, inference, segmentation
from service.grpc.attempts import Attempts
from service.grpc.desk import Desk
from service.grpc.guard import Guard
from service.grpc.health import Health
from service.grpc.inference import Inference
from service.grpc.segmentation import Segmentation
from service.observability.observer import Observer
from service.observability.tracing import Tracing
from service.pipeline import Pipeline
from service.proto.generated.inference.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from service.proto.generated.pomona.v1.segmentation_pb2_grpc import add_SegmentationServicer_to_server
from service.settings import Settings, Tls


@dataclass(frozen=True, slots=True)
class _Service:
    """A service of ours.

    Attributes:
        name: in full, for health and reflection.
        make: from what all services share.
        add: what protoc made for that.
    """

    name: str
    make: Callable[[Desk], Any]
    add: Callable[[Any, grpc.aio.Server], None]


_SERVICES: Final = (
    _Service(segmentation.SERVICE_NAME, Segmentation, add_SegmentationServicer_to_server),
    _Service(inference.SERVICE_NAME, Inference, add_GRPCInferenceServiceServicer_to_server),
)
_KEEPALIVE: Final = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # A caller may ask whether we are alive every ten seconds, calls or not.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)
_CALLS_PER_CONNECTION: Final = 128


class PortTaken(PomonaError):
    """Somebody else listens where the door should."""


class GrpcDoor:
    """The server of one worker; made and used in one event loop.

    Args:
        settings: limits.
        observer: hears of every call and every frame.
        tracing: begins a trace for each.
        shared_port: several workers listen on the same port.
    """

    def __init__(
        self,
        settings: Settings,
        observer: Observer | None = None,
        tracing: Tracing | None = None,
        *,
        shared_port: bool = False,
    ) -> None:
        attempts = Attempts(observer or Observer(), settings.request_timeout_s, tracing or Tracing())
        self._desk = Desk(settings, attempts)
        names = [service.name for service in _SERVICES]
        self._health = Health(names)
        self._server = grpc.aio.server(
            interceptors=[Guard(attempts)],
            options=[
                ("grpc.max_receive_message_length", settings.max_upload_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", _CALLS_PER_CONNECTION),
                # Without it a port that another server has is refused, instead of being shared with it.
                ("grpc.so_reuseport", int(shared_port)),
                *_KEEPALIVE,
            ],
        )
        for service in _SERVICES:
            service.add(service.make(self._desk), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self, host: str, port: int, tls: Tls | None = None) -> int:
        """Listen; calls are told that the models are still loading.

        Args:
            host: IP address.
            port: 0 for any that is free.
            tls: with what it identifies itself, or None to speak without TLS.

        Returns:
            The port.

        Raises:
            PortTaken: it cannot be had.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                bound = self._server.add_insecure_port(address)
            else:
                pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
                bound = self._server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as error:
            raise PortTaken(
                f"The gRPC door cannot listen on {address}. POMONA_GRPC_PORT chooses another port, or none with 0."
            ) from error
        await self._server.start()
        return bound

    def open(self, pipeline: Pipeline) -> None:
        """The models are ready."""
        self._desk.pipeline = pipeline
        self._health.serve()

    async def drain(self, within: float) -> None:
        """Take no more calls and no more frames, finish what runs for at most `within` seconds, and stop."""
        self._health.end()
        self._desk.end()
        await self._server.stop(within)
