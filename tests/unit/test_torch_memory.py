"""A batch that runs out of memory on PyTorch leaves nothing behind."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from models.backends.torch_backend import inference_on
from models.errors import DeviceOutOfMemory


class _Full(nn.Module):
    """Has no memory left after its first result, like a card."""

    def __init__(self) -> None:
        super().__init__()
        self.computed: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        result = x + 1
        self.computed += [weakref.ref(x), weakref.ref(result)]
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture(autouse=True)
def _no_garbage_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def test_what_a_batch_computed_is_freed_before_its_error_is_raised() -> None:
    full = _Full()
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), full)

    with pytest.raises(DeviceOutOfMemory, match="not enough memory for this batch") as caught:
        _run(network)
    # The error that was caught still holds the frames of the network.
    assert caught.tb is not None
    assert [each() for each in full.computed] == [None, None]


def _run(network: nn.Module) -> Tensor:
    with inference_on(torch.device("cpu")):
        result: Tensor = network(torch.zeros(1, 4))
        return result
