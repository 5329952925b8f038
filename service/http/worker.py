"""The HTTP server of a worker: uvicorn inside BentoML, with ports of its own, bounded connections and a bounded end."""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import FrameType
from typing import Final

import uvicorn
from uvicorn.server import ServerState

from models.errors import PomonaError
from service.api.drain import Drain
from service.errors import PortTaken
from service.http.app import PROBES_ONLY, HttpApp
from service.http.connection import Connection, Patience, Waiting
from service.http.listener import Listener, listening_socket, reachable_host, room_for
from service.http.messages import Receive, Scope, Send
from service.settings import Settings

_LOG = logging.getLogger("pomona.worker")
_OVERTIME_S: Final = 1.0
"""Seconds beyond the drain timeout after which the process ends itself, whatever it is doing."""

_LINGER_S: Final = 1.0
"""Seconds that a refused caller has to take the refusal once all others are answered."""

_SETTLED_WITHIN_S: Final = 0.2
_ADMIN_CONNECTIONS: Final = 32
_CHECK_EVERY: Final = 10
"""Ticks of uvicorn, of a tenth of a second."""

_FAILED: Final = signal.SIGUSR1
"""Tells BentoML's first process that the server cannot work."""


class EntryPoint:
    """ASGI middleware that answers every request; only the lifespan is left to BentoML's application.

    Args:
        app: BentoML's.
        http: answers.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], http: HttpApp) -> None:
        self._app = app
        self._http = http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request (ASGI)."""
        await (self._http if scope["type"] == "http" else self._app)(scope, receive, send)


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What the server of a worker is made with.

    Attributes:
        settings: limits, and the port for probes.
        http: answers probes.
        drain: of the worker.
        workers: how many share the ports.
    """

    settings: Settings
    http: HttpApp
    drain: Drain
    workers: int = 1


def install(options: WorkerOptions) -> None:
    """Let BentoML's worker serve with `WorkerServer`: it names `uvicorn.Server` and offers no choice."""
    setattr(uvicorn, "Server", functools.partial(WorkerServer, options=options))  # noqa: B010 (mypy: not assignable)


