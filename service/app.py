"""The BentoML service: wiring and lifecycle only."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from pathlib import Path

import bentoml
import click

from models.backends.load import cuda_devices
from models.errors import BackendError, PomonaError
from service import heap, lifecycle
from service.access import Access
from service.api.drain import Drain
from service.api.handler import RequestHandler
from service.grpc.server import GrpcServer
from service.http import worker
from service.http.app import HttpApp
from service.http.listener import reachable_host, room_for
from service.memory import MemoryBudget
from service.observability import logs
from service.observability.metrics import PrometheusObserver
from service.observability.tracing import TraceExporter, Tracing, TracingMisconfigured, export_traces
from service.oip import grpc as oip_grpc
from service.oip import http as oip_http
from service.pipelines import Pipelines
from service.settings import MISCONFIGURED, Settings, SettingsError, Tls, load_settings, refuse_strangers
from service.tls import Certificates, bentoml_options, renew_in_uvicorn

_LOG = logging.getLogger("pomona.app")
_EXAMPLE = Path(__file__).parent.parent / "docs" / "oranges.jpg"


def _settings() -> Settings:
    try:
        settings = load_settings()
    except SettingsError as error:
        raise SystemExit(f"pomona: {error.detail}") from error
    # `bentoml serve --host` overrides ours.
    command = click.get_current_context(silent=True)
    chosen = None if command is None else command.params.get("host")
    try:
        for host in {settings.http_host, chosen or settings.http_host}:
            refuse_strangers(settings, host)
        cuda_devices(settings.device)
    except (SettingsError, BackendError) as error:
        sys.stderr.write(f"pomona: {error.detail}\n")
        raise SystemExit(MISCONFIGURED) from error
    return settings


def _certificates(tls: Tls | None) -> Certificates | None:
    if tls is None:
        return None
    certificates = Certificates(tls)
    renew_in_uvicorn(certificates)
    return certificates


def _traces() -> TraceExporter | None:
    try:
        return export_traces(os.environ)
    except TracingMisconfigured as error:
        raise SystemExit(f"pomona: {error.detail}") from error


SETTINGS = _settings()
TRACES = _traces()
TRACING = Tracing() if TRACES is None else TRACES.tracing
OBSERVER = PrometheusObserver()
CERTIFICATES = _certificates(SETTINGS.tls)
DRAIN = Drain(SETTINGS.drain_timeout_s)
MEMORY = MemoryBudget(observer=OBSERVER)
HANDLER = RequestHandler(OBSERVER, TRACING, SETTINGS.request_timeout_s, DRAIN, access=Access.of(SETTINGS.api_keys_file))
HTTP = HttpApp(SETTINGS, HANDLER, MEMORY)
oip_http.mount(HTTP)
WORKERS = max(1, cuda_devices(SETTINGS.device))
HOST = reachable_host(SETTINGS.http_host)
worker.install(worker.WorkerOptions(SETTINGS, HTTP, DRAIN, WORKERS))
logs.configure(SETTINGS.log_level)
heap.bound()


@bentoml.service(
    name="pomona",
    workers=WORKERS,
    http={"host": HOST, "port": SETTINGS.http_port},
    **({} if SETTINGS.tls is None else {"ssl": bentoml_options(SETTINGS.tls)}),
    # Ours come first and answer with a problem; BentoML's is the safety net.
    traffic={"timeout": SETTINGS.request_timeout_s + 30},
    # The application logs, measures and answers /metrics itself; BentoML's own took 0.5 ms of CPU per request.
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
    tracing={"excluded_urls": [".*"]},
)
class Pomona:
    """Segmentation for fruit sorting lines."""

    def __init__(self) -> None:
        self._pipelines: Pipelines | None = None
        self._grpc: GrpcServer | None = None
        self._loading: asyncio.Task[None] | None = None
        self._trimming: asyncio.Task[None] | None = None

    @bentoml.on_deployment
    @staticmethod
    def prepare() -> None:
        """Check the ports, fetch and convert once, before the workers start, so that they find all files."""
        try:
            worker.reserve_ports(SETTINGS)
            lifecycle.prepare_files(SETTINGS)
        except PomonaError as error:
            raise SystemExit(f"pomona: {error.detail}") from error

    @bentoml.on_startup
    async def start(self) -> None:
        """Load in the background, so that /livez answers while /readyz does not yet."""
        DRAIN.on_begin(lambda: OBSERVER.readiness_changed(ready=False))
        self._give_stderr_back = logs.log_printed_lines()
        try:
            await self._listen()
        except PomonaError as error:
            HTTP.failed = True
            worker.give_up(error)
            return
        self._loading = asyncio.create_task(self._load())
        self._trimming = asyncio.create_task(heap.keep_small(MEMORY))

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Stop what is left once the requests are answered; the process ends soon after the drain timeout anyway."""
        if self._loading is not None:
            self._loading.cancel()
        if self._trimming is not None:
            self._trimming.cancel()
        if self._grpc is not None:
            await self._grpc.drain(DRAIN.remaining)
        if self._pipelines is not None:
            await self._pipelines.engine.close(DRAIN.remaining)
        if TRACES is not None:
            await asyncio.to_thread(TRACES.close)
        self._give_stderr_back()

    async def _listen(self) -> None:
        """Start the gRPC server, which refuses calls until the models are loaded."""
        if SETTINGS.grpc_port:
            self._grpc = GrpcServer(
                SETTINGS,
                HANDLER,
                memory=MEMORY,
                max_connections=room_for(SETTINGS.max_connections),
                others=(oip_grpc.service,),
                shared_port=WORKERS > 1,
            )
            DRAIN.on_begin(self._grpc.halt)
            await self._grpc.start(HOST, SETTINGS.grpc_port, CERTIFICATES)

    async def _load(self) -> None:
        index = bentoml.server_context.worker_index or 1
        try:
            pipelines = await lifecycle.load_pipelines(SETTINGS, device_index=index - 1, observer=OBSERVER)
            lifecycle.limit_memory(MEMORY, SETTINGS, workers=WORKERS, pipelines=pipelines)
            self._pipelines = pipelines
        except PomonaError as error:
            HTTP.failed = True
            _LOG.critical("the models cannot be loaded", extra={"detail": error.detail})
            return
        except Exception:
            HTTP.failed = True
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
        _LOG.info("ready", extra={"worker": index})
        if index == 1 and _EXAMPLE.exists():
            print(f"\nReady. Try:\n\n{_example_call()}\n", flush=True)  # noqa: T201 (for the person at the terminal)


Pomona.add_asgi_middleware(worker.EntryPoint, http=HTTP)  # type: ignore[attr-defined]  # it is BentoML's service now


def _example_call() -> str:
    request = '{"prompts": [{"points": [[548, 190]]}]}'
    tls, port = SETTINGS.tls, SETTINGS.http_port
    to = f"http://localhost:{port}" if tls is None else f"--cacert {tls.certificate} https://localhost:{port}"
    return f"curl -s -F image=@{_EXAMPLE} -F 'request={request}' {to}/v1/segment"
