from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.contract.door import LIMITS, Door, open_door
from tests.contract.grpc_door import Caller, open_grpc


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with open_door(**LIMITS) as opened:
        yield opened


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    limits: dict[str, Any] = {**LIMITS}
    async with open_grpc(**limits) as opened:
        yield opened
