"""Paint a scene, take its photograph, and derive its exact masks from the same geometry."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import cv2
import numpy as np

from models.data.samples import Instance, InstanceMap, Sample
from models.errors import PomonaError
from models.masks import bounding_box
from models.synthetic.apples import apple_skin
from models.synthetic.backgrounds import paint_ground
from models.synthetic.fields import Field, blurred, generator, mix
from models.synthetic.foliage import paint_front_leaves
from models.synthetic.hands import paint_fingers, paint_palm
from models.synthetic.lesions import paint_lesion
from models.synthetic.lighting import dapples, even_light, ground_light, shade
from models.synthetic.marks import IN_PEEL, paint_mark
from models.synthetic.peel import healthy_peel
from models.synthetic.rot import paint_rot
from models.synthetic.scene import Background, Fruit, Lens, Scene, Species
from models.synthetic.surface import patch_of
from models.types import BinaryMask, PixelClass, Pixels, SemanticMap, Size

_STEPS: Final = 4096
_METERED: Final = 0.2  # mean light that a camera exposes for, with 1 for white paper: middle grey


def paint(scene: Scene, size: Size, name: str, seed: int) -> Sample:
    """Paint a scene at a size whose proportions are those of its extent."""
    rng = generator(seed, 3)
    canvas = _lit_ground(scene, size, rng)
    instances = np.zeros((size.height, size.width), np.uint16)
    lesions = np.zeros((size.height, size.width), np.bool_)
    for number, fruit in enumerate(scene.fruits, start=1):
        held = scene.hand and fruit is scene.fruits[-1]
        if held:
            paint_palm(scene, fruit, canvas, instances)
        _paint_fruit(fruit, scene, size, canvas=canvas, instances=instances, lesions=lesions, number=number)
        if held:
            paint_fingers(scene, fruit, canvas, instances)
    paint_front_leaves(scene, canvas, instances, rng)
    even = float(even_light(scene).mean())
    canvas *= 0.8 / even
    if scene.background is Background.FOLIAGE:
        # Leaves are dark, and a camera exposes for them, though not so far that they become grey.
        canvas *= float(np.clip((_METERED / canvas.mean()) ** 0.6, 0.8, 2.2))
    pixels = photograph(canvas, scene.lens, generator(seed, 4))
    return _sample(name, pixels, instances, lesions & (instances > 0))


def _lit_ground(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    canvas = paint_ground(scene, size, rng)
    if scene.background is Background.FOLIAGE:
        return canvas
    if scene.background in {Background.WHITE, Background.BLACK} and rng.random() < 0.6:
        canvas *= even_light(scene).mean() * 1.25  # an image of a cropped fruit
        return canvas
    canvas *= ground_light(scene, size)
    if scene.lighting.dapple > 0:
        unit = math.sqrt(size.pixels)
        x = ((np.arange(size.width) + 0.5 - size.width / 2) / unit).astype(np.float32)
        y = ((np.arange(size.height) + 0.5 - size.height / 2) / unit).astype(np.float32)
        sun = dapples(scene.lighting, x[None] + 0 * y[:, None], 0 * x[None] + y[:, None], 1 / unit)
        canvas *= (0.4 + 0.6 * sun)[..., None]
    return canvas


def _paint_fruit(
    fruit: Fruit, scene: Scene, size: Size, *, canvas: Field, instances: InstanceMap, lesions: BinaryMask, number: int
) -> None:
    patch = patch_of(fruit, size)
    if patch is None:
        return
    peel = apple_skin(fruit, patch) if fruit.species is Species.APPLE else healthy_peel(fruit, patch)
    for mark in fruit.marks:
        if mark.kind in IN_PEEL:
            paint_mark(fruit, patch, peel, mark)
    if fruit.rot is not None:
        paint_rot(patch, peel, fruit.rot)
    for lesion in fruit.lesions:
        paint_lesion(fruit, patch, peel, lesion)
    for mark in fruit.marks:
        if mark.kind not in IN_PEEL:
            paint_mark(fruit, patch, peel, mark)
    others = [other for other in scene.fruits if other is not fruit]
    light = shade(fruit, patch, peel, scene.lighting, scene.up, others)
    mix(canvas[patch.window], light, patch.coverage)
    inside = patch.coverage >= 0.5
    instances[patch.window][inside] = number
    lesions[patch.window][inside] = peel.infected[inside] >= 0.5


def _sample(name: str, pixels: Pixels, painted: InstanceMap, lesions: BinaryMask) -> Sample:
    """Number the visible fruits from 1 on and find their boxes."""
    numbers = np.unique(painted)
    seen = numbers[numbers > 0]
    renumber = np.zeros(int(numbers.max()) + 1, np.uint16)
    renumber[seen] = np.arange(1, len(seen) + 1)
    instance_map = renumber[painted]
    semantic: SemanticMap = np.where(painted > 0, np.uint8(PixelClass.HEALTHY), np.uint8(PixelClass.BACKGROUND))
    semantic[lesions] = PixelClass.INFECTED
    health = {int(number): PixelClass.INFECTED for number in np.unique(instance_map[lesions])}
    instances = tuple(
        Instance(number, bounding_box(instance_map == number), health.get(number, PixelClass.HEALTHY))
        for number in range(1, len(seen) + 1)
    )
    return Sample(name, pixels, semantic, instances, instance_map)


def photograph(light: Field, lens: Lens, rng: np.random.Generator) -> Pixels:
    """Turn light into pixels.

    Args:
        light: linear float32 (height, width, 3), 1 for white paper in full light; overwritten.
        lens: properties of the camera.
        rng: random generator of the noise.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    height, width = light.shape[:2]
    unit = math.sqrt(height * width)
    light += lens.haze
    light *= lens.balance * lens.exposure
    if lens.vignetting > 0:
        down = ((np.arange(height, dtype=np.float32) + 0.5) / height - 0.5) ** 2
        across = ((np.arange(width, dtype=np.float32) + 0.5) / width - 0.5) ** 2
        light *= (1 - (lens.vignetting * 2) * (down[:, None] + across[None]))[..., None]
    light = blurred(light, lens.defocus * unit / 1000)
    if lens.motion * unit / 1000 > 1.5:
        light = _smeared(light, lens.motion * unit / 1000, lens.motion_angle)
    image = _tone(lens.contrast).take(np.clip(light * (_STEPS / 2), 0, _STEPS - 1).astype(np.uint16))
    if lens.sharpening > 0:
        soft = blurred(image, 1.2 * max(1.0, unit / 700))
        image += (image - soft) * lens.sharpening
    if lens.noise > 0:
        # Shot noise grows with the light and gamma shrinks it in the highlights: about even in the image.
        noise = rng.standard_normal(image.shape, np.float32)
        noise *= lens.noise * (1.2 - 0.7 * image)
        image += noise
    image *= 255
    image += 0.5
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return pixels if lens.jpeg_quality is None else _compressed(pixels, lens.jpeg_quality)


