"""Harmless marks on peel, whose pixels are labelled healthy."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from models.synthetic.fields import Field, chord, dot, generator, linear, mix, smoothstep, tangents
from models.synthetic.peel import Peel
from models.synthetic.scene import Fruit, Mark, MarkKind
from models.synthetic.surface import Patch

IN_PEEL: Final = frozenset({MarkKind.RUSSET, MarkKind.WIND_SCAR})
"""Marks that grew in the peel itself: rot and lesions come over them."""

_INKS: Final = tuple(
    linear(*ink) for ink in ((200, 30, 36), (30, 70, 160), (24, 120, 60), (240, 196, 30), (30, 30, 34))
)
_PAPER: Final = linear(238, 236, 228)
_DUST: Final = linear(164, 146, 122)
_SILVER: Final = linear(206, 176, 128)
_RUSSETS: Final = tuple(linear(*colour) for colour in ((168, 124, 70), (186, 150, 96), (198, 184, 150), (150, 116, 76)))


def paint_mark(fruit: Fruit, patch: Patch, peel: Peel, mark: Mark) -> None:
    """Paint a harmless mark on the peel."""
    window = patch.window_of(fruit, mark.centre, min(mark.radius * 1.2, 2.0))
    if window is None:
        return
    rng = generator(mark.key)
    sphere, noise, part = patch.sphere[(slice(None), *window)], patch.noise[window], peel.part(window)
    match mark.kind:
        case MarkKind.STICKER:
            _sticker(sphere, part, mark, rng)
        case MarkKind.DROPS:
            _drops(fruit, patch, peel, mark, rng)
        case MarkKind.DUST:
            _dust(sphere, noise, part, mark, rng)
        case MarkKind.LEAF_BIT:
            _leaf_bit(sphere, noise, part, mark, rng)
        case MarkKind.WIND_SCAR:
            _wind_scar(sphere, noise, part, mark, rng)
        case MarkKind.RUSSET:
            _russet(sphere, noise, part, mark, rng)


def _on_tangent(sphere: Field, mark: Mark, angle: float) -> tuple[Field, Field]:
    """Return tangential coordinates in radii of the mark; large values on the far side of the fruit."""
    first, second = tangents(mark.centre, angle)
    scale = 1 / mark.radius
    behind = 9 * (dot(sphere, mark.centre) <= 0).astype(np.float32)
    return dot(sphere, first) * scale + behind, dot(sphere, second) * scale + behind


def _sticker(sphere: Field, peel: Peel, mark: Mark, rng: np.random.Generator) -> None:
    a, b = _on_tangent(sphere, mark, rng.uniform(0, math.pi))
    b = b * rng.uniform(1.0, 1.45)
    off = np.sqrt(a * a + b * b)
    weight = smoothstep(1.03, 0.97, off)
    border, ground = rng.permutation(len(_INKS))[:2]
    mix(peel.albedo, _PAPER, weight)
    inner = smoothstep(0.9, 0.86, off)
    mix(peel.albedo, _INKS[ground] if rng.random() < 0.7 else _PAPER, inner)
    ring = inner * smoothstep(0.7, 0.74, off)
    mix(peel.albedo, _INKS[border], ring)
    letters = np.sin(a * rng.uniform(14, 26) + 3 * np.sin(b * 5)) > 0.1
    mix(peel.albedo, _PAPER, letters * (np.abs(b) < rng.uniform(0.15, 0.3)) * (np.abs(a) < 0.55) * 0.9)
    peel.gloss *= 1 - weight
    peel.gloss += weight * rng.uniform(0.2, 0.8)
    peel.relief *= 1 - weight * 0.8
    peel.infected *= weight < 0.5


def _drops(fruit: Fruit, patch: Patch, peel: Peel, mark: Mark, rng: np.random.Generator) -> None:
    first, second = tangents(mark.centre, 0.0)
    for _ in range(int(rng.integers(3, 22))):
        away, around, radius = (
            mark.radius * math.sqrt(rng.random()),
            rng.uniform(0, 2 * math.pi),
            rng.uniform(0.02, 0.09),
        )
        centre = mark.centre + away * (math.cos(around) * first + math.sin(around) * second)
        centre /= np.linalg.norm(centre)
        window = patch.window_of(fruit, centre, radius * 1.2)
        if window is None:
            continue
        part = peel.part(window)
        off = chord(patch.sphere[(slice(None), *window)], centre) * (1 / radius)
        weight = smoothstep(1.05, 0.9, off)
        dome = np.sqrt(np.clip(1 - off * off, 0, 1))
        part.albedo *= (1 - weight * (0.12 + 0.15 * off))[..., None]
        part.relief *= 1 - weight
        part.relief += dome * (radius * 0.45)
        np.maximum(part.gloss, weight * 1.7, out=part.gloss)


def _dust(sphere: Field, noise: Field, peel: Peel, mark: Mark, rng: np.random.Generator) -> None:
    inside = smoothstep(1.0, 0.5, chord(sphere, mark.centre) * (1 / mark.radius))
    veil = np.clip(0.16 + 0.1 * noise[..., 1], 0, 0.4)
    specks = smoothstep(1.7, 2.4, noise[..., 2] + 0.3 * noise[..., 0]) * 0.55
    weight = inside * np.maximum(veil * rng.uniform(0.2, 1), specks)
    mix(peel.albedo, _DUST, weight)
    peel.gloss *= 1 - 0.7 * weight


def _leaf_bit(sphere: Field, noise: Field, peel: Peel, mark: Mark, rng: np.random.Generator) -> None:
    a, b = _on_tangent(sphere, mark, rng.uniform(0, math.pi))
    ragged = 1 + 0.12 * noise[..., 1]
    half = rng.uniform(0.18, 0.5) * np.clip(1 - a * a, 0.0001, 1) * ragged
    inward = np.abs(b) / half
    inside = np.abs(a) < rng.uniform(0.5, 1)
    shadow = smoothstep(1.8, 0.8, np.abs(b + 0.1) / half) * inside
    peel.albedo *= (1 - 0.45 * shadow)[..., None]
    weight = smoothstep(1.1, 0.9, inward) * inside
    green = linear(*rng.uniform((40, 62, 20), (110, 130, 50)))
    brown = linear(*rng.uniform((96, 74, 40), (150, 122, 74)))
    colour = (green if rng.random() < 0.6 else brown) * (1 + 0.12 * noise[..., 2])[..., None]
    mix(peel.albedo, colour, weight)
    mix(peel.albedo, green * 1.6, weight * smoothstep(0.14, 0.05, inward) * 0.5)
    peel.gloss *= 1 - weight * 0.6
    peel.relief += weight * 0.02
    peel.infected *= weight < 0.5


def _wind_scar(sphere: Field, noise: Field, peel: Peel, mark: Mark, rng: np.random.Generator) -> None:
    """Paint silvery streaks where a twig rubbed the young fruit; marketable, not diseased."""
    a, b = _on_tangent(sphere, mark, rng.uniform(0, math.pi))
    inside = smoothstep(1.0, 0.6, np.sqrt(a * a + 2.5 * b * b))
    streaks = np.abs(noise[..., 1] + rng.uniform(1, 4) * b)
    weight = smoothstep(0.4, 0.1, streaks) * inside
    weight += inside * np.clip(0.25 * noise[..., 0], 0, 0.3)
    mix(peel.albedo, _SILVER, np.clip(weight, 0, 1) * rng.uniform(0.25, 0.6))
    peel.gloss *= 1 - np.clip(weight, 0, 1) * 0.7


def _russet(sphere: Field, noise: Field, peel: Peel, mark: Mark, rng: np.random.Generator) -> None:
    """Paint cork as fine as dust: a thin tan film or a fine pale net that fades out; never as dark as a lesion."""
    inward = chord(sphere, mark.centre) * (1 / mark.radius) + 0.15 * noise[..., 0]
    inside = smoothstep(1.05, rng.uniform(0.0, 0.4), inward)
    if rng.random() < 0.6:
        net = smoothstep(rng.uniform(0.2, 0.45), 0.05, np.abs(noise[..., 1] + 0.3 * noise[..., 2]))
        weight = inside * np.maximum(net, rng.uniform(0, 0.3)) * rng.uniform(0.25, 0.6)
    else:
        film = np.clip(0.7 + 0.25 * noise[..., 2] + 0.3 * noise[..., 1], 0, 1)
        weight = inside * film * rng.uniform(0.15, 0.4)
    colour = _RUSSETS[rng.integers(len(_RUSSETS))] * (1 + 0.08 * noise[..., 2])[..., None]
    mix(peel.albedo, colour, weight)
    peel.gloss *= 1 - weight * 0.9
