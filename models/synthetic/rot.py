"""Decay that spreads over peel from one place: soft brown rot and mould, as spots and over most of a fruit."""

from __future__ import annotations

from typing import Final

import numpy as np

from models.synthetic.fields import Field, Rgb, chord, generator, linear, mix, smoothstep
from models.synthetic.peel import Peel
from models.synthetic.scene import Rot, RotKind
from models.synthetic.surface import Patch

_SOAKED: Final = np.array((0.22, 0.42, 0.5), np.float32)  # how much darker soaked peel is
_SPORES: Final = tuple(
    linear(*colour)
    for colour in (
        (122, 136, 104), (104, 122, 82), (126, 142, 152), (150, 158, 152), (92, 104, 76), (96, 116, 128),
    )
)  # fmt: skip
_LARGE_SPORES: Final = (*_SPORES, linear(64, 62, 58), linear(150, 136, 112), linear(188, 184, 174))
_BROWNS: Final = (
    ((164, 112, 58), (204, 152, 94)),  # tan, as in apples
    ((116, 68, 30), (162, 104, 54)),
    ((92, 52, 34), (128, 78, 50)),  # reddish, as in brown rot (Monilia)
    ((56, 36, 24), (100, 62, 38)),
    ((24, 20, 18), (52, 40, 32)),  # black, as in Alternaria
)
_BROWN_SHARES: Final = (0.28, 0.3, 0.17, 0.17, 0.08)
_ALL: Final = 0.985  # a cover from here on leaves no healthy pixel
_COUNTED: Final = 4000  # pixels that suffice to find a quantile within half a percent


