"""Random changes of images: moved, rotated, lit, blurred and noisy.

Classes move with the image, by the nearest neighbour, because classes cannot be interpolated. Changes of colour are one
linear map of red, green and blue, so that they cost one pass over the image.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Final, TypeVar

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from models.data.samples import InstanceMap
from models.training.errors import CannotTrain
from models.types import PixelClass, Pixels, SemanticMap, Size
from models.unet.constants import PADDING

_LUMA: Final = np.array((0.299, 0.587, 0.114))  # ITU-R BT.601
_CHANCE: Final = 0.3  # probability of blur, and of noise

_Whole = TypeVar("_Whole", np.uint8, np.uint16)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far images are changed at random.

    Attributes:
        flip: probability of a horizontal flip, 0 to 1.
        flip_vertical: probability of a vertical flip.
        rotation: largest rotation in degrees.
        smallest: smallest factor on the scale at which the network would see the image, above 0.
        largest: largest factor, at least `smallest`.
        brightness: largest difference from 1 of the factor on all light, 0 to 1.
        contrast: likewise of the factor on differences from the mean of the image.
        saturation: likewise of the factor on differences from grey.
        hue: largest rotation about the axis of greys in degrees.
        mirror: probability that an image goes on mirrored where its crop is larger, instead of with padding.
        blur: largest standard deviation in pixels.
        noise: largest standard deviation, of 255.
        gamma: largest logarithm of the exponent on brightness, either way.
        jpeg: probability of artefacts of JPEG compression.
        shadow: probability of shadows.
        fruit_colour: probability of another colour of all fruit.
        rot: probability of rot painted on fruit, if the annotation separates fruits.
        lesions: probability of lesions of another fruit transferred to a fruit, likewise.
        paste: probability of fruits of other images pasted into an image; into one without fruit three times as high.

    Raises:
        CannotTrain: a number is out of range.
    """

    flip: float = 0.5
    flip_vertical: float = 0.5
    rotation: float = 20.0
    smallest: float = 0.6
    largest: float = 1.6
    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.35
    hue: float = 10.0
    mirror: float = 0.6
    blur: float = 1.5
    noise: float = 10.0
    gamma: float = 0.35
    jpeg: float = 0.3
    shadow: float = 0.2
    fruit_colour: float = 0.3
    rot: float = 0.25
    lesions: float = 0.2
    paste: float = 0.2

    def __post_init__(self) -> None:
        shares = (
            *(self.flip, self.flip_vertical, self.brightness, self.contrast, self.saturation, self.gamma, self.mirror),
            *(self.jpeg, self.shadow, self.fruit_colour, self.rot, self.lesions, self.paste),
        )
        others = (self.rotation, self.hue, self.blur, self.noise)
        if not all(0 <= each <= 1 for each in shares) or not all(0 <= each <= 360 for each in others):
            raise CannotTrain(
                f"Augmentation: probabilities and factors must be 0 to 1, angles and deviations 0 to 360, got {self}."
            )
        if not 0 < self.smallest <= self.largest < math.inf:
            raise CannotTrain(
                f"Augmentation: scales must be above 0 and rising, got {self.smallest} to {self.largest}."
            )


