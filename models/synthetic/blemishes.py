"""Lesions, whose pixels are labelled infected, and harmless marks, whose pixels are not.

The yellow halo around a spot is not labelled infected. A sticker hides what it covers.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from models.synthetic.fields import Field, dot, generator, linear, mix, smoothstep, tangents
from models.synthetic.scene import Fruit, Lesion, LesionKind, Mark, MarkKind, Vector
from models.synthetic.surface import Patch, Peel

_SOAKED: Final = np.array((0.22, 0.42, 0.5), np.float32)  # how much darker soaked peel is
_HALO: Final = linear(214, 186, 52)
_CORES: Final = tuple(
    linear(*colour) for colour in ((122, 136, 104), (104, 122, 82), (126, 142, 152), (150, 158, 152), (92, 104, 76))
)


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


def chord(sphere: Field, centre: Vector) -> Field:
    """Return the chord lengths from points on the unit sphere to `centre`."""
    return np.asarray(np.sqrt(np.maximum(2 - 2 * dot(sphere, centre), 0)))


def _cover(peel: Peel, weight: Field) -> None:
    np.maximum(peel.infected, weight, out=peel.infected)


def _area(fruit: Fruit, patch: Patch, peel: Peel, lesion: Lesion, rng: np.random.Generator) -> None:
    window = patch.window_of(fruit, lesion.centre, lesion.radius * 1.5)
    if window is None:
        return
    noise = patch.noise[window]
    ragged = rng.uniform(0.03, 0.16) if lesion.kind is not LesionKind.MOULD else rng.uniform(0.02, 0.07)
    rough = 1 + ragged * noise[..., 1] + (ragged * 0.15) * noise[..., 2]
    inward = chord(patch.sphere[(slice(None), *window)], lesion.centre) * rough * (1 / lesion.radius)
    paint = {LesionKind.MOULD: _mould, LesionKind.ROT: _rot, LesionKind.SCAB: _scab}[lesion.kind]
    paint(peel.part(window), inward, noise, rng)


def _mould(peel: Peel, inward: Field, noise: Field, rng: np.random.Generator) -> None:
    """Paint Penicillium: a soaked edge, white threads, and spores in the middle of old mould."""
    white = rng.uniform(0.6, 0.97)
    core = white * rng.uniform(0.45, 0.95) if rng.random() < 0.8 else 0.0
    soaked = smoothstep(1.06, 0.94, inward)
    peel.albedo *= 1 - soaked[..., None] * (_SOAKED * rng.uniform(1.0, 1.5))
    peel.relief *= 1 - soaked * 0.7
    powder, uneven = noise[..., 2], noise[..., 0]
    threads = smoothstep(white, white - rng.uniform(0.12, 0.4), inward + 0.03 * powder + 0.05 * uneven)
    shade = np.clip(1 + 0.07 * powder + 0.05 * uneven, 0.3, 1.3)[..., None]
    mix(peel.albedo, linear(*rng.uniform((186, 182, 168), (236, 234, 226))) * shade, threads * rng.uniform(0.75, 0.97))
    if core > 0:
        spores = smoothstep(core, core - rng.uniform(0.15, 0.5), inward + 0.05 * powder + 0.12 * uneven)
        colour = _CORES[rng.integers(len(_CORES))] * rng.uniform(0.8, 1.3)
        shade = np.clip(1 + 0.2 * powder + 0.15 * uneven, 0.3, 2)[..., None]
        mix(peel.albedo, colour * shade, spores * rng.uniform(0.8, 0.97))
    peel.relief += threads * 0.012 * (1 + 0.5 * powder)
    peel.gloss *= 1 - np.maximum(threads, soaked * 0.3) * 0.95
    _cover(peel, soaked)


def _rot(peel: Peel, inward: Field, noise: Field, rng: np.random.Generator) -> None:
    """Paint soft brown rot: sunken, darker towards the middle, sometimes with rings."""
    edge = rng.uniform(0.05, 0.22)
    weight = smoothstep(1 + edge, 1 - edge, inward)
    pale, dark = (
        linear(*rng.uniform(low, high))
        for low, high in (((126, 74, 26), (176, 112, 50)), ((46, 26, 14), (104, 62, 30)))
    )
    depth = np.clip(1 - inward, 0, 1) ** rng.uniform(0.5, 1.5)
    if rng.random() < 0.3:
        depth = depth + 0.15 * np.cos(inward * rng.uniform(10, 22))
    tone = np.clip(depth + 0.1 * noise[..., 0], 0, 1)[..., None]
    mix(peel.albedo, pale + (dark - pale) * tone, weight * rng.uniform(0.8, 0.97))
    sunken = rng.uniform(0.0, 0.07)
    peel.relief *= 1 - weight * 0.5
    peel.relief -= sunken * smoothstep(1.1, 0.4, inward)
    peel.gloss *= 1 - weight * rng.uniform(0, 0.8)
    _cover(peel, weight)


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


_INKS: Final = tuple(
    linear(*ink) for ink in ((200, 30, 36), (30, 70, 160), (24, 120, 60), (240, 196, 30), (30, 30, 34))
)
_PAPER: Final = linear(238, 236, 228)
_DUST: Final = linear(164, 146, 122)
_SILVER: Final = linear(206, 176, 128)


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
