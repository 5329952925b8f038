from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.contract.door import LIMITS, Door, open_door
from tests.contract.grpc_door import Caller, corners, only, open_grpc


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with open_door(**LIMITS) as opened:
        yield opened


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with open_grpc(**LIMITS) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared() -> AsyncIterator[Caller]:
    """One server for all tests of a file, which must leave nothing in it."""
    async with open_grpc(**LIMITS) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def unharmed(shared: Caller) -> AsyncIterator[Caller]:
    """The shared server; afterwards nothing must have run on a device, and the next request must be answered."""
    shared.door.forget()
    yield shared
    assert shared.door.encodes == []
    assert corners(only(await shared.segment()).box) == (32, 16, 64, 48)
