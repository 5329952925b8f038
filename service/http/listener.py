"""What accepts connections: so many and no more, with some kept for probes."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from collections.abc import Callable
from typing import Final

from service.errors import PortTaken
from service.http.connection import Connection, Waiting

_BACKLOG: Final = 2048
_AT_ONCE: Final = 64
"""Connections that are accepted in one turn of the event loop."""

_RESERVE: Final = 16
"""Connections beyond the limit that are kept for probes."""

_OTHER_FILES: Final = 192
"""Open files that are neither callers' connections to HTTP nor to gRPC."""

_EVERYWHERE: Final = "::"
"""All addresses, of IPv6 and of IPv4."""

_FULL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_REST_S: Final = 0.1


def reachable_host(host: str) -> str:
    """Return the address to listen on for `host`: IPv4's wildcard instead of that of both where there is no IPv6."""
    if host != _EVERYWHERE:
        return host
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as tried:
            tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            tried.bind((host, 0))
    except OSError:
        return "0.0.0.0"  # noqa: S104 (`::` was asked for)  # nosec B104
    return host


def listening_socket(host: str, port: int, name: str, *, shared: bool = False) -> socket.socket:
    """Listen on a port.

    Args:
        host: IP address; `::` listens for IPv4 too.
        port: 0 for any free one.
        name: of the setting with the port, for the error.
        shared: several processes may listen on it.

    Raises:
        PortTaken: it cannot be had.
    """
    opened = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == _EVERYWHERE:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        if shared:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind((host, port))
        opened.listen(_BACKLOG)
    except OSError as error:
        opened.close()
        raise PortTaken(
            f"{host} port {port} cannot be listened on: {error.strerror}. Choose another port with {name}."
        ) from error
    opened.setblocking(False)  # noqa: FBT003
    return opened


def room_for(connections: int) -> int:
    """Raise the limit of open files where that is allowed, and return how many connections each door may have."""
    needed = 2 * connections + _RESERVE + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return connections
    return max(1, (soft - _RESERVE - _OTHER_FILES) // 2)


class Listener:
    """Accepts the connections of one port.

    Args:
        opened: listening; closed at the end.
        make: makes a connection of those that wait; with True one that is kept for probes.
        limit: most connections, TLS handshakes included.
        tls: encrypts them, or None.
        handshake_s: seconds for a TLS handshake.
    """

    def __init__(
        self,
        opened: socket.socket,
        make: Callable[[Waiting, bool], Connection],
        *,
        limit: int,
        tls: ssl.SSLContext | None = None,
        handshake_s: float = 10.0,
    ) -> None:
        self._socket = opened
        self._make = make
        self._limit = limit
        self._tls = tls
        self._handshake_s = handshake_s
        self._loop = asyncio.get_running_loop()
        self._shaking: dict[asyncio.Task[None], float] = {}
        self._open: set[Connection] = set()
        self._waiting: Waiting = {}
        self._listening = False
        self._resume()

    def check(self, now: float) -> None:
        """Close the connections whose callers are too slow; see `Connection.check`."""
        for connection in tuple(self._open):
            connection.check(now)

    def close(self) -> None:
        """Accept no more."""
        if self._listening:
            self._loop.remove_reader(self._socket)
            self._listening = False
        self._socket.close()
        for task in self._shaking:
            task.cancel()

    def abort(self) -> None:
        """End all connections at once."""
        for connection in tuple(self._open):
            connection.end()

    def _resume(self) -> None:
        if self._socket.fileno() >= 0 and not self._listening:
            self._loop.add_reader(self._socket, self._accept)
            self._listening = True

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            if self._count() >= self._limit and self._shaking and not self._waiting and self._tls is None:
                return  # those of this turn begin to wait in the next
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                self._make_room()
                self._loop.remove_reader(self._socket)
                self._listening = False
                self._loop.call_later(_REST_S, self._resume)
                return
            accepted.setblocking(False)  # noqa: FBT003
            self._take(accepted)

    def _take(self, accepted: socket.socket) -> None:
        count = self._count()
        reserved = count >= self._limit and not self._make_room()
        if reserved and count >= self._limit + _RESERVE:
            accepted.close()
            return
        connection = self._make(self._waiting, reserved)
        task = self._loop.create_task(self._connect(accepted, connection))
        self._shaking[task] = self._loop.time()
        task.add_done_callback(lambda done: self._shaking.pop(done, None))

    async def _connect(self, accepted: socket.socket, connection: Connection) -> None:
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else self._handshake_s,
                ssl_shutdown_timeout=None if self._tls is None else self._handshake_s,
            )
        except OSError:  # the handshake failed or took too long; the socket is closed
            accepted.close()
        except asyncio.CancelledError:
            accepted.close()
            raise
        else:
            connection.counted(self._open)

    def _count(self) -> int:
        return len(self._open) + len(self._shaking)

    def _make_room(self) -> bool:
        """End what has waited longest, for a handshake or a request; return whether there was one."""
        connection, task = next(iter(self._waiting), None), next(iter(self._shaking), None)
        if self._tls is None:
            task = None  # it needs nothing of the caller
        if connection is not None and (task is None or self._waiting[connection] <= self._shaking[task]):
            connection.end()
        elif task is not None:
            self._shaking.pop(task)
            task.cancel()
        else:
            return False
        return True
