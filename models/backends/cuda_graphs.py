"""CUDA graphs: the kernels of one run, recorded once and launched together from then on.

A small batch is over before the host has launched its hundreds of kernels one by one. `torch.compile`'s own graphs
("reduce-overhead") are bound to the thread that recorded them; ours are recorded by the thread that warms up and played
by the device's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

_RUNS_BEFORE: Final = 3
"""Libraries choose kernels and take workspaces in their first runs, which must not be recorded."""


class GraphRecorder:
    """Records graphs that share one pool of memory, so that together they hold about what the largest holds.

    They must be played one at a time, and an output copied before the next is played.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
        """Record `run` for batches of the example's shape, strides and type.

        Other threads may use the device meanwhile.

        Returns:
            what plays the graph; its output is overwritten when any graph of this recorder is played.

        Raises:
            RuntimeError: `run` does what cannot be recorded, or there is no memory for it.
        """
        batch = torch.empty_like(example)
        batch.copy_(example)
        computing = torch.cuda.current_stream(example.device)
        self._stream.wait_stream(computing)
        with torch.cuda.stream(self._stream):
            for _ in range(_RUNS_BEFORE):
                run(batch)
        graph = torch.cuda.CUDAGraph()
        # By default any other thread's allocation would break the recording.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = run(batch)
        computing.wait_stream(self._stream)

        def play(images: Tensor) -> Tensor:
            batch.copy_(images)
            graph.replay()
            return output

        return play
