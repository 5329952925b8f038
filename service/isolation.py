"""Runs a batch so that one bad item fails alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from models.errors import DeviceBroken

T = TypeVar("T")
R = TypeVar("R")


def run_isolated(run: Callable[[Sequence[T]], Sequence[R]], batch: Sequence[T]) -> list[R | Exception]:
    """Run a batch; where it fails, run its halves, down to the items that fail by themselves.

    This serves a bad item, which is found in about log2(n) failing runs, and a device that is out of memory, for which
    smaller batches may fit.

    Args:
        run: gives one result per item, in their order, or raises.
        batch: at least one item.

    Returns:
        for each item its result, or the exception that it alone raised.

    Raises:
        DeviceBroken: at once; nothing can run any more.
    """
    try:
        return list(run(batch))
    except DeviceBroken:
        raise
    except Exception as error:  # noqa: BLE001 (whatever it is, it goes to the item's caller)
        if len(batch) == 1:
            return [error]
    middle = len(batch) // 2
    return run_isolated(run, batch[:middle]) + run_isolated(run, batch[middle:])