def paint_rot(patch: Patch, peel: Peel, rot: Rot) -> None:
    """Paint one large rot and mark it as infected: exactly its share of the visible surface."""
    rng = generator(rot.key)
    shown = patch.coverage >= 0.5
    if not shown.any():
        return
    noise = patch.noise
    # Rot grows in a circle; more ragged borders would leave islands, which real rot has not.
    ragged = rng.uniform(0.015, 0.06) if rng.random() < 0.75 else rng.uniform(0.06, 0.16)
    distance = chord(patch.sphere, rot.centre) * (1 + ragged * noise[..., 1] + (ragged * 0.1) * noise[..., 2])
    seen = distance[shown]
    seen = seen[:: max(1, len(seen) // _COUNTED)]
    border = float(seen.max()) * 1.3 if rot.cover >= _ALL else float(np.quantile(seen, rot.cover))
    inward = distance * (1 / max(border, 1e-3))
    match rot.kind:
        case RotKind.SOFT:
            soft_rot(peel, inward, noise, rng)
        case RotKind.MOULD:
            if rng.random() < 0.4:
                soft_rot(peel, inward, noise, rng)  # mould over flesh that is brown already
            mould(peel, inward, noise, rng, spores=_LARGE_SPORES)


def soft_rot(peel: Peel, inward: Field, noise: Field, rng: np.random.Generator) -> None:
    """Paint soft rot: even tan to black inside, a sharp or soaked border, sometimes rings, creases and pale mould.

    Args:
        peel: painted in place.
        inward: float32 (height, width), 0 in the middle and 1 at the border.
        noise: float32 (height, width, 3), see `Patch`.
        rng: random generator.
    """
    sharp = rng.random() < 0.55
    edge = rng.uniform(0.008, 0.04) if sharp else rng.uniform(0.04, 0.16)
    weight = smoothstep(1 + edge, 1 - edge, inward)
    if not sharp:
        soaked = smoothstep(1 + 2.5 * edge, 1, inward)
        peel.albedo *= 1 - soaked[..., None] * (_SOAKED * rng.uniform(0.2, 0.9))
    low, high = _BROWNS[int(rng.choice(len(_BROWNS), p=_BROWN_SHARES))]
    brown = linear(*(np.array(low) + (np.array(high) - low) * rng.random() + rng.normal(0, 5, 3)))
    tone = 1 + rng.uniform(0, 0.14) * noise[..., 0] + rng.uniform(0, 0.05) * noise[..., 2]
    tone += rng.uniform(-0.35, 0.35) * (1 - inward)
    if rng.random() < 0.35:
        tone += rng.uniform(0.04, 0.18) * np.cos(inward * rng.uniform(14, 44) + 0.4 * noise[..., 1])
    if rng.random() < 0.4:
        rim = np.exp(-(((inward - 0.97) / rng.uniform(0.02, 0.07)) ** 2))
        tone += rng.uniform(-0.45, 0.3) * rim
    mix(peel.albedo, brown * np.clip(tone, 0.25, 1.8)[..., None], weight * rng.uniform(0.72, 1.0))
    peel.relief *= 1 - weight * rng.uniform(0.2, 0.95)
    peel.relief -= rng.uniform(0, 0.06) * smoothstep(1.08, 0.6, inward)
    wet = rng.uniform(0, 0.5) if rng.random() < 0.25 else 0.0
    peel.gloss *= 1 - weight * rng.uniform(0, 0.9)
    peel.gloss += weight * wet
    if rng.random() < 0.35:
        _crease(peel, inward, noise, weight, rng)
    if rng.random() < 0.35:
        _pustules(peel, inward, noise, rng)
    np.maximum(peel.infected, weight, out=peel.infected)


def _crease(peel: Peel, inward: Field, noise: Field, weight: Field, rng: np.random.Generator) -> None:
    """Wrinkle peel that shrank: around the middle, or in a net."""
    waves = noise[..., 0] * rng.uniform(1.2, 3) + noise[..., 1] * 0.8
    waves += inward * (rng.uniform(8, 22) if rng.random() < 0.6 else 0.0)
    ridges = (1 - np.abs(np.sin(waves))) * weight * smoothstep(0.05, 0.3, inward)
    peel.relief += rng.uniform(0.01, 0.045) * ridges
    peel.albedo *= 1 + rng.uniform(0, 0.5) * (ridges - 0.25)[..., None]


def _pustules(peel: Peel, inward: Field, noise: Field, rng: np.random.Generator) -> None:
    """Dot the middle with tufts of pale mould, often in rings."""
    reach = rng.uniform(0.3, 0.95)
    dense: Field = noise[..., 2] + 0.8 * noise[..., 1]
    dense -= rng.uniform(0.4, 1.6)
    if rng.random() < 0.6:
        dense += 0.9 * np.cos(inward * rng.uniform(16, 40))
    tufts = smoothstep(-0.1, rng.uniform(0.2, 0.8), dense) * smoothstep(reach, reach * 0.7, inward)
    colour = linear(*rng.uniform((176, 156, 124), (236, 230, 216)))
    mix(peel.albedo, colour, tufts * rng.uniform(0.5, 0.95))
    peel.relief += tufts * 0.012
    peel.gloss *= 1 - tufts * 0.9


def mould(
    peel: Peel, inward: Field, noise: Field, rng: np.random.Generator, *, spores: tuple[Rgb, ...] = _SPORES
) -> None:
    """Paint Penicillium and the like: a soaked edge, white threads, and spores in the middle of old mould.

    Args:
        peel: painted in place.
        inward: float32 (height, width), 0 in the middle and 1 at the border.
        noise: float32 (height, width, 3), see `Patch`.
        rng: random generator.
        spores: colours of the spores to choose from.
    """
    white = rng.uniform(0.6, 0.97)
    core = white * rng.uniform(0.45, 0.95) if rng.random() < 0.8 else 0.0
    soaked = smoothstep(1.06, 0.94, inward)
    peel.albedo *= 1 - soaked[..., None] * (_SOAKED * rng.uniform(1.0, 1.5))
    peel.relief *= 1 - soaked * 0.7
    powder, uneven = noise[..., 2], noise[..., 0]
    threads = smoothstep(white, white - rng.uniform(0.12, 0.4), inward + 0.03 * powder + 0.05 * uneven)
    if rng.random() < 0.4:
        threads *= smoothstep(-1.6, rng.uniform(-1.0, 0.4), uneven + 0.5 * noise[..., 1])  # bare peel between tufts
    shade = np.clip(1 + 0.07 * powder + 0.05 * uneven, 0.3, 1.3)[..., None]
    mix(peel.albedo, linear(*rng.uniform((186, 182, 168), (236, 234, 226))) * shade, threads * rng.uniform(0.75, 0.97))
    if core > 0:
        ripe = smoothstep(core, core - rng.uniform(0.15, 0.5), inward + 0.05 * powder + 0.12 * uneven)
        colour = spores[rng.integers(len(spores))] * rng.uniform(0.8, 1.3)
        shade = np.clip(1 + 0.2 * powder + 0.15 * uneven, 0.3, 2)[..., None]
        mix(peel.albedo, colour * shade, ripe * rng.uniform(0.8, 0.97))
    peel.relief += threads * 0.012 * (1 + 0.5 * powder)
    peel.gloss *= 1 - np.maximum(threads, soaked * 0.3) * 0.95
    np.maximum(peel.infected, soaked, out=peel.infected)
