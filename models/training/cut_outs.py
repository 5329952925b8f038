"""Fruits cut out of annotated images, pasted into other images, and their lesions transferred to other fruit.

Dwibedi, Misra and Hebert, "Cut, Paste and Learn" (ICCV 2017); Ghiasi et al., "Simple Copy-Paste" (CVPR 2021). Few
photographs of lesions and many without fruit so become many of both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.data.samples import InstanceMap, Sample
from models.training.fruit_changes import blend, soft
from models.training.image_pool import ImagePool
from models.types import BinaryMask, PixelClass, Pixels, SemanticMap

_LEAST_PIXELS: Final = 250
"""Smallest fruit to cut out, in pixels of its image."""

_TRIES: Final = 8
"""Images to try for a cut-out; some have no fruit, or no lesion."""

_MOST: Final = 7
"""Most fruits pasted into an image."""

_SMALLEST: Final = 12.0
"""Smallest diameter of a pasted fruit in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class CutOut:
    """One fruit of an image with its surroundings.

    Attributes:
        pixels: uint8 (height, width, 3), RGB.
        classes: uint8 (height, width) of `PixelClass`.
        mask: bool (height, width) of the fruit, not empty.
    """

    pixels: Pixels
    classes: SemanticMap
    mask: BinaryMask


def cut_fruit(pool: ImagePool, rng: np.random.Generator, *, lesions: bool = False) -> CutOut | None:
    """Cut a random fruit out of a random image.

    Args:
        pool: images.
        rng: random generator.
        lesions: whether the fruit must have both infected and healthy pixels.

    Returns:
        The cut-out, or None if none was found in a few tries.

    Raises:
        DataError: an image cannot be used.
    """
    for _ in range(_TRIES):
        sample = pool.choose(rng)
        found = None if sample is None else _cut(sample, rng, lesions=lesions)
        if found is not None:
            return found
    return None


def _cut(sample: Sample, rng: np.random.Generator, *, lesions: bool) -> CutOut | None:
    if sample.instance_map is None or not sample.instances:
        return None
    for index in rng.permutation(len(sample.instances))[:3].tolist():
        instance = sample.instances[index]
        if lesions and instance.pixel_class is not PixelClass.INFECTED:
            continue
        x0, y0, x1, y1 = instance.box
        # A fruit that the image cuts off would have a straight edge elsewhere.
        if not lesions and (min(x0, y0) < 2 or x1 > sample.size.width - 2 or y1 > sample.size.height - 2):
            continue
        mask = sample.instance_map[y0:y1, x0:x1] == instance.id
        cut = CutOut(sample.pixels[y0:y1, x0:x1], sample.semantic[y0:y1, x0:x1], mask)
        enough = np.count_nonzero(mask) >= _LEAST_PIXELS
        if enough and (not lesions or np.count_nonzero(mask & (cut.classes == PixelClass.HEALTHY)) >= _LEAST_PIXELS):
            return cut
    return None


def paste_fruits(
    pixels: Pixels,
    classes: SemanticMap,
    instance_map: InstanceMap,
    cuts: Sequence[CutOut],
    rng: np.random.Generator,
) -> tuple[Pixels, SemanticMap, InstanceMap]:
    """Paste fruits at random places and sizes, some behind leaf-shaped parts of the image.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        classes: uint8 (height, width) of `PixelClass`.
        instance_map: uint16 (height, width), 0 where there is no fruit.
        cuts: fruits to paste.
        rng: random generator.

    Returns:
        Pixels, classes and fruits, changed copies.
    """
    pixels, classes, instance_map = pixels.copy(), classes.copy(), instance_map.copy()
    height, width = classes.shape
    largest = 0.75 * min(height, width)
    # Fruits of one image are of similar size.
    typical = math.exp(rng.uniform(math.log(_SMALLEST), math.log(largest)))
    match = rng.uniform(0, 0.8)
    for cut in cuts:
        own = 2 * math.sqrt(np.count_nonzero(cut.mask) / math.pi)
        scale = min(typical * rng.uniform(0.75, 1.3), largest) / own
        if scale > 2:  # too few pixels to look sharp
            continue
        matrix = _turned(cut.mask.shape, scale, (rng.uniform(0, width), rng.uniform(0, height)), rng)
        alpha = _moved(soft(cut.mask, max(0.6, 0.5 / scale)), matrix, (width, height), scale)
        shape = _moved(cut.mask.astype(np.float32), matrix, (width, height), scale) > 0.5
        alpha *= shape
        if rng.random() < 0.4:
            alpha *= 1 - _leaves(shape, typical, rng)
        if np.count_nonzero(alpha > 0.5) < _SMALLEST:
            continue
        source = _moved(cut.pixels, matrix, (width, height), scale).astype(np.float32)
        gain = float(np.clip((pixels.mean() + 20) / (source[shape].mean() + 20), 0.4, 1.6)) ** match
        edge = np.asarray(cv2.GaussianBlur(alpha, (0, 0), 0.6), np.float32) * (alpha > 0.05)
        pixels = blend(pixels, np.clip(source * gain, 0, 255), edge)
        inside = alpha > 0.5
        labels = cv2.warpAffine(cut.classes, matrix, (width, height), flags=cv2.INTER_NEAREST)
        # Nearest neighbours may lie outside the fruit along its edge.
        labels[inside & ((labels == PixelClass.BACKGROUND) | (labels == PixelClass.IGNORE))] = PixelClass.FRUIT
        classes[inside] = labels[inside]
        instance_map[inside] = instance_map.max() + 1
    return pixels, classes, instance_map


