"""Watches how far images and answers are from those that a U-Net was validated on; see `models.drift`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from models.drift import Reference, Statistic, Window, fruit_size
from models.inspection import Fruit
from models.types import Size
from service.observability.observer import Observer


class DriftWatch:
    """Windows of recent numbers of one model; for one thread.

    Args:
        model: its name.
        reference: what it was validated on.
        observer: receives what is found.
    """

    def __init__(self, model: str, reference: Reference, observer: Observer) -> None:
        self._model = model
        self._windows = {name: Window(distribution) for name, distribution in reference.statistics.items()}
        self._observer = observer

    def saw(self, image: Mapping[Statistic, float], fruits: Sequence[Fruit], size: Size) -> None:
        """Add an image and its fruit.

        Args:
            image: its statistics.
            fruits: of the answer.
            size: of the image.
        """
        for name, value in image.items():
            self._add(name, (value,))
        self._add("fruit_count", (len(fruits),))
        self._add("fruit_size", (fruit_size(fruit.area, size) for fruit in fruits))
        self._add("infected_fraction", (fruit.infected_fraction for fruit in fruits))
        self._add("confidence", (fruit.confidence for fruit in fruits))

    def _add(self, name: Statistic, values: Iterable[float]) -> None:
        window = self._windows.get(name)
        if window is not None and (index := window.add(values)) is not None:
            self._observer.drift_measured(self._model, name, index)
