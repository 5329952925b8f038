"""How an image is lit and photographed, by lot."""

from __future__ import annotations

import math

import numpy as np

from models.synthetic.fields import Rgb
from models.synthetic.options import Background
from models.synthetic.scene import Lamp, Lens, Lighting


def _tinted(rng: np.random.Generator, strength: float, spread: float) -> Rgb:
    """Light between candle and overcast sky."""
    warmth = rng.normal(0, spread)
    return np.array([math.exp(warmth), 1, math.exp(-1.3 * warmth)], np.float32) * strength


def lighting_of(rng: np.random.Generator, background: Background, elevation: float) -> Lighting:
    """A key lamp, at times a second and a third, sky and bounce."""
    lamps = []
    outside = background is Background.FOLIAGE
    count = 1 if outside else int(rng.choice([1, 2, 3], p=[0.55, 0.3, 0.15]))
    for number in range(count):
        height = math.radians(rng.uniform(28, 82))
        around = rng.uniform(0, 2 * math.pi)
        if outside:
            around = rng.uniform(1.15, 1.85) * math.pi  # the sun stands on the camera's side, or to the side
        x, away, up = math.cos(height) * math.cos(around), math.cos(height) * math.sin(around), math.sin(height)
        sin, cos = math.sin(elevation), math.cos(elevation)
        direction = np.array([x, -(away * sin + up * cos), up * sin - away * cos])
        strength = rng.uniform(0.55, 1.3) if number == 0 else rng.uniform(0.15, 0.5)
        lamps.append(Lamp(direction, _tinted(rng, strength, 0.08), 0.1 if outside else float(rng.beta(1.5, 1.5))))
    sky = rng.uniform(0.2, 0.6)
    bounce = {Background.BLACK: 0.01, Background.WHITE: 0.55, Background.TABLE: 0.4}.get(background, 0.15)
    dapple = float(rng.uniform(0.5, 1)) if rng.random() < (0.55 if outside else 0.06) else 0.0
    return Lighting(
        lamps=tuple(lamps),
        sky=_tinted(rng, sky, 0.12),
        bounce=_tinted(rng, bounce * rng.uniform(0.5, 1), 0.08),
        dapple=dapple,
        key=int(rng.integers(1 << 31)),
    )


def plain_lens(rng: np.random.Generator) -> Lens:
    """A perfect camera."""
    return Lens(rng.uniform(0.85, 1.1), np.ones(3, np.float32), 0.4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, None)


def lens_of(rng: np.random.Generator, background: Background) -> Lens:
    """Mostly a good camera, at times a bad one."""
    line = background in {Background.BELT, Background.ROLLERS, Background.CUPS}
    defocus = rng.uniform(0.3, 1.6) if rng.random() < 0.85 else rng.uniform(1.6, 6)
    return Lens(
        exposure=math.exp(rng.normal(-0.05, 0.25)),
        balance=np.array([math.exp(rng.normal(0, 0.06)), 1, math.exp(rng.normal(0, 0.09))], np.float32),
        contrast=rng.uniform(0, 1),
        vignetting=rng.uniform(0, 0.5) if rng.random() < 0.6 else 0.0,
        defocus=defocus,
        motion=rng.uniform(2, 14) if rng.random() < (0.3 if line else 0.1) else 0.0,
        motion_angle=0.0 if line else rng.uniform(0, math.pi),
        sharpening=rng.uniform(0, 1) if rng.random() < 0.5 else 0.0,
        noise=math.exp(rng.uniform(math.log(0.003), math.log(0.04))),
        jpeg_quality=int(rng.integers(45, 98)),
    )
