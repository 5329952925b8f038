"""The service on sockets of this machine, for callers that need them: blocking clients, the command line."""

from __future__ import annotations

import asyncio
import queue
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import uvicorn

from service.grpc.server import GrpcServer
from service.http.worker import WorkerOptions, WorkerServer
from tests.contract.door import Door, open_door
from tests.fakes import PATIENCE_S, make_settings

T = TypeVar("T")


@dataclass
class LiveDoor:
    """A service that answers on sockets.

    Attributes:
        address: of HTTP, without a slash at its end.
        grpc_address: of gRPC over the same pipelines; empty where there is none.
        door: with the backends behind it; it belongs to another thread's event loop.
        loop: that event loop.
        server: of gRPC, or None.
    """

    address: str
    grpc_address: str
    door: Door
    loop: asyncio.AbstractEventLoop
    server: GrpcServer | None
    _stopping: asyncio.Event
    _thread: threading.Thread

    def do(self, work: Callable[[Door], Coroutine[Any, Any, T]]) -> T:
        """Do something with the door in its own event loop."""
        return asyncio.run_coroutine_threadsafe(work(self.door), self.loop).result(PATIENCE_S)

    def stop(self) -> None:
        """Finish what is being answered, and stop listening."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@contextmanager
def live_door(*, grpc: bool = False, **settings: Any) -> Iterator[LiveDoor]:
    """Serve HTTP, and with `grpc` gRPC too, until the block ends.

    grpcio does not like two event loops in one process: its callers should be blocking.
    """
    opened: queue.SimpleQueue[LiveDoor] = queue.SimpleQueue()
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))

    async def serve() -> None:
        async with open_door(**settings) as door:
            host, port = bound.getsockname()
            stopping = asyncio.Event()
            loop = asyncio.get_running_loop()
            config = uvicorn.Config(door.app, log_config=None, lifespan="off")
            server = WorkerServer(config, options=WorkerOptions(door.app.settings, door.app, door.app.drain))
            # `startup` and `shutdown` alone: `serve` would take the process's signals.
            server.config.load()
            server.lifespan = server.config.lifespan_class(server.config)
            await server.startup(sockets=[bound])
            ticking = asyncio.create_task(server.main_loop())
            other = GrpcServer(make_settings(**settings), door.app.handler) if grpc else None
            grpc_address = ""
            if other is not None:
                door.app.drain.on_begin(other.halt)
                grpc_address = f"grpc://{host}:{await other.start(host, 0)}"
                other.open(door.pipelines)
            address = f"http://{host}:{port}"
            opened.put(LiveDoor(address, grpc_address, door, loop, other, stopping, threading.current_thread()))
            await stopping.wait()
            door.let_go()
            await server.shutdown()
            if other is not None:
                await other.drain(PATIENCE_S)
            ticking.cancel()
            bound.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    live = opened.get(timeout=PATIENCE_S)
    try:
        yield live
    finally:
        live.stop()
