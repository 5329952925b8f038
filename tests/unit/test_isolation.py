"""One bad item fails alone, a device out of memory gets smaller batches, a broken one nothing more."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from service.isolation import run_isolated

from models.errors import BackendError, DeviceBroken, DeviceOutOfMemory


class Device:
    """Doubles numbers; fails on those it is told to, and on batches that are too large."""

    def __init__(self, *, bad: set[int] | None = None, room: int = 100) -> None:
        self.bad = bad or set()
        self.room = room
        self.batches: list[list[int]] = []

    def run(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        if len(batch) > self.room:
            raise DeviceOutOfMemory("no room")
        if self.bad & set(batch):
            raise BackendError(f"cannot do {self.bad & set(batch)}")
        return [2 * number for number in batch]


def test_a_good_batch_runs_once() -> None:
    device = Device()
    assert run_isolated(device.run, [1, 2, 3]) == [2, 4, 6]
    assert device.batches == [[1, 2, 3]]


def test_a_bad_item_fails_alone_and_its_batch_mates_are_answered() -> None:
    device = Device(bad={3})
    outcomes = run_isolated(device.run, [1, 2, 3, 4])
    assert [outcomes[0], outcomes[1], outcomes[3]] == [2, 4, 8]
    assert isinstance(outcomes[2], BackendError)
    assert device.batches == [[1, 2, 3, 4], [1, 2], [3, 4], [3], [4]]


def test_out_of_memory_splits_the_batch_until_it_fits() -> None:
    device = Device(room=2)
    assert run_isolated(device.run, [1, 2, 3, 4, 5]) == [2, 4, 6, 8, 10]
    assert max(len(batch) for batch in device.batches[1:] if len(batch) <= 2) == 2


def test_an_item_too_large_by_itself_fails_with_the_devices_error() -> None:
    (outcome,) = run_isolated(Device(room=0).run, [1])
    assert isinstance(outcome, DeviceOutOfMemory)


def test_a_broken_device_is_not_asked_again() -> None:
    calls = []

    def run(batch: Sequence[int]) -> list[int]:
        calls.append(batch)
        raise DeviceBroken("gone")

    with pytest.raises(DeviceBroken):
        run_isolated(run, [1, 2, 3])
    assert len(calls) == 1
