"""Images to measure on, as a service gets them; rendered scenes among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from models import images
from models.data.samples import Sample
from models.evaluation.errors import CannotEvaluate
from models.masks import MAX_PIXELS
from models.synthetic import encode_jpeg, render
from models.types import Size

RENDERED: Final = "rendered"

FIRST_SEED: Final = 0
END_OF_SEEDS: Final = 500_000
"""From here on scenes are validated and trained on, see `models.training.unet_data`."""

SIZES: Final = (Size(224, 448), Size(480, 640), Size(768, 1024), Size(640, 480))
"""Of rendered scenes, in turn."""


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """One annotated image as a service gets it.

    Attributes:
        sample: the image and what is known of it.
        data: its file.
    """

    sample: Sample
    data: bytes

    def untold(self) -> Shot:
        """The same, as if nobody had told its fruits apart."""
        return replace(self, sample=replace(self.sample, instances=(), instance_map=None))


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images to measure on, loaded one at a time.

    Attributes:
        name: unique.
        title: for people.
        description: what they are.
        names: of the images.
        load: gives one of them.
        told_apart: whether the annotation says of all of them which pixel belongs to which fruit.
    """

    name: str
    title: str
    description: str
    names: tuple[str, ...]
    load: Callable[[str], Shot]
    told_apart: bool

    def __iter__(self) -> Iterator[Shot]:
        return map(self.load, self.names)


def rendered_set(count: int) -> ImageSet:
    """Scenes that nothing here is trained or validated on, as JPEG files.

    Args:
        count: how many, 1 to 500,000.

    Returns:
        The set, of `SIZES` in turn.

    Raises:
        CannotEvaluate: another count.
    """
    if not 1 <= count <= END_OF_SEEDS - FIRST_SEED:
        raise CannotEvaluate(f"{count} rendered scenes: 1 to {END_OF_SEEDS - FIRST_SEED:,} can be measured on.")
    seeds = {str(seed): SIZES[place % len(SIZES)] for place, seed in enumerate(range(FIRST_SEED, FIRST_SEED + count))}
    sizes = ", ".join(f"{size.width} x {size.height}" for size in SIZES)
    return ImageSet(
        name=RENDERED,
        title="Rendered scenes",
        description=(
            f"Scenes drawn by this project's renderer, seeds {FIRST_SEED} to {FIRST_SEED + count - 1}, {sizes} in "
            "turn, as JPEG. No model was trained, validated or chosen on them. Their masks are exact: background, "
            "healthy and infected."
        ),
        names=tuple(seeds),
        load=lambda seed: _as_file(render(int(seed), seeds[seed])),
        told_apart=True,
    )


def _as_file(sample: Sample) -> Shot:
    data = encode_jpeg(sample)
    return Shot(replace(sample, pixels=images.decode(data, max_pixels=MAX_PIXELS).pixels), data)
