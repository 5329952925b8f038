"""The annotated images to train on, decoded once and kept in memory as far as they fit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

import numpy as np

from models.data.samples import Sample
from models.data.sources import OpenedSource

_MOST_BYTES: Final = 1 << 30


class ImagePool:
    """Loads images, and keeps those used last, because decoding costs more than all changes of an image.

    Args:
        sources: sets.
        limit: most bytes of all images in memory.
    """

    def __init__(self, sources: Sequence[OpenedSource], limit: int = _MOST_BYTES) -> None:
        self._sources, self._limit = sources, limit
        self._names = [
            (number, name) for number, each in enumerate(sources) for names, _ in each.weighted for name in names
        ]
        weights = [weight for each in sources for names, weight in each.weighted for _ in names]
        self._shares = np.cumsum(weights)
        self._samples: OrderedDict[tuple[int, str], Sample] = OrderedDict()
        self._bytes = 0

    def load(self, source: int, name: str) -> Sample:
        """Return an image of a source.

        Args:
            source: index of the source.
            name: name of the image.

        Raises:
            DataError: the image cannot be used.
        """
        key = source, name
        if key in self._samples:
            self._samples.move_to_end(key)
            return self._samples[key]
        sample = self._sources[source].dataset.load(name)
        self._samples[key] = sample
        self._bytes += _bytes_of(sample)
        while self._bytes > self._limit and len(self._samples) > 1:
            self._bytes -= _bytes_of(self._samples.popitem(last=False)[1])
        return sample

    def choose(self, rng: np.random.Generator) -> Sample | None:
        """Return a random image to train on, as often as its weight says; None if there are none.

        Raises:
            DataError: the image cannot be used.
        """
        if not len(self._shares) or not self._shares[-1]:
            return None
        place = np.searchsorted(self._shares, rng.random() * self._shares[-1], side="right")
        return self.load(*self._names[int(place)])


def _bytes_of(sample: Sample) -> int:
    numbers = 0 if sample.instance_map is None else sample.instance_map.nbytes
    return sample.pixels.nbytes + sample.semantic.nbytes + numbers
