"""Everything that decides how a model is trained, and the machine that a run uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, TypeAlias, get_args

from models.catalog import LEAST_INPUT_AREA, MAX_INPUT_AREA, Architecture, SamInputSize
from models.letterbox import Padding
from models.sam.constants import INPUT_SIDE, PADDING_STEP
from models.training.augmentation import Augmentation
from models.training.errors import CannotTrain
from models.training.losses import read_loss
from models.types import Size
from models.unet.build import ENCODERS
from models.unet.letterbox import INPUT_SIZE, STRIDE, unet_letterbox

Optimiser: TypeAlias = Literal["adam", "adamw"]
"""Adam (Kingma and Ba, ICLR 2015), or with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""

Schedule: TypeAlias = Literal["constant", "cosine"]
"""How the learning rate falls: not at all, or along half a cosine (Loshchilov and Hutter, "SGDR", ICLR 2017)."""

EncoderWeights: TypeAlias = Literal["none", "imagenet"]

_ASPECTS: Final = (Size(1, 2), Size(2, 1), Size(2, 3), Size(3, 2), Size(9, 10), Size(10, 9))


def crops_of(area: int) -> tuple[Size, ...]:
    """Return shapes of batches for images of 2:1 to 1:2 that have at most an area in pixels, such as 448 x 224."""
    return tuple(unet_letterbox(aspect, area).padded for aspect in _ASPECTS)


LOOKS: Final = 2
"""Number of close-ups of one image."""

_FLEXIBLE: Final = frozenset({Architecture.MOBILE_SAM})
"""Architectures whose encoders have no absolute position embeddings."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run uses; none of it decides what is learned.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        workers: number of processes that prepare images; 0 prepares them in the process that trains.
        cache_dir: folder of downloads.
        mixed: whether to use 16-bit arithmetic where the device is faster with it.
        progress: whether to show progress bars on a terminal.
    """

    device: str
    workers: int
    cache_dir: Path
    mixed: bool = True
    progress: bool = True


@dataclass(frozen=True, slots=True)
class Product:
    """The model that a run makes.

    Attributes:
        out: folder of the run.
        name: name of the model in requests.
        licence: licence of its weights.
    """

    out: Path
    name: str
    licence: str


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How weights are fitted.

    Attributes:
        epochs: largest number of epochs, at least 1.
        optimiser: "adam" or "adamw".
        learning_rate: the highest learning rate.
        weight_decay: decay of weights; biases and the scales of normalisations do not decay.
        schedule: how the learning rate falls.
        warm_up: share of all steps in which the learning rate rises, 0 to 1.
        clip: largest norm of the gradients, larger ones are scaled down; 0 for no limit.
        averaging: decay of the exponential average of the weights, 0 (no average) to below 1.
        patience: epochs without a better validation after which to stop; 0 never stops.
        min_delta: by how much a score must exceed the best to reset the patience.
        seed: seed of everything random.

    Raises:
        CannotTrain: a number is out of range.
    """

    epochs: int
    optimiser: Optimiser = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Schedule = "cosine"
    warm_up: float = 0.05
    clip: float = 1.0
    averaging: float = 0.0
    patience: int = 0
    min_delta: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "epochs": (self.epochs >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < math.inf, "above 0"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "at least 0"),
            "warm_up": (0 <= self.warm_up <= 1, "0 to 1"),
            "clip": (0 <= self.clip < math.inf, "at least 0"),
            "averaging": (0 <= self.averaging < 1, "at least 0 and below 1"),
            "patience": (self.patience >= 0, "at least 0"),
            "min_delta": (0 <= self.min_delta < math.inf, "at least 0"),
            "seed": (self.seed >= 0, "at least 0"),
        }
        for name, (valid, bounds) in checks.items():
            if not valid:
                raise CannotTrain(f"{name} must be {bounds}, got {getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class UNetOptions:
    """How a U-Net is trained.

    Attributes:
        fit: epochs, learning rate, averaging, patience, seed.
        architecture: a key of `models.unet.build.ENCODERS`.
        encoder_weights: initial weights of the encoder.
        begin_from: checkpoint of a U-Net of that architecture to start from, such as another run's; None for none.
        loss: loss of the classes, see `models.training.losses.read_loss`.
        batch: number of images in a batch.
        area: most pixels of an image in the network, as it will be served.
        crops: shapes that batches may have, chosen at random; of about that area.
        close: share of the batches of close-ups, `LOOKS` square crops of each image around points of its fruit and
            lesions, instead of whole images; in the last quarter of the epochs there are none.
        close_side: side of a close-up in pixels.
        augmentation: how far images are changed.
        rendered: number of rendered scenes in an epoch, new ones in each.
        rendered_validation: number of rendered scenes to validate on, always the same; none if `rendered` is 0.

    Raises:
        CannotTrain: an option is out of range or not supported.
    """

    fit: FitOptions
    architecture: str = "unet-mobilenetv2"
    encoder_weights: EncoderWeights = "none"
    begin_from: Path | None = None
    loss: str = "dice+cross-entropy+0.5*tversky"
    batch: int = 8
    area: int = INPUT_SIZE.pixels
    crops: tuple[Size, ...] = crops_of(INPUT_SIZE.pixels)
    close: float = 0.5
    close_side: int = 192
    augmentation: Augmentation = field(default_factory=Augmentation)
    rendered: int = 0
    rendered_validation: int = 48

    def __post_init__(self) -> None:
        read_loss(self.loss)
        if self.architecture not in ENCODERS:
            raise CannotTrain(f"architecture must be one of {', '.join(ENCODERS)}, got {self.architecture!r}.")
        if self.encoder_weights == "imagenet" and self.architecture != "unet-mobilenetv2":
            raise CannotTrain(f"ImageNet weights exist only for unet-mobilenetv2, not for {self.architecture}.")
        if self.begin_from is not None and self.encoder_weights != "none":
            raise CannotTrain(
                "encoder_weights must be none with a checkpoint to begin from, which has its own encoder."
            )
        if self.batch < 2:
            raise CannotTrain(f"batch must be at least 2 because of batch normalisation, got {self.batch}.")
        if not 0 <= self.close <= 1:
            raise CannotTrain(f"close must be 0 to 1, got {self.close}.")
        if self.rendered < 0 or self.rendered_validation < 0:
            raise CannotTrain(
                f"Numbers of rendered scenes must be at least 0, got {self.rendered} and {self.rendered_validation}."
            )
        if self.close_side < STRIDE or self.close_side % STRIDE:
            raise CannotTrain(f"close_side must be a multiple of {STRIDE}, got {self.close_side}.")
        if not LEAST_INPUT_AREA <= self.area <= MAX_INPUT_AREA:
            raise CannotTrain(f"area must be {LEAST_INPUT_AREA} to {MAX_INPUT_AREA}, got {self.area}.")
        if not self.crops or any(crop.height % STRIDE or crop.width % STRIDE for crop in self.crops):
            raise CannotTrain(f"Sides of crops must be multiples of {STRIDE}, got {self.crops}.")


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
"""Named recipes. "study" is the recipe of the study; the study names no learning rate, so it is Adam's default."""


