"""The door on a socket of this machine, for callers that need one: blocking clients, the command line."""

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
from starlette.responses import Response
from starlette.routing import Route

from service.grpc.server import GrpcServer
from tests.contract.door import Door, open_door
from tests.fakes import PATIENCE_S, make_settings

T = TypeVar("T")


@dataclass
class LiveDoor:
    """A door that answers on a socket.

    Attributes:
        address: without a slash at its end.
        grpc_address: of the gRPC door over the same pipeline; empty where there is none.
        door: with the backends behind it; it belongs to another thread's event loop.
        loop: that one.
    """

    address: str
    grpc_address: str
    door: Door
    loop: asyncio.AbstractEventLoop
    _stopping: asyncio.Event
    _thread: threading.Thread

    def do(self, work: Callable[[Door], Coroutine[Any, Any, T]]) -> T:
        """Do something with the door in its own event loop."""
        return asyncio.run_coroutine_threadsafe(work(self.door), self.loop).result(PATIENCE_S)

    def stop(self) -> None:
        """Finish what is being answered, and be gone."""
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


@contextmanager
def live_door(*, grpc: bool = False, **settings: Any) -> Iterator[LiveDoor]:
    """Serve the door until the block ends, with `grpc` the gRPC door too.

    Its library does not like two event loops in one process: what asks it should be blocking.
    """
    opened: queue.SimpleQueue[LiveDoor] = queue.SimpleQueue()
    listening = socket.create_server(("127.0.0.1", 0))

    async def serve() -> None:
        async with open_door(**settings) as door:
            host, port = listening.getsockname()
            stopping = asyncio.Event()
            loop = asyncio.get_running_loop()
            # BentoML's own, beside the door.
            door.app.router.routes.insert(0, Route("/readyz", lambda _: Response()))
            server = uvicorn.Server(uvicorn.Config(door.app, log_config=None, lifespan="off"))
            # `startup` and `shutdown` alone: `serve` would take the process's signals.
            server.config.load()
            server.lifespan = server.config.lifespan_class(server.config)
            await server.startup(sockets=[listening])
            other = GrpcServer(make_settings(**settings)) if grpc else None
            grpc_address = ""
            if other is not None:
                grpc_address = f"grpc://{host}:{await other.start(host, 0)}"
                other.open(door.pipelines)
            address = f"http://{host}:{port}"
            opened.put(LiveDoor(address, grpc_address, door, loop, stopping, threading.current_thread()))
            await stopping.wait()
            door.let_go()
            if other is not None:
                await other.drain(PATIENCE_S)
            await server.shutdown(sockets=[listening])

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    live = opened.get(timeout=PATIENCE_S)
    try:
        yield live
    finally:
        live.stop()
