"""Whether the caller is still there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do `work`, and cancel it when the caller leaves.

    Args:
        request: whose body was read to its end: all that can come after it is the disconnect.
        work: started here.

    Raises:
        ClientDisconnect: the caller left first.
    """
    caller: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
    working = asyncio.current_task()
    left = False

    def leave(receiving: asyncio.Future[Any]) -> None:
        nonlocal left
        if not receiving.cancelled() and working is not None:
            left = True
            working.cancel()

    caller.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and working is not None and working.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        caller.remove_done_callback(leave)
        caller.cancel()
