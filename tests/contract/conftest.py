from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.door import LIMITS, Door, open_door


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async with open_door(**LIMITS) as opened:
        yield opened