UNCHANGED: Final = Augmentation(0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""No change; only the visible part of an image that is larger than its crop is random."""


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """How an image is placed in a crop.

    Attributes:
        matrix: float64 (2, 3), from x, y of the image to x, y of the crop; corners of pixels have whole coordinates.
        scale: its scale, above 0.
        crop: size of the crop.
        mirrored: whether the image goes on mirrored outside its edges, so that every pixel of the crop counts.
    """

    matrix: NDArray[np.float64]
    scale: float
    crop: Size
    mirrored: bool = False


def place(
    size: Size,
    crop: Size,
    scale: float,
    augmentation: Augmentation,
    rng: np.random.Generator,
    *,
    about: tuple[float, float] | None = None,
) -> Placement:
    """Place an image in a crop at random.

    Args:
        size: size of the image.
        crop: size of the crop.
        scale: crop pixels per image pixel before augmentation.
        augmentation: how far to move the image.
        rng: random generator.
        about: x and y of the image to place within a quarter of the crop from its centre; None for no such point.

    Returns:
        The placement. Without `about` and before rotation, in each direction the image lies within the crop or the crop
        within the image.
    """
    factor = math.exp(rng.uniform(math.log(augmentation.smallest), math.log(augmentation.largest)))
    scale *= factor
    angle = math.radians(rng.uniform(-augmentation.rotation, augmentation.rotation))
    mirror = np.where(rng.random(2) < (augmentation.flip, augmentation.flip_vertical), -1.0, 1.0)
    image, window = np.array((size.width, size.height)), np.array((crop.width, crop.height))
    middle, slack = image / 2, np.abs(image * scale - window) / 2
    if about is not None:
        middle, slack = np.array(about), window / 4
        # Not beyond the edges, as far as the image is larger than the crop.
        reach = np.maximum(image * scale - window, 0) / 2
        middle = image / 2 + np.clip((middle - image / 2) * scale, -reach, reach) / scale
    shift = rng.uniform(-slack, slack)
    turn = np.array(((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))))
    linear = scale * turn @ np.diag(mirror)
    offset = window / 2 + turn @ shift - linear @ middle
    return Placement(np.column_stack((linear, offset)), scale, crop, bool(rng.random() < augmentation.mirror))


def move_pixels(pixels: Pixels, placement: Placement) -> Pixels:
    """Move an image into its crop; outside the image is `PADDING`, or the mirrored image.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        placement: placement of the image.

    Returns:
        uint8 of size `placement.crop`; shrunk as by `models.letterbox.resize`.
    """
    height, width = pixels.shape[:2]
    matrix = placement.matrix
    if placement.scale < 1:
        # First the averaging filter that serving uses, because the warp alone would skip pixels.
        small = max(1, round(width * placement.scale)), max(1, round(height * placement.scale))
        pixels = np.asarray(PIL.Image.fromarray(pixels).resize(small, PIL.Image.Resampling.BILINEAR))
        matrix = matrix @ np.diag((width / small[0], height / small[1], 1.0))
    return _warped(pixels, matrix, placement.crop, cv2.INTER_LINEAR, None if placement.mirrored else PADDING)


def move_classes(semantic: SemanticMap, placement: Placement) -> SemanticMap:
    """Move the classes of an image into its crop; outside the image is IGNORE, or the mirrored image.

    Args:
        semantic: uint8 (height, width) of `PixelClass`.
        placement: placement of the image.

    Returns:
        uint8 of size `placement.crop`.
    """
    outside = None if placement.mirrored else (int(PixelClass.IGNORE),)
    return _warped(semantic, placement.matrix, placement.crop, cv2.INTER_NEAREST, outside)


def move_instances(instance_map: InstanceMap, placement: Placement) -> InstanceMap:
    """Move the fruits of an image into its crop; outside the image is none.

    Args:
        instance_map: uint16 (height, width).
        placement: placement of the image.

    Returns:
        uint16 of size `placement.crop`.
    """
    return _warped(instance_map, placement.matrix, placement.crop, cv2.INTER_NEAREST, (0,))


def recolour(pixels: Pixels, augmentation: Augmentation, rng: np.random.Generator) -> Pixels:
    """Change light and colours, blur and add noise, at random.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        augmentation: how far to change the image.
        rng: random generator.

    Returns:
        uint8 of the same shape.
    """
    changed = _relit(pixels, augmentation, rng)
    if augmentation.gamma:
        exponent = math.exp(rng.uniform(-augmentation.gamma, augmentation.gamma))
        changed = np.asarray(cv2.LUT(changed, np.rint(255 * (np.arange(256) / 255) ** exponent).astype(np.uint8)))
    if augmentation.blur and rng.random() < _CHANCE:
        deviation = max(1e-3, rng.uniform(0, augmentation.blur))
        changed = np.asarray(cv2.GaussianBlur(changed, (0, 0), deviation), np.uint8)
    if augmentation.noise and rng.random() < _CHANCE:
        deviation = rng.uniform(0, augmentation.noise)
        noisy = changed + np.float32(deviation) * rng.standard_normal(changed.shape, np.float32)
        changed = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    if rng.random() < augmentation.jpeg:
        changed = _compressed(changed, int(rng.integers(25, 95)))
    return changed


def _compressed(pixels: Pixels, quality: int) -> Pixels:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.array(PIL.Image.open(file))


def _relit(pixels: Pixels, augmentation: Augmentation, rng: np.random.Generator) -> Pixels:
    spans = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
    brightness, contrast, saturation = (1 + rng.uniform(-span, span) for span in spans)
    angle = math.radians(rng.uniform(-augmentation.hue, augmentation.hue))
    if not any((*spans, augmentation.hue)):
        return pixels
    grey = np.tile(_LUMA, (3, 1))
    colours = saturation * (_about_greys(angle) @ (np.eye(3) - grey)) + grey
    mean = float(_LUMA @ np.array(cv2.mean(pixels)[:3]))
    linear = brightness * contrast * colours
    offset = brightness * (1 - contrast) * mean
    return np.asarray(cv2.transform(pixels, np.column_stack((linear, np.full(3, offset)))), np.uint8)


def _about_greys(angle: float) -> NDArray[np.float64]:
    """Return the rotation (3, 3) about (1, 1, 1): Rodrigues' formula."""
    axis = np.full(3, 1 / math.sqrt(3))
    cross = np.array(((0, -axis[2], axis[1]), (axis[2], 0, -axis[0]), (-axis[1], axis[0], 0)))
    return np.asarray(np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross)


def _warped(
    values: NDArray[_Whole],
    matrix: NDArray[np.float64],
    crop: Size,
    interpolation: int,
    outside: tuple[int, ...] | None,
) -> NDArray[_Whole]:
    """Move values; outside is one value, or the mirrored image."""
    # In OpenCV, whole coordinates are the centres of pixels.
    matrix = matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ (0.5, 0.5) - 0.5
    size = (crop.width, crop.height)
    border = cv2.BORDER_REFLECT if outside is None else cv2.BORDER_CONSTANT
    moved = cv2.warpAffine(values, matrix, size, flags=interpolation, borderMode=border, borderValue=outside or (0,))
    return np.asarray(moved, values.dtype)