@dataclass(frozen=True, slots=True)
class SamLossWeights:
    """Weights of the parts of a SAM's loss.

    Attributes:
        focal: weight of the focal loss of the mask.
        dice: weight of the dice loss of the mask.
        iou: weight of the squared error of the predicted IoU.

    Raises:
        CannotTrain: a weight is negative or not finite, or there is no mask loss.
    """

    focal: float = 20.0
    dice: float = 1.0
    iou: float = 1.0

    def __post_init__(self) -> None:
        weights = (self.focal, self.dice, self.iou)
        if not all(0 <= weight < math.inf for weight in weights) or self.focal + self.dice == 0:
            raise CannotTrain(f"Loss weights must be at least 0, and focal or dice above 0, got {weights}.")


@dataclass(frozen=True, slots=True)
class SamOptions:
    """How a SAM is fine-tuned.

    Attributes:
        fit: epochs, learning rate, averaging, patience, seed.
        model: name of the catalogue entry to start from.
        sides: sides of the model's square at which it will be served, each different: 1024, 768, 512, or other
            multiples of 64. An epoch shows every image at each.
        padding: padding at which it will be served.
        batch: largest number of prompts in a batch.
        rounds: corrections after the first prompt of each fruit: a click on an error of the previous answer, with that
            answer as a mask prompt.
        loss: weights of the parts of the loss.

    Raises:
        CannotTrain: an option is out of range.
    """

    fit: FitOptions = field(default_factory=lambda: FitOptions(epochs=10, learning_rate=1e-4, patience=4))
    model: str = "mobile-sam"
    sides: tuple[int, ...] = (INPUT_SIDE,)
    padding: Padding = "square"
    batch: int = 16
    rounds: int = 1
    loss: SamLossWeights = field(default_factory=SamLossWeights)

    def __post_init__(self) -> None:
        if not self.sides or len(set(self.sides)) < len(self.sides):
            raise CannotTrain(f"Input sizes must be different, and at least one, got {self.sides}.")
        for side in self.sides:
            if side < PADDING_STEP or side % PADDING_STEP:
                raise CannotTrain(f"The input size must be a multiple of {PADDING_STEP}, got {side}.")
        if self.padding not in ("none", "square"):
            raise CannotTrain(f"padding must be 'none' or 'square', got {self.padding!r}.")
        if self.batch < 1 or self.rounds < 0:
            raise CannotTrain(f"batch must be at least 1 and rounds at least 0, got {self.batch} and {self.rounds}.")

    @property
    def input_size(self) -> SamInputSize | None:
        """Size to serve it at where a request has none: the largest of `sides`; None for 1024, and for unnamed ones."""
        served = [size for size in get_args(SamInputSize) if size in self.sides]
        return None if not served or INPUT_SIDE in served else max(served)

    def check_fits(self, architecture: Architecture) -> None:
        """Reject an architecture that cannot be trained with these options.

        Raises:
            CannotTrain: it is not a SAM, or does not accept that side and padding.
        """
        if architecture.family != "sam":
            raise CannotTrain(f"{self.model} is a {architecture}, not a SAM.")
        if architecture not in _FLEXIBLE and (self.sides != (INPUT_SIDE,) or self.padding != "square"):
            raise CannotTrain(
                f"{self.model} is a {architecture}, whose position embeddings need the padded square of {INPUT_SIDE} "
                f"pixels: use --size {INPUT_SIDE} --padding square."
            )
