"""What a U-Net sees and says on validation images, written beside its weights for `models.drift`."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from models.data.sources import DataSource, open_sources
from models.drift import (
    REFERENCES,
    STATISTICS,
    Reference,
    Statistic,
    fit_distribution,
    fruit_size,
    image_statistics,
)
from models.inspection import inspect
from models.letterbox import resize
from models.training.errors import CannotTrain
from models.training.options import Machine
from models.unet.build import PixelsToLogits, build_unet
from models.unet.letterbox import pad, unet_letterbox
from models.weights.checkpoints import load_state_dict, sha256_of

_log = logging.getLogger("pomona.training")


def write_weights_reference(
    weights: Path, architecture: str, area: int | None, sources: Sequence[DataSource], machine: Machine
) -> None:
    """Describe the validation images of sources and a network's answers to them, and write that beside its weights.

    Raises:
        CannotTrain: there is no such checkpoint, or there are too few images.
        DataError: a set cannot be used.
        BadCheckpoint: the weights cannot be read.
        OSError: the file cannot be written.
    """
    if not weights.is_file():
        raise CannotTrain(f"{weights}: there is no such checkpoint.")
    network = PixelsToLogits(build_unet(architecture, load_state_dict(weights))).to(machine.device)
    values: dict[Statistic, list[float]] = defaultdict(list)
    images = 0
    for source in open_sources(sources):
        for name in source.validation:
            sample = source.dataset.load(name)
            letterbox = unet_letterbox(sample.size, area)
            pixels = resize(sample.pixels, letterbox)
            with torch.inference_mode():
                batch = torch.from_numpy(pad(pixels, letterbox))[None].to(machine.device)
                output = network(batch)[0].float().cpu().contiguous().numpy()
            fruits = inspect(output, letterbox).fruits
            for statistic, value in image_statistics(pixels).items():
                values[statistic].append(value)
            values["fruit_count"].append(len(fruits))
            values["fruit_size"] += [fruit_size(fruit.area, sample.size) for fruit in fruits]
            values["infected_fraction"] += [fruit.infected_fraction for fruit in fruits]
            values["confidence"] += [fruit.confidence for fruit in fruits]
            images += 1
    fitted = {name: found for name in STATISTICS if (found := fit_distribution(values[name])) is not None}
    if not fitted:
        raise CannotTrain(f"A reference needs at least 30 validation images, got {images}.")
    REFERENCES.write(Reference(sha256_of(weights), images, fitted), weights)
    _log.info("%s: %d images, %s", REFERENCES.path(weights), images, ", ".join(fitted))
