"""Lesions: spots, scabs, nets, soot and cuts, whose pixels are labelled infected.

The yellow halo around a spot is not labelled infected.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from models.synthetic.fields import Field, chord, dot, generator, linear, mix, smoothstep, tangents
from models.synthetic.peel import Peel
from models.synthetic.rot import mould, soft_rot
from models.synthetic.scene import Fruit, Lesion, LesionKind
from models.synthetic.surface import Patch

_HALO: Final = linear(214, 186, 52)


def paint_lesion(fruit: Fruit, patch: Patch, peel: Peel, lesion: Lesion) -> None:
    """Paint a lesion on the peel and mark what it covers as infected."""
    rng = generator(lesion.key)
    match lesion.kind:
        case LesionKind.CANKER | LesionKind.BLACK_SPOT:
            _spots(fruit, patch, peel, lesion, rng)
        case LesionKind.SCAR:
            _scar(fruit, patch, peel, lesion, rng)
        case _:
            _area(fruit, patch, peel, lesion, rng)


def _cover(peel: Peel, weight: Field) -> None:
    np.maximum(peel.infected, weight, out=peel.infected)


def _area(fruit: Fruit, patch: Patch, peel: Peel, lesion: Lesion, rng: np.random.Generator) -> None:
    window = patch.window_of(fruit, lesion.centre, lesion.radius * 1.5)
    if window is None:
        return
    noise = patch.noise[window]
    ragged = rng.uniform(0.02, 0.07) if lesion.kind is LesionKind.MOULD else rng.uniform(0.03, 0.16)
    rough = 1 + ragged * noise[..., 1] + (ragged * 0.15) * noise[..., 2]
    inward = chord(patch.sphere[(slice(None), *window)], lesion.centre) * rough * (1 / lesion.radius)
    paint = {
        LesionKind.MOULD: mould,
        LesionKind.ROT: soft_rot,
        LesionKind.SCAB: _scab,
        LesionKind.NET: _net,
        LesionKind.SOOT: _soot,
    }[lesion.kind]
    paint(peel.part(window), inward, noise, rng)


def _scab(peel: Peel, inward: Field, noise: Field, rng: np.random.Generator) -> None:
    """Paint corky or sooty patches, denser towards the middle."""
    density = noise[..., 1] * 0.5 + noise[..., 0] * 0.5 + noise[..., 2] * 0.25
    density += (1 - inward) * 1.7 - rng.uniform(0.1, 0.9)
    soft = rng.uniform(0.1, 0.5)
    weight = smoothstep(-soft, soft, density) * smoothstep(1.15, 0.95, inward)
    colour = linear(*rng.uniform((74, 52, 34), (136, 104, 76)))
    shade = np.clip(1 + 0.2 * noise[..., 2], 0.3, 2)[..., None]
    mix(peel.albedo, colour * shade, weight * rng.uniform(0.65, 0.92))
    peel.relief += weight * 0.012 * (1 + 0.4 * noise[..., 2])
    peel.gloss *= 1 - weight * 0.85
    _cover(peel, weight)


def _net(peel: Peel, inward: Field, noise: Field, rng: np.random.Generator) -> None:
    """Paint a dark net of corky cracks, which meshes into patches in the middle."""
    wide = rng.uniform(0.08, 0.3) * (1 + 0.8 * (1 - inward))
    lines = np.minimum(np.abs(noise[..., 1] + 0.2 * noise[..., 2]), np.abs(noise[..., 0] - 0.5))
    weight = smoothstep(1.3, 0.7, lines / np.maximum(wide, 0.02)) * smoothstep(1.1, 0.85, inward)
    colour = linear(*rng.uniform((70, 44, 26), (168, 132, 96)))
    mix(peel.albedo, colour * np.clip(1 + 0.2 * noise[..., 2], 0.3, 2)[..., None], weight * rng.uniform(0.6, 0.92))
    peel.relief += weight * rng.uniform(-0.01, 0.012)
    peel.gloss *= 1 - weight * 0.8
    _cover(peel, weight)


def _soot(peel: Peel, inward: Field, noise: Field, rng: np.random.Generator) -> None:
    """Paint a film of sooty or greasy stains that the peel shines through."""
    dense = 0.5 * noise[..., 0] + 0.35 * noise[..., 1] + 0.15 * noise[..., 2]
    dense += (1 - inward) * 1.6 - rng.uniform(0.0, 0.5)
    film = smoothstep(-0.35, rng.uniform(0.3, 0.8), dense) * smoothstep(1.15, 0.9, inward)
    colour = linear(*rng.uniform((40, 32, 28), (96, 78, 66)))
    mix(peel.albedo, colour, film * rng.uniform(0.5, 0.85))
    peel.gloss *= 1 - film * rng.uniform(0.3, 0.9)
    _cover(peel, film)


def _spots(fruit: Fruit, patch: Patch, peel: Peel, lesion: Lesion, rng: np.random.Generator) -> None:
    """Paint a cluster of small round spots, each in its own small window."""
    canker = lesion.kind is LesionKind.CANKER
    count = int(rng.integers(4, 34 if canker else 28))
    largest = rng.uniform(0.05, 0.17) if canker else rng.uniform(0.035, 0.1)
    first, second = tangents(lesion.centre, 0.0)
    away, around = lesion.radius * np.sqrt(rng.random(count)), rng.uniform(0, 2 * np.pi, count)
    radii = largest * rng.uniform(0.3, 1, count)
    halo = rng.uniform(0, 0.9) * float(fruit.ripeness < 0.75 or canker)
    tones = rng.uniform(0.75, 1.25, count)
    for distance, angle, radius, tone in np.stack([away, around, radii, tones], axis=1).tolist():
        centre = lesion.centre + distance * (math.cos(angle) * first + math.sin(angle) * second)
        centre /= np.linalg.norm(centre)
        window = patch.window_of(fruit, centre, radius * 2.3)
        if window is None:
            continue
        noise = patch.noise[window]
        rough = 1 + 0.16 * noise[..., 1] + 0.08 * noise[..., 2]
        inward = chord(patch.sphere[(slice(None), *window)], centre) * rough * (1 / radius)
        (_canker if canker else _black_spot)(peel.part(window), inward, halo, tone)


def _canker(peel: Peel, inward: Field, halo: float, tone: float) -> None:
    mix(peel.albedo, _HALO, smoothstep(2.1, 1.0, inward) * (0.55 * halo))
    weight = smoothstep(1.12, 0.92, inward)
    rim, cork = linear(78, 52, 26), linear(158, 124, 82) * tone
    mix(peel.albedo, rim + (cork - rim) * smoothstep(0.95, 0.5, inward)[..., None], weight * 0.92)
    peel.relief += (smoothstep(1.05, 0.7, inward) - 0.6 * smoothstep(0.4, 0.1, inward)) * 0.025
    peel.gloss *= 1 - weight * 0.9
    _cover(peel, weight)


def _black_spot(peel: Peel, inward: Field, halo: float, tone: float) -> None:
    mix(peel.albedo, linear(120, 128, 44), smoothstep(1.6, 1.0, inward) * (0.5 * halo))
    weight = smoothstep(1.1, 0.95, inward)
    rim, centre = linear(38, 22, 16), linear(116, 92, 74) * (tone**3)
    mix(peel.albedo, rim + (centre - rim) * smoothstep(0.65, 0.35, inward)[..., None], weight * 0.95)
    peel.relief -= weight * 0.012
    peel.gloss *= 1 - weight * 0.6
    _cover(peel, weight)


def _scar(fruit: Fruit, patch: Patch, peel: Peel, lesion: Lesion, rng: np.random.Generator) -> None:
    """Paint a deep cut or rub that healed brown, along a bent line."""
    window = patch.window_of(fruit, lesion.centre, lesion.radius * 1.3)
    if window is None:
        return
    sphere, noise, part = patch.sphere[(slice(None), *window)], patch.noise[window], peel.part(window)
    first, second = tangents(lesion.centre, rng.uniform(0, math.pi))
    along, across = dot(sphere, first) * (1 / lesion.radius), dot(sphere, second)
    bent = across - rng.normal(0, 0.08) * along * along + 0.02 * noise[..., 0]
    half = rng.uniform(0.025, 0.09) * np.sqrt(np.clip(1 - along * along, 0.0004, 1))
    inward = np.abs(bent) / half + 0.15 * noise[..., 2]
    weight = smoothstep(1.15, 0.85, inward) * (np.abs(along) < 1) * (dot(sphere, lesion.centre) > 0)
    edge, middle = (
        linear(*rng.uniform(*limits))
        for limits in (
            ((96, 62, 30), (140, 100, 60)),
            ((40, 24, 14), (150, 116, 80)),
        )
    )
    mix(part.albedo, edge + (middle - edge) * smoothstep(0.8, 0.3, inward)[..., None], weight * 0.92)
    part.relief += weight * rng.uniform(-0.03, 0.02)
    part.gloss *= 1 - weight * 0.8
    _cover(part, weight)
