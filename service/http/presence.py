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
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        working.cancel()
        await asyncio.wait({working})
        raise ClientDisconnect
    finally:
        working.cancel()
        leaving.cancel()