def number_to_paste(rng: np.random.Generator) -> int:
    """Choose how many fruits to paste into one image: few more often than many."""
    return int(min(rng.geometric(0.35), _MOST))


def transfer_lesions(
    pixels: Pixels, classes: SemanticMap, target: BinaryMask, donor: CutOut, rng: np.random.Generator
) -> tuple[Pixels, SemanticMap]:
    """Transfer the lesions of a fruit to another: how much darker or paler they are than the healthy skin around.

    Args:
        pixels: uint8 (height, width, 3), RGB.
        classes: uint8 (height, width) of `PixelClass`.
        target: bool (height, width), the fruit to change, not empty.
        donor: fruit with infected and healthy pixels.
        rng: random generator.

    Returns:
        Pixels and classes, changed copies; transferred lesions are INFECTED.
    """
    rows, columns = np.flatnonzero(target.any(axis=1)), np.flatnonzero(target.any(axis=0))
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    infected = donor.mask & (donor.classes == PixelClass.INFECTED)
    skin = np.median(donor.pixels[donor.mask & (donor.classes == PixelClass.HEALTHY)], axis=0).astype(np.float32) + 4
    change = np.clip((donor.pixels + np.float32(4)) / skin, 0.1, 2.5)
    # The donor's box is put onto the target's: what was at the rim stays there.
    turns = int(rng.integers(4))
    infected, change = np.rot90(infected, turns), np.rot90(change, turns)
    if rng.random() < 0.5:
        infected, change = infected[:, ::-1], change[:, ::-1]
    size = (int(right - left), int(bottom - top))
    alpha = cv2.resize(np.ascontiguousarray(infected, np.float32), size, interpolation=cv2.INTER_AREA)
    change = cv2.resize(np.ascontiguousarray(change), size, interpolation=cv2.INTER_AREA)
    window = slice(top, bottom), slice(left, right)
    free = target[window] & (classes[window] != PixelClass.IGNORE)
    there = (alpha > 0.5) & free
    alpha = cv2.GaussianBlur(alpha * free, (0, 0), 0.6)
    pixels, classes = pixels.copy(), classes.copy()
    pixels[window] = blend(pixels[window], pixels[window] * change, alpha)
    classes[window][there] = PixelClass.INFECTED
    return pixels, classes


def _turned(
    shape: tuple[int, ...], scale: float, middle: tuple[float, float], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return the matrix (2, 3) that turns, scales and moves a cut-out to a middle."""
    angle = rng.uniform(-math.pi, math.pi) if rng.random() < 0.5 else rng.uniform(-0.3, 0.3)
    turn = scale * np.array(((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))))
    if rng.random() < 0.5:
        turn[:, 0] *= -1
    offset = np.array(middle) - turn @ (np.array((shape[1], shape[0])) / 2)
    return np.column_stack((turn, offset))


def _moved(
    values: NDArray[np.uint8] | NDArray[np.float32],
    matrix: NDArray[np.float64],
    size: tuple[int, int],
    scale: float,
) -> NDArray[np.float32]:
    values = values.astype(np.float32)
    if scale < 0.7:  # averages first: the warp alone would skip pixels
        small = max(2, round(values.shape[1] * scale)), max(2, round(values.shape[0] * scale))
        shrink = np.diag((values.shape[1] / small[0], values.shape[0] / small[1], 1.0))
        values, matrix = (
            np.asarray(cv2.resize(values, small, interpolation=cv2.INTER_AREA), np.float32),
            matrix @ shrink,
        )
    return np.asarray(cv2.warpAffine(values, matrix, size, flags=cv2.INTER_LINEAR), np.float32)


def _leaves(shape: BinaryMask, diameter: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return leaf-shaped parts near a fruit, float32 0 to 1: there the image lies in front of it."""
    front = np.zeros(shape.shape, np.float32)
    rows, columns = np.nonzero(shape)
    for _ in range(rng.integers(1, 4) if len(rows) else 0):
        at = rng.integers(len(rows))
        length = diameter * rng.uniform(0.4, 1.2)
        axes = max(1, int(length / 2)), max(1, int(length * rng.uniform(0.08, 0.25)))
        cv2.ellipse(front, (int(columns[at]), int(rows[at])), axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
    return front
