"""What decides how a U-Net is trained, and two sets of choices by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from models.training.augmentation import Augmentation
from models.training.errors import CannotTrain
from models.training.fitting import FitOptions
from models.training.losses import read_loss
from models.types import Size
from models.unet.build import ENCODERS
from models.unet.letterbox import INPUT_SIZE, STRIDE

EncoderWeights: TypeAlias = Literal["none", "imagenet"]

CROPS: Final = (Size(224, 448), Size(448, 224), Size(256, 384), Size(384, 256), Size(288, 320), Size(320, 288))
"""Shapes of batches that cover about the area that serving uses, for images of 2:1 to 1:2."""

CLOSE: Final = Size(192, 192)
LOOKS: Final = 3
"""Close looks at one image: together about the area of one crop."""


@dataclass(frozen=True, slots=True)
class UNetOptions:
    """How a U-Net is trained.

    Attributes:
        fit: epochs, learning rate, averaging, patience, seed.
        architecture: a key of `models.unet.build.ENCODERS`.
        encoder_weights: what the encoder begins from.
        begin_from: checkpoint of a U-Net of that architecture to begin from, such as another run's; None for chance.
        loss: as `models.training.losses.read_loss` reads it.
        batch: images at a time.
        crops: shapes that batches may have, each drawn by lot.
        close: share of the batches that look closely, with `LOOKS` crops of size `CLOSE` of each image about points
            of its fruit and lesions, instead of once at its whole; in the last quarter of the epochs none does.
        augmentation: how far images are changed.
        rendered: rendered scenes in an epoch, new ones in each.
        rendered_validation: rendered scenes to validate on, always the same; none where `rendered` is 0.

    Raises:
        CannotTrain: a choice that is none.
    """

    fit: FitOptions
    architecture: str = "unet-mobilenetv2"
    encoder_weights: EncoderWeights = "none"
    begin_from: Path | None = None
    loss: str = "dice+cross-entropy"
    batch: int = 8
    crops: tuple[Size, ...] = CROPS
    close: float = 0.5
    augmentation: Augmentation = field(default_factory=Augmentation)
    rendered: int = 0
    rendered_validation: int = 48

    def __post_init__(self) -> None:
        read_loss(self.loss)
        if self.architecture not in ENCODERS:
            raise CannotTrain(f"There is no U-Net {self.architecture!r}; there are {', '.join(ENCODERS)}.")
        if self.encoder_weights == "imagenet" and self.architecture != "unet-mobilenetv2":
            raise CannotTrain("ImageNet weights are at hand for unet-mobilenetv2 alone.")
        if self.begin_from is not None and self.encoder_weights != "none":
            raise CannotTrain("A checkpoint to begin from has an encoder of its own: give no encoder weights with it.")
        if self.batch < 2:
            raise CannotTrain(f"Batches of {self.batch}: batch normalisation needs at least 2 images.")
        if not 0 <= self.close <= 1:
            raise CannotTrain(f"A share of {self.close} of close looks: it is 0 to 1.")
        if self.rendered < 0 or self.rendered_validation < 0:
            raise CannotTrain("Numbers of rendered scenes are at least 0.")
        if not self.crops or any(crop.height % STRIDE or crop.width % STRIDE for crop in self.crops):
            raise CannotTrain(f"Crops need sides that are multiples of {STRIDE}.")


PRESETS: Final[Mapping[str, UNetOptions]] = MappingProxyType({
    "default": UNetOptions(FitOptions(epochs=60, averaging=0.99, patience=15), batch=8),
    "study": UNetOptions(
        FitOptions(
            epochs=150,
            optimiser="adam",
            learning_rate=1e-3,
            weight_decay=0.0,
            schedule="constant",
            warm_up=0.0,
            clip=0.0,
        ),
        architecture="unet-resnet18",
        loss="dice",
        batch=256,
        crops=(Size(INPUT_SIZE.width, INPUT_SIZE.height),),
        close=0.0,
    ),
})  # fmt: skip
"""Where to begin from. "study" is the study's recipe; it names no learning rate, so Adam's own is taken."""
