"""Samples as files: `images/NAME.jpg`, `masks/NAME.png`, `instances/NAME.png`."""

from __future__ import annotations

from pathlib import Path

import PIL.Image

from models.data.samples import Sample
from models.synthetic.camera import jpeg

_QUALITY = 92


def write_sample(folder: Path, sample: Sample) -> None:
    """Write an image and its masks; files of the same name are overwritten.

    Args:
        folder: the data set's; folders in it are made where they are missing.
        sample: written as JPEG of quality 92, its semantic map as 8-bit PNG (0 background, 1 healthy, 2 infected) and
            its instance map as 16-bit PNG (0 where there is no fruit).

    Raises:
        OSError: the files cannot be written.
    """
    for part in ("images", "masks", "instances"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "images" / f"{sample.name}.jpg").write_bytes(jpeg(sample.pixels, _QUALITY))
    PIL.Image.fromarray(sample.semantic).save(folder / "masks" / f"{sample.name}.png")
    if sample.instance_map is not None:
        PIL.Image.fromarray(sample.instance_map).save(folder / "instances" / f"{sample.name}.png")
