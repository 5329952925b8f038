"""How tests call pipelines over fake models, and keep their device busy."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Mapping
from typing import Any, Final

from service.api import schema
from service.api.context import RequestContext
from service.pipelines import Pipelines
from service.pipelines.source import encoded
from tests.fakes import (
    LOADED,
    PATIENCE_S,
    FakeSam,
    WatchedRunner,
    image_bytes,
)

POINT: Final = {"points": [[64, 48]]}
BOX: Final = {"box": [32, 16, 64, 48], "multimask": False}
NEVER: Final = 1e9
"""Seconds after which an idle device is probed: longer than any test."""


def context(pipelines: Pipelines, within: float | None = None) -> RequestContext:
    clock = pipelines.engine.clock
    now = clock()
    return RequestContext(received=now, arrived=now, deadline=None if within is None else now + within, clock=clock)


async def segment(
    pipelines: Pipelines,
    *prompts: Mapping[str, Any],
    data: bytes | None = None,
    image_id: str | None = None,
    within: float | None = None,
    **fields: Any,
) -> schema.SegmentResponse:
    text = json.dumps({"prompts": prompts or [POINT], **fields})
    request = schema.SegmentRequest.model_validate_json(text)
    if data is None and image_id is None:
        data = image_bytes()
    return await pipelines.segment.run(request, encoded(data, image_id), context(pipelines, within))


async def embed(pipelines: Pipelines, red: int = 0, **fields: Any) -> schema.EmbedResponse:
    return await pipelines.segment.embed(schema.EmbedRequest(**fields), encoded(image_bytes(red)), context(pipelines))


def only(answer: schema.SegmentResponse) -> schema.ScoredMask:
    assert [len(result.masks) for result in answer.results] == [1]
    return answer.results[0].masks[0]


def watched(pipelines: Pipelines) -> WatchedRunner:
    runner = pipelines.engine.runners[LOADED.name]
    assert isinstance(runner, WatchedRunner)
    return runner


async def held(pipelines: Pipelines, sam: FakeSam) -> asyncio.Task[schema.EmbedResponse]:
    """Keep the device busy with an image until `let_go`."""
    sam.blocks = threading.Event()
    running = asyncio.create_task(embed(pipelines, 200))
    assert await asyncio.to_thread(sam.entered.wait, PATIENCE_S)
    return running


def let_go(sam: FakeSam) -> None:
    assert sam.blocks is not None
    sam.blocks.set()
