"""A scene -> its image and, from the same geometry, its masks."""

from __future__ import annotations

import math

import numpy as np

from models.data.samples import Instance, InstanceMap, Sample
from models.synthetic.camera import photographed
from models.synthetic.fields import Field, generator, mix
from models.synthetic.foliage import paint_front_leaves
from models.synthetic.grounds import paint_ground
from models.synthetic.lesions import paint_lesion
from models.synthetic.marks import paint_mark
from models.synthetic.options import Background
from models.synthetic.peel import healthy_peel
from models.synthetic.scene import Fruit, Scene
from models.synthetic.shading import dapples, shaded
from models.synthetic.shadows import even_light, ground_light
from models.synthetic.surface import patch_of
from models.types import BinaryMask, PixelClass, Pixels, SemanticMap, Size


def paint(scene: Scene, size: Size, name: str, seed: int) -> Sample:
    """Paint a scene at a size whose proportions are those of its extent."""
    rng = generator(seed, 3)
    canvas = _lit_ground(scene, size, rng)
    instances = np.zeros((size.height, size.width), np.uint16)
    lesions = np.zeros((size.height, size.width), np.bool_)
    for number, fruit in enumerate(scene.fruits, start=1):
        _paint_fruit(fruit, scene, size, canvas=canvas, instances=instances, lesions=lesions, number=number)
    if scene.background is Background.FOLIAGE:
        paint_front_leaves(scene, canvas, instances, rng)
    even = float(even_light(scene).mean())
    canvas *= 0.8 / even
    pixels = photographed(canvas, scene.lens, generator(seed, 4))
    return _sample(name, pixels, instances, lesions & (instances > 0))


def _lit_ground(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    canvas = paint_ground(scene, size, rng)
    if scene.background is Background.FOLIAGE:
        return canvas
    if scene.background in {Background.WHITE, Background.BLACK} and rng.random() < 0.6:
        canvas *= even_light(scene).mean() * 1.25  # a cut-out
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
    peel = healthy_peel(fruit, patch)
    for lesion in fruit.lesions:
        paint_lesion(fruit, patch, peel, lesion)
    for mark in fruit.marks:
        paint_mark(fruit, patch, peel, mark)
    others = [other for other in scene.fruits if other is not fruit]
    light = shaded(fruit, patch, peel, scene.lighting, scene.up, others)
    mix(canvas[patch.window], light, patch.coverage)
    inside = patch.coverage >= 0.5
    instances[patch.window][inside] = number
    lesions[patch.window][inside] = peel.infected[inside] >= 0.5


def _sample(name: str, pixels: Pixels, painted: InstanceMap, lesions: BinaryMask) -> Sample:
    """Number the fruit that is seen from 1 on, and tell its boxes."""
    numbers = np.unique(painted)
    seen = numbers[numbers > 0]
    renumber = np.zeros(int(numbers.max()) + 1, np.uint16)
    renumber[seen] = np.arange(1, len(seen) + 1)
    instance_map = renumber[painted]
    semantic: SemanticMap = np.where(painted > 0, np.uint8(PixelClass.HEALTHY), np.uint8(PixelClass.BACKGROUND))
    semantic[lesions] = PixelClass.INFECTED
    sick = set(np.unique(instance_map[lesions]).tolist())
    instances = tuple(
        Instance(number, _box(instance_map == number), PixelClass.INFECTED if number in sick else PixelClass.HEALTHY)
        for number in range(1, len(seen) + 1)
    )
    return Sample(name, pixels, semantic, instances, instance_map)


def _box(mask: BinaryMask) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
