"""Healthy peel: the colours of citrus as they ripen, oil glands, wrinkles, stem and blossom end."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import cv2
import numpy as np

from models.synthetic.fields import Field, dot, generator, linear, mix, pores, sampled, smoothstep
from models.synthetic.scene import Fruit, Species
from models.synthetic.surface import Patch, Window


@dataclass(slots=True, eq=False)
class Peel:
    """The paint on a fruit; all arrays are float32 and painted in place.

    Attributes:
        albedo: (height, width, 3), share of the light that is reflected, linear.
        gloss: (height, width), strength of the highlights, about 0 to 1.
        relief: (height, width), height over the ellipsoid in radii.
        infected: (height, width), share of lesion, 0 to 1.
    """

    albedo: Field
    gloss: Field
    relief: Field
    infected: Field

    def part(self, window: Window) -> Peel:
        """Return views of the arrays through a window: painting there paints here."""
        return Peel(self.albedo[window], self.gloss[window], self.relief[window], self.infected[window])


_PALETTES: Final = {
    Species.ORANGE: (
        (0.0, (36, 66, 24)), (0.2, (74, 100, 30)), (0.38, (140, 142, 38)), (0.52, (206, 164, 40)),
        (0.66, (240, 162, 34)), (0.82, (240, 136, 26)), (1.0, (226, 104, 24)),
    ),
    Species.MANDARIN: (
        (0.0, (44, 58, 22)), (0.2, (88, 92, 32)), (0.4, (158, 122, 34)), (0.58, (226, 146, 32)),
        (0.75, (234, 124, 28)), (1.0, (216, 84, 26)),
    ),
    Species.LEMON: (
        (0.0, (40, 84, 28)), (0.3, (112, 138, 36)), (0.55, (196, 192, 48)), (0.8, (238, 212, 52)),
        (1.0, (244, 198, 40)),
    ),
    Species.PLUM: (
        (0.0, (92, 96, 60)), (0.25, (104, 62, 70)), (0.5, (74, 40, 74)), (0.75, (48, 36, 78)), (1.0, (34, 34, 62)),
    ),
}  # fmt: skip
_STEM: Final = linear(96, 104, 48)
_DRY_STEM: Final = linear(112, 92, 58)
_CUT: Final = linear(176, 158, 108)
_SCAR: Final = linear(92, 66, 36)


def healthy_peel(fruit: Fruit, patch: Patch) -> Peel:
    """Paint healthy peel with wrinkles, stem and blossom end."""
    rng = generator(fruit.key, 1)
    spread = 0.05 + 0.5 * fruit.ripeness * (1 - fruit.ripeness)
    ripe = fruit.ripeness + (spread * rng.uniform(0.1, 0.5)) * patch.noise[..., 0]
    ripe += 0.02 * patch.noise[..., 2]
    # Citrus colours last at the stem, or on the side in the shade.
    shaded_side = rng.normal(0, 0.6, 3) + np.array([0, 0.5, 0])
    ripe -= spread * dot(patch.sphere, shaded_side)
    shades = _palette(fruit.species)
    albedo = shades.take(np.clip(ripe * 255, 0, 255).astype(np.uint8), axis=0)
    brightness = 1 + 0.06 * patch.noise[..., 1]
    glands = sampled(pores(), patch.u, patch.v, period=rng.uniform(1.3, 2.4), pixel=1 / patch.pixels, key=fruit.key + 1)
    deep = rng.uniform(0.15, 1.0)
    brightness -= (0.22 * deep) * (glands - 0.3)
    tint = np.exp(rng.normal(0, (0.08, 0.1, 0.15)) + rng.normal(-0.02, 0.1))
    albedo *= brightness[..., None] * tint.astype(np.float32)
    relief = glands * (-0.011 * deep) + patch.noise[..., 0] * rng.uniform(0.001, 0.007)
    peel = Peel(albedo, np.full_like(relief, fruit.gloss), relief, np.zeros_like(relief))
    _ends(fruit, patch, peel, rng)
    return peel


@lru_cache(maxsize=8)
def _palette(species: Species) -> Field:
    stops = _PALETTES[species]
    where = np.linspace(0, 1, 256)
    colours = np.stack([linear(*colour) for _, colour in stops])
    channels = [np.interp(where, [stop for stop, _ in stops], colours[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _ends(fruit: Fruit, patch: Patch, peel: Peel, rng: np.random.Generator) -> None:
    """Paint the stem end with its wrinkles and button, and the blossom end."""
    cut, dry, button, pit = rng.random() < 0.5, rng.random() < 0.4, rng.uniform(0.055, 0.12), rng.uniform(0, 1)
    for sign in (1.0, -1.0):
        window = patch.window_of(fruit, np.array([0.0, sign, 0.0]), 0.85)
        if window is None:
            continue
        part = peel.part(window)
        right, pole, ahead = patch.sphere[(slice(None), *window)]
        off = np.sqrt(np.maximum(2 - 2 * sign * pole, 0))  # chord from the pole
        around = np.asarray(cv2.phase(right, ahead), np.float32)
        fine = patch.noise[window][..., 2]
        part.relief -= (0.05 * pit + 0.05 * fruit.wrinkles) * np.exp(-((off / 0.2) ** 2))
        if fruit.wrinkles > 0.05:
            waves = int(rng.integers(7, 13))
            folds = np.cos(waves * around + 1.2 * patch.noise[window][..., 1])
            ring = np.exp(-(((off - 0.28) / 0.2) ** 2))
            part.relief += (0.035 * fruit.wrinkles) * folds * ring
        if sign > 0:
            petals = button * (1 + 0.28 * np.cos(5 * around) + 0.12 * fine)
            part.albedo *= 1 - 0.28 * np.exp(-((off / (button * 1.7)) ** 2))[..., None]
            leaf = smoothstep(1.12, 0.92, off / petals)
            mix(part.albedo, _DRY_STEM if dry else _STEM, leaf)
            part.albedo *= (1 + 0.3 * fine * leaf)[..., None]
            wood = smoothstep(0.5, 0.4, off / petals)
            mix(part.albedo, _CUT if cut else _SCAR, wood)
            part.gloss *= 1 - 0.8 * leaf
            part.relief += 0.02 * leaf + 0.02 * wood
        else:
            tip = smoothstep(1.3, 0.6, off / (button * 0.36) + 0.25 * fine)
            mix(part.albedo, _SCAR, tip * 0.8)
