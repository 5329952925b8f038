"""Watches how far images and answers are from those that a U-Net was validated on; see `models.drift`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from models.drift import Reference, Statistic, Window, fruit_size
from models.inspection import Fruit
from models.types import Size
from service.observability.observer import Observer
from service.pipelines.engine import Engine
from service.runners.unet import UNetRunner


@dataclass(frozen=True, slots=True)
class DriftWatches:
    """Watches the active revision of each U-Net that has a reference; a promoted one begins again.

    Attributes:
        engine: knows which revision is active.
        observer: receives what is found.
    """

    engine: Engine
    observer: Observer
    _watches: dict[str, tuple[UNetRunner, DriftWatch]] = field(default_factory=dict)

    def watches(self, runner: UNetRunner) -> bool:
        """Return whether this revision is watched."""
        return runner.reference is not None and self.engine.runners.get(runner.entry.name) is runner

    def saw(self, runner: UNetRunner, image: Mapping[Statistic, float], fruits: Sequence[Fruit], size: Size) -> None:
        """Add an image and its fruit, if the runner is watched.

        Args:
            runner: whose they are.
            image: its statistics.
            fruits: of the answer.
            size: of the image.
        """
        name = runner.entry.name
        if runner.reference is None or not self.watches(runner):
            return
        known, watch = self._watches.get(name, (None, None))
        if watch is None or known is not runner:
            watch = DriftWatch(name, runner.reference, self.observer)
            self._watches[name] = runner, watch
        watch.saw(image, fruits, size)


class DriftWatch:
    """Windows of recent numbers of one revision; for one thread.

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
        """Add an image and its fruit; see `DriftWatches.saw`."""
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