def reserve_ports(settings: Settings) -> None:
    """Check in BentoML's first process that all ports are free, and leave listening to the workers.

    BentoML binds the port there and keeps it. If it listened as well, callers would connect and hang while no worker is
    there to answer: at the start, and after one died.

    Raises:
        PortTaken: another process listens on a port.
    """
    from circus.sockets import CircusSocket

    for name in ("http_port", "admin_port", "grpc_port"):
        if port := getattr(settings, name):
            listening_socket(reachable_host(settings.http_host), port, f"POMONA_{name.upper()}").close()

    def leave_to_the_workers(bound: socket.socket, backlog: int) -> None:
        """Do nothing."""

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (a handler's signature)
        atexit.register(os._exit, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    CircusSocket.listen = leave_to_the_workers
    atexit.register(gc.freeze)  # at the end of the interpreter, collecting garbage once more took seconds
    signal.signal(_FAILED, stop)


def give_up(error: PomonaError) -> None:
    """Say why this worker cannot work, and end the server: another worker could not either."""
    _LOG.critical("the worker cannot serve", extra={"detail": error.detail})
    os.kill(os.getppid(), _FAILED)


class WorkerServer(uvicorn.Server):
    """See the module.

    Args:
        config: as BentoML makes it.
        options: ours.
    """

    def __init__(self, config: uvicorn.Config, *, options: WorkerOptions) -> None:
        config.http, config.ws = Connection, "none"
        super().__init__(config)
        self._options = options
        self._doors: list[Listener] = []
        self._admin: list[Listener] = []
        self._parent = os.getppid()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the address of the socket that BentoML bound, and on the port for probes.

        The socket itself is BentoML's first process's too, which would keep it open after this process died.
        """
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets=[])
        options, settings = self._options, self._options.settings
        shared = options.workers > 1
        try:
            limit = room_for(settings.max_connections)
            if limit < settings.max_connections:
                _LOG.warning("open files limit POMONA_MAX_CONNECTIONS", extra={"max_connections": limit})
            for bound in sockets or []:
                host, port = bound.getsockname()[:2]
                opened = listening_socket(host, port, "POMONA_HTTP_PORT", shared=shared)
                self._doors.append(self._listener(opened, self.config, self.server_state, limit))
            if settings.admin_port:
                host = reachable_host(settings.http_host)
                opened = listening_socket(host, settings.admin_port, "POMONA_ADMIN_PORT", shared=shared)
                config = uvicorn.Config(
                    self._probes,
                    http=Connection,
                    ws="none",
                    lifespan="off",
                    interface="asgi3",
                    log_config=None,
                    proxy_headers=False,
                    server_header=False,
                )
                config.load()
                self._admin.append(self._listener(opened, config, ServerState(), _ADMIN_CONNECTIONS))
        except PortTaken as error:
            give_up(error)

    async def on_tick(self, counter: int) -> bool:
        """Check the connections, and whether BentoML's first process lives: only that process can stop this one."""
        if counter % _CHECK_EVERY == 0:
            self._check()
        if os.getppid() != self._parent and not self.should_exit:
            _LOG.critical("the parent process is gone; stopping")
            self.handle_exit(signal.SIGTERM, None)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop: refuse new work at once."""
        if not self.should_exit:
            threading.Thread(target=self._end_in_time, daemon=True).start()
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._options.drain.begin)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 (uvicorn's)
        """Finish admitted work within the drain timeout, refusing all else meanwhile, and stop."""
        drain, connections = self._options.drain, self.server_state.connections
        drain.begin()
        if not await drain.finished():
            _LOG.error("not all requests were answered within POMONA_DRAIN_TIMEOUT_S")
            if self._options.http.pipelines is not None:
                await self._options.http.pipelines.engine.close(0.0)  # those that wait for a device are refused
            await self._settled()
        for door in self._doors:
            door.close()
        until = time.monotonic() + _LINGER_S
        while connections and drain.remaining:  # answers are being taken
            for connection in list(connections):
                connection.shutdown()
                if isinstance(connection, Connection) and time.monotonic() >= until:
                    connection.stop_lingering()
            self._check()
            await asyncio.sleep(0.02)
        if connections:
            _LOG.error("callers did not take their answers", extra={"connections": len(connections)})
        for door in self._doors:
            door.abort()
        await self._settled()
        await self.lifespan.shutdown()
        for door in self._admin:
            door.close()

    async def _settled(self) -> None:
        """Let requests notice what has changed."""
        if self.server_state.tasks:
            await asyncio.wait(set(self.server_state.tasks), timeout=_SETTLED_WITHIN_S)

    def _end_in_time(self) -> None:
        time.sleep(self._options.settings.drain_timeout_s + _OVERTIME_S)
        sys.stderr.write("pomona: the process did not end within POMONA_DRAIN_TIMEOUT_S and is ended\n")
        os._exit(1)

    def _check(self) -> None:
        now = asyncio.get_running_loop().time()
        for door in (*self._doors, *self._admin):
            door.check(now)

    def _listener(self, opened: socket.socket, config: uvicorn.Config, state: ServerState, limit: int) -> Listener:
        settings = self._options.settings
        patience = Patience(settings.header_timeout_s, settings.idle_timeout_s, settings.write_timeout_s)

        def make(waiting: Waiting, reserved: bool) -> Connection:  # noqa: FBT001 (a callable)
            return Connection(
                config,
                state,
                self.lifespan.state,
                drain=self._options.drain,
                patience=patience,
                waiting=waiting,
                reserved=reserved,
            )

        return Listener(opened, make, limit=limit, tls=config.ssl, handshake_s=settings.header_timeout_s)

    async def _probes(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[PROBES_ONLY] = "admin"
        await self._options.http(scope, receive, send)