def jpeg(pixels: Pixels, quality: int) -> bytes:
    """Encode RGB pixels as JPEG, quality 1 to 100."""
    done, encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise PomonaError(f"OpenCV could not encode {pixels.shape[1]} x {pixels.shape[0]} pixels as JPEG.")
    return encoded.tobytes()


def _compressed(pixels: Pixels, quality: int) -> Pixels:
    decoded = cv2.imdecode(np.frombuffer(jpeg(pixels, quality), np.uint8), cv2.IMREAD_COLOR_RGB)
    return np.asarray(decoded, np.uint8)


def _smeared(light: Field, length: float, angle: float) -> Field:
    side = int(length) // 2 * 2 + 3
    kernel = np.zeros((side, side), np.float32)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    first, last = (np.round((side // 2 + sign * reach) * 16).astype(int).tolist() for sign in (-1, 1))
    cv2.line(kernel, tuple(first), tuple(last), 1.0, 1, cv2.LINE_8, 4)
    return np.asarray(cv2.filter2D(light, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE), np.float32)


@lru_cache(maxsize=64)
def _tone(contrast: float) -> Field:
    """Return the sRGB curve for light of 0 to 2, with a soft shoulder above white and an S for contrast."""
    light = np.arange(_STEPS) * (2 / _STEPS)
    shoulder = np.where(light < 0.7, light, 0.7 + 0.3 * (1 - np.exp(-(light - 0.7) / 0.3)))
    srgb = np.where(shoulder <= 0.0031308, shoulder * 12.92, 1.055 * shoulder ** (1 / 2.4) - 0.055)
    curved = srgb * srgb * (3 - 2 * srgb)
    return np.asarray(srgb + (curved - srgb) * 0.7 * contrast, np.float32)
