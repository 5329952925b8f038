"""The BentoML service: wiring and lifecycle only."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import time
from pathlib import Path
from typing import Any

import bentoml

from models.backends.load import cuda_device_count
from models.errors import PomonaError
from service import heap, lifecycle
from service.grpc.server import GrpcServer
from service.http import protocol
from service.http.app import HttpApp
from service.memory import MemoryBudget
from service.observability import logs
from service.observability.metrics import PrometheusObserver
from service.observability.tracing import TraceExporter, Tracing, TracingMisconfigured, export_traces
from service.oip import grpc as oip_grpc
from service.oip import http as oip_http
from service.pipelines import Pipelines
from service.settings import Settings, SettingsError, Tls, load_settings

_LOG = logging.getLogger("pomona.app")
_EXAMPLE = Path(__file__).parent.parent / "docs" / "oranges.jpg"


def _settings() -> Settings:
    try:
        return load_settings()
    except SettingsError as error:
        raise SystemExit(f"pomona: {error.detail}") from error


def _tls_options(tls: Tls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    return {"ssl": {"enabled": True, "certfile": str(tls.certificate), "keyfile": str(tls.key)}}


def _traces() -> TraceExporter | None:
    try:
        return export_traces(os.environ)
    except TracingMisconfigured as error:
        raise SystemExit(f"pomona: {error.detail}") from error


SETTINGS = _settings()
TRACES = _traces()
TRACING = Tracing() if TRACES is None else TRACES.tracing
OBSERVER = PrometheusObserver()
MEMORY = MemoryBudget(observer=OBSERVER)
HTTP = HttpApp(SETTINGS, OBSERVER, TRACING, MEMORY)
oip_http.mount(HTTP)
WORKERS = max(1, cuda_device_count())
logs.configure(SETTINGS.log_level)
protocol.install()
heap.bound()


@bentoml.service(
    name="pomona",
    workers=WORKERS,
    http={"host": SETTINGS.http_host, "port": SETTINGS.http_port},
    **_tls_options(SETTINGS.tls),
    # Ours come first and answer with a problem; BentoML's is the safety net.
    traffic={"timeout": SETTINGS.request_timeout_s + 30},
    # The application logs, measures and answers /metrics itself; BentoML's own took 0.5 ms of CPU per request.
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"excluded_urls": [".*"]},
)
@bentoml.asgi_app(HTTP, path="/")
class Pomona:
    """Segmentation for fruit sorting lines."""

    def __init__(self) -> None:
        self._pipelines: Pipelines | None = None
        self._grpc: GrpcServer | None = None
        self._loading: asyncio.Task[None] | None = None
        self._trimming: asyncio.Task[None] | None = None
        self._failed = False

    @bentoml.on_deployment
    @staticmethod
    def prepare() -> None:
        """Fetch and convert once, before the workers start, so that they find all files."""
        try:
            lifecycle.prepare_files(SETTINGS)
        except PomonaError as error:
            raise SystemExit(f"pomona: {error.detail}") from error

    @bentoml.on_startup
    async def start(self) -> None:
        """Load in the background, so that /livez answers while /readyz does not yet."""
        try:
            await self._listen()
        except PomonaError as error:
            self._failed = True
            _LOG.critical("the gRPC server cannot be started", extra={"detail": error.detail})
            return
        self._loading = asyncio.create_task(self._load())
        self._trimming = asyncio.create_task(heap.keep_small(MEMORY))

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Finish what runs, then stop."""
        if self._loading is not None:
            self._loading.cancel()
        if self._trimming is not None:
            self._trimming.cancel()
        HTTP.pipelines = None
        OBSERVER.readiness_changed(ready=False)
        until = time.monotonic() + SETTINGS.drain_timeout_s
        if self._grpc is not None:
            await self._grpc.drain(SETTINGS.drain_timeout_s)
        if self._pipelines is not None:
            await self._pipelines.engine.close(max(0.0, until - time.monotonic()))
        if TRACES is not None:
            await asyncio.to_thread(TRACES.close)

    async def __is_ready__(self) -> bool:
        return self._pipelines is not None

    async def __is_alive__(self) -> bool:
        return not (self._failed or (self._pipelines is not None and self._pipelines.engine.broken))

    async def _listen(self) -> None:
        """Start the gRPC server, which refuses calls until the models are loaded."""
        if SETTINGS.grpc_port:
            self._grpc = GrpcServer(
                SETTINGS, OBSERVER, TRACING, MEMORY, others=(oip_grpc.service,), shared_port=WORKERS > 1
            )
            await self._grpc.start(SETTINGS.http_host, SETTINGS.grpc_port, SETTINGS.tls)

    async def _load(self) -> None:
        worker = bentoml.server_context.worker_index or 1
        try:
            pipelines = await lifecycle.load_pipelines(SETTINGS, device_index=worker - 1, observer=OBSERVER)
            lifecycle.limit_memory(MEMORY, SETTINGS, workers=WORKERS)
            self._pipelines = pipelines
        except PomonaError as error:
            self._failed = True
            _LOG.critical("the models cannot be loaded", extra={"detail": error.detail})
            return
        except Exception:
            self._failed = True
            _LOG.exception("the models cannot be loaded")
            raise
        heap.return_memory()
        # What is loaded stays: searching it for garbage stopped all requests for 80 ms each time.
        gc.collect()
        gc.freeze()
        HTTP.pipelines = self._pipelines
        if self._grpc is not None:
            self._grpc.open(self._pipelines)
        OBSERVER.readiness_changed(ready=True)
        _LOG.info("ready", extra={"worker": worker})
        if worker == 1 and _EXAMPLE.exists():
            print(f"\nReady. Try:\n\n{_example_call()}\n", flush=True)  # noqa: T201 (for the person at the terminal)


def _example_call() -> str:
    request = '{"prompts": [{"points": [[548, 190]]}]}'
    tls, port = SETTINGS.tls, SETTINGS.http_port
    to = f"http://localhost:{port}" if tls is None else f"--cacert {tls.certificate} https://localhost:{port}"
    return f"curl -s -F image=@{_EXAMPLE} -F 'request={request}' {to}/v1/segment"
