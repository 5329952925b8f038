"""An encoder that runs every shape in the form that was measured to be fastest for it."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad

from models.backends.tuning import Chosen, Run, Tools, choose, cover
from models.sam.constants import INPUT_SIDE

Shape = tuple[int, int, int]
"""Images, height, width."""

_OFTEN: Final = 8
"""Batches of a shape after which a graph of it is worth the dozen runs that recording and measuring take."""

_OTHER_SHAPES: Final = 8
"""Kept beside the square; each holds a graph and a batch of images."""

_COUNTED: Final = 64

_LOG = logging.getLogger("pomona.tuning")


class TunedEncoder:
    """Images to embeddings.

    The square of 1024 is tuned, with compiling, at its first batch of each of `sizes`, which may take a minute: a
    server runs these before it is ready. Once all are tuned, batches of other sizes are done in the sizes that take
    least time together. Any other shape runs plain until it came often; then it is tuned without compiling, and
    forgotten when eight others came since.

    Args:
        tools: the encoder and what can be done to it.
        sizes: rising, of batches that are tuned.
    """

    def __init__(self, tools: Tools, sizes: Sequence[int]) -> None:
        self._tools = tools
        self._sizes = tuple(sizes)
        self._plain = next(iter(tools.variants.values()))
        self._square: dict[int, Chosen] = {}
        self._others: OrderedDict[Shape, Chosen] = OrderedDict()
        self._seen: OrderedDict[Shape, int] = OrderedDict()

    def __call__(self, batch: Tensor) -> list[Tensor]:
        """Encode a batch.

        Args:
            batch: normalised (n, 3, height, width).

        Returns:
            see `apart`.

        Raises:
            RuntimeError: the device failed.
        """
        count, _, height, width = batch.shape
        if (height, width) != (INPUT_SIDE, INPUT_SIDE):
            return apart(self._form_of((count, height, width), batch)(batch))
        if count in self._sizes and count not in self._square:
            self._square[count] = self._tune(batch, compiling=True)
        if len(self._square) < len(self._sizes):
            form = self._square.get(count)
            return apart((form.run if form else self._plain)(batch))
        embeddings: list[Tensor] = []
        for size in cover(count, {size: form.seconds for size, form in self._square.items()}):
            part = batch[len(embeddings) : len(embeddings) + size]
            full = pad(part, (0, 0) * 3 + (0, size - len(part))) if len(part) < size else part
            embeddings += apart(self._square[size].run(full)[: len(part)])
        return embeddings

    def _form_of(self, shape: Shape, batch: Tensor) -> Run:
        form = self._others.get(shape)
        if form is None:
            self._seen[shape] = self._seen.pop(shape, 0) + 1
            if self._seen[shape] < _OFTEN:
                _forget(self._seen, _COUNTED)
                return self._plain
            form = self._others[shape] = self._tune(batch, compiling=False)
            del self._seen[shape]
            _forget(self._others, _OTHER_SHAPES)
        self._others.move_to_end(shape)
        return form.run

    def _tune(self, batch: Tensor, *, compiling: bool) -> Chosen:
        # An image of one colour, as a server warms up with, would not show every wrong answer.
        example = torch.empty_like(batch).normal_(generator=torch.Generator(batch.device).manual_seed(0))
        form = choose(self._tools, example, compiling=compiling)
        _LOG.info("encoder for %s: %s, %.1f ms", tuple(batch.shape), form.name, form.seconds * 1000)
        return form


def apart(embeddings: Tensor) -> list[Tensor]:
    """Embeddings (n, 256, h, w), each copied as float32: one that is kept does not keep its batch mates."""
    return [embedding.to(torch.float32, copy=True) for embedding in embeddings]


def _forget(entries: OrderedDict[Shape, Any], limit: int) -> None:
    while len(entries) > limit:
        entries.popitem(last=False)
