"""Work on a device that serves meanwhile: piece by piece, each when nothing else wants the device."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from models.errors import BackendError
from service.errors import Overloaded
from service.observability.observer import Stage
from service.scheduler.policy import Limits, WorkItem
from service.scheduler.queue import Background, BatchKey, DeviceQueue, ModelInstance

T = TypeVar("T")

_AGAIN_S: Final = 0.25
"""Between attempts to be admitted by a full queue."""

_PATIENCE_S: Final = 600.0
"""For all attempts of a piece together."""


class Slices:
    """Hands pieces of work to a device's queue as items without a deadline and of the least urgency.

    So they come after all other work, except that one which has waited for five seconds gets a turn, as every item
    without a deadline does: at most a fourth of a busy device's time. Requests that arrive while a piece runs are
    admitted by when it will end.

    Args:
        queue: of the device.
        name: of the model whose work it is.
    """

    def __init__(self, queue: DeviceQueue, name: str) -> None:
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._model = ModelInstance(name, lambda _: Limits(1, math.inf), _call)
        self._number = itertools.count()

    def run(self, call: Callable[[], T], stage: Stage, seconds: float) -> T:
        """Run a piece of work on the device's thread and wait for it; to be called in another thread than the loop's.

        Args:
            call: the work.
            stage: of the model.
            seconds: that it will take, as far as is known; 0 where nothing is.

        Raises:
            NotReady: the server is shutting down.
            Exception: what the work raised.
        """
        result: T = asyncio.run_coroutine_threadsafe(self._run(call, stage, seconds), self._loop).result()
        return result

    async def _run(self, call: Callable[[], Any], stage: Stage, seconds: float) -> Any:
        # Each is of its own kind, for whose time the prediction is all that is known.
        key = BatchKey(self._model, stage, next(self._number))
        cost = max(seconds, 1e-3)
        self._queue.learn(key, cost, cost)
        until = self._queue.clock() + _PATIENCE_S
        while self._queue.clock() < until:
            item: WorkItem[BatchKey, Any] = WorkItem(key, Background(self._queue.clock()), deadline=None, cost=cost)
            try:
                (ticket,) = self._queue.reserve(item)
            except Overloaded:
                await asyncio.sleep(_AGAIN_S)
                continue
            try:
                return (await ticket.run(call)).value
            finally:
                self._queue.forget(self._model)
        raise BackendError(f"The device was too busy to warm a model up for {_PATIENCE_S:g} s; load it later.")


def _call(key: BatchKey, payloads: Sequence[Callable[[], Any]]) -> Sequence[Any]:  # noqa: ARG001 (an item is a call)
    return [call() for call in payloads]
