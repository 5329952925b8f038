"""Chooses, among the masks of a grid of points, those of everything in an image, each once.

The result is that of segment-anything's `SamAutomaticMaskGenerator`, in another order of work. The reference upsamples
every mask, tests its stability, and removes duplicates last. Here masks are tested on the decoder's logits as far as
these can tell, kept as the part of the logits that is not background, and looked at in the order of their scores: a
mask is computed at the image's size only if no better one has taken its place. A duplicate is removed whether it is
stable or not, and an unstable mask removes nothing, so both orders keep the same masks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from models.letterbox import LOGITS_STRIDE, Letterbox
from models.masks import CroppedMask, PixelBox, bounding_box, intersection
from models.sam.grid import Crop
from models.sam.postprocess import crop_of
from models.types import BinaryMask, Logits

_OFFSET: Final = 1.0
_FLOOR: Final = -_OFFSET - 1e-3
"""Logits below this belong to the mask at none of the thresholds of its stability."""

_MARGIN: Final = 2
"""Cells around the logits above `_FLOOR` that an interpolated value above it can depend on."""

_FILL: Final = -32.0
_SLACK: Final = 0.05
"""How far the stability of low-resolution logits is trusted: that of the image's pixels was never seen to be more than
this above it where both were near a threshold."""

_EDGE: Final = 20.0
"""Pixels from a crop's edge within which a mask's box is cut off by it, as in the reference."""

_COARSE: Final = 256
"""Longest side of the masks by which overlaps of masks are measured."""

_NEIGHBOURS: Final = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """Which masks are wanted.

    Attributes:
        score: least predicted IoU, exclusive.
        stability: least stability score.
        box_iou: largest IoU of the boxes of two masks; of more, the better is kept.
        mask_iou: largest IoU of two masks, or None where that of their boxes is enough.
        min_area: least area in pixels.
        max_area: largest area in pixels, or None.
        min_side: least width and height in pixels.
        max_side: largest width and height in pixels, or None.
    """

    score: float = 0.88
    stability: float = 0.95
    box_iou: float = 0.7
    mask_iou: float | None = None
    min_area: int = 0
    max_area: int | None = None
    min_side: int = 0
    max_side: int | None = None

    def fit(self, area: int, box: PixelBox) -> bool:
        """Return whether a mask is neither too small nor too large."""
        sides = (box[2] - box[0], box[3] - box[1])
        return (
            max(self.min_area, 1) <= area
            and (self.max_area is None or area <= self.max_area)
            and min(sides) >= self.min_side
            and (self.max_side is None or max(sides) <= self.max_side)
        )


@dataclass(frozen=True, slots=True)
class Measures:
    """What is known of a mask at the image's size.

    Attributes:
        box: tight, in pixels of the image.
        area: pixels.
        stability: stability score.
        coarse: the mask on a coarse grid of the image as packed bits, or None where overlaps of masks do not matter.
    """

    box: PixelBox
    area: int
    stability: float
    coarse: NDArray[np.uint8] | None = None


@dataclass(slots=True, eq=False)
class Candidate:
    """A mask of the decoder that may be wanted.

    Attributes:
        logits: float32, the part of the logits around what is not background.
        top: its first row in the whole logits.
        left: its first column in them.
        score: predicted IoU.
        point: x and y in pixels of the image.
        crop: what was encoded.
        letterbox: how that fitted into the model's square.
        reach: box of the image that contains the mask's box.
        core: box of the image that the mask's box contains; empty of thin masks.
    """

    logits: Logits
    top: int
    left: int
    score: float
    point: tuple[float, float]
    crop: Crop
    letterbox: Letterbox
    reach: PixelBox
    core: PixelBox
    _measures: Measures | None = field(default=None, repr=False)
    _unwanted: bool = field(default=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.logits.nbytes

    @property
    def reach_area(self) -> int:
        """Pixels of the box that contains the mask's box."""
        x0, y0, x1, y1 = self.reach
        return (x1 - x0) * (y1 - y0)

    def whole_logits(self) -> Logits:
        """Return the logits of size `letterbox.logits`, with a constant far outside the mask."""
        size = self.letterbox.logits
        logits = np.full((size.height, size.width), _FILL, np.float32)
        height, width = self.logits.shape
        logits[self.top : self.top + height, self.left : self.left + width] = self.logits
        return logits

    def mask(self, min_area: int = 0) -> CroppedMask:
        """Compute the mask of the image, without holes and islands that are smaller than `min_area`."""
        found = crop_of(self.whole_logits(), self.score, self.letterbox).crop
        return self._in_image(without_specks(found, min_area)[0] if min_area else found)

    def measure(self, limits: Limits) -> Measures | None:
        """Return the mask's measures, computed once, or None if it is not wanted."""
        if self._measures is None and not self._unwanted:
            found = crop_of(self.whole_logits(), self.score, self.letterbox)
            x, y = self.crop.box[:2]
            box = (found.box[0] + x, found.box[1] + y, found.box[2] + x, found.box[3] + y)
            stable = found.stability_score >= limits.stability
            if stable and limits.fit(found.area, box) and not _cut_off(box, self.crop):
                coarse = None if limits.mask_iou is None else _coarse(self._in_image(found.crop))
                self._measures = Measures(box, found.area, found.stability_score, coarse)
            self._unwanted = self._measures is None
        return self._measures

    def _in_image(self, mask: CroppedMask) -> CroppedMask:
        x, y = self.crop.box[:2]
        return CroppedMask(mask.pixels, mask.x0 + x, mask.y0 + y, self.crop.image)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A mask that was chosen, with its measures."""

    candidate: Candidate
    measures: Measures


def candidates_of(
    logits: Sequence[Logits],
    scores: Sequence[NDArray[np.float32]],
    points: NDArray[np.float64],
    crop: Crop,
    letterbox: Letterbox,
    limits: Limits,
) -> list[Candidate]:
    """Return the masks of a chunk of points that low-resolution logits cannot rule out.

    Args:
        logits: of each point float32 (masks, height, width) of size `letterbox.logits`.
        scores: of each point float32 (masks,), predicted IoU.
        points: float64 (n, 2), x and y in pixels of the crop.
        crop: what was encoded.
        letterbox: how that fitted into the model's square.
        limits: which masks are wanted.
    """
    # Without the padding, of which the image has nothing.
    rows, columns = (-(-length // LOGITS_STRIDE) for length in (letterbox.resized.height, letterbox.resized.width))
    found = []
    for masks, their_scores, (x, y) in zip(logits, scores, points.tolist(), strict=True):
        at = (x + crop.box[0], y + crop.box[1])
        for values, score in zip(masks, their_scores.tolist(), strict=True):
            if score > limits.score and _may_be_stable(values[:rows, :columns], limits.stability):
                found += _candidate(values, score, at, crop, letterbox)
    return found


class Selection:
    """The candidates of one image, and which of them are kept.

    Args:
        limits: which masks are wanted.
        max_bytes: of the candidates' logits. Beyond it those that are not kept at that moment are given up, and if
            that is not enough those with the lowest scores.
    """

    def __init__(self, limits: Limits, max_bytes: int) -> None:
        self._limits = limits
        self._max_bytes = max_bytes
        self._candidates: list[Candidate] = []
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._candidates)

    def add(self, candidates: Iterable[Candidate]) -> None:
        """Add the candidates of some points."""
        for candidate in candidates:
            self._candidates.append(candidate)
            self._nbytes += candidate.nbytes
        if self._nbytes > self._max_bytes:
            self._prune()

    def chosen(self) -> list[Proposal]:
        """Return the masks to keep of those added so far, best first."""
        by_crop: dict[Crop, list[Candidate]] = {}
        for candidate in self._candidates:
            by_crop.setdefault(candidate.crop, []).append(candidate)
        kept = [proposal for group in by_crop.values() for proposal in self._best_of(group)]
        if len(by_crop) > 1:
            # Of duplicates in crops that overlap, the one from the smaller crop is finer.
            kept.sort(key=lambda proposal: (proposal.candidate.crop.size.pixels, -proposal.candidate.score))
            kept = _without_duplicates(kept, self._limits)
        if self._limits.min_area > 1:
            kept = self._without_new_duplicates(kept)
        return sorted(kept, key=lambda proposal: -proposal.candidate.score)

    def _best_of(self, candidates: Sequence[Candidate]) -> list[Proposal]:
        """Return what is kept of the candidates of one crop, best first."""
        limits, kept = self._limits, list[Proposal]()
        taken = _Boxes()
        for candidate in sorted(candidates, key=lambda one: -one.score):
            if taken.surely_overlap(candidate.reach, candidate.core, limits.box_iou):
                continue
            measures = candidate.measure(limits)
            if measures is None or taken.overlap(measures.box, limits.box_iou):
                continue
            if any(_masks_overlap(measures, other.measures, limits.mask_iou) for other in kept):
                continue
            taken.add(measures.box)
            kept.append(Proposal(candidate, measures))
        return kept

    def _without_new_duplicates(self, kept: Sequence[Proposal]) -> list[Proposal]:
        """Remove holes and islands, and then duplicates: of two, the one that was whole before is kept."""
        least = self._limits.min_area
        cleaned: list[tuple[bool, Proposal]] = []
        for proposal in kept:
            candidate, measures = proposal.candidate, proposal.measures
            found = crop_of(candidate.whole_logits(), candidate.score, candidate.letterbox).crop
            mask, changed = without_specks(found, least)
            if changed:
                tight = mask.tight()
                x, y = candidate.crop.box[:2]
                x0, y0, x1, y1 = tight.box
                measures = Measures((x0 + x, y0 + y, x1 + x, y1 + y), mask.area, measures.stability, measures.coarse)
            if self._limits.fit(measures.area, measures.box):
                cleaned.append((changed, Proposal(candidate, measures)))
        cleaned.sort(key=lambda pair: (pair[0], -pair[1].candidate.score))
        return _without_duplicates([proposal for _, proposal in cleaned], self._limits)

    def _prune(self) -> None:
        kept = [proposal.candidate for proposal in self.chosen()]
        self._candidates, self._nbytes = [], 0
        for candidate in kept:
            if self._nbytes + candidate.nbytes > self._max_bytes // 2:
                break
            self._candidates.append(candidate)
            self._nbytes += candidate.nbytes


def without_specks(mask: CroppedMask, min_area: int) -> tuple[CroppedMask, bool]:
    """Fill holes of fewer than `min_area` pixels, then remove parts of fewer; the largest part stays.

    Returns:
        The mask, and whether anything was changed.
    """
    pixels, changed = mask.pixels, False
    # The frame joins all background that may go on outside of the box: that is no hole.
    outside = np.pad(~pixels, 1, constant_values=True)
    count, labels, areas = _parts(outside)
    small = areas < min_area
    small[[0, labels[0, 0]]] = False
    if small.any():
        pixels, changed = pixels | small[labels][1:-1, 1:-1], True
    count, labels, areas = _parts(pixels)
    small = areas < min_area
    small[0] = False
    if count > 1:
        small[1 + int(areas[1:].argmax())] = False
    if small.any():
        pixels, changed = pixels & ~small[labels], True
    return (CroppedMask(pixels, mask.x0, mask.y0, mask.size), True) if changed else (mask, False)


def _parts(inside: BinaryMask) -> tuple[int, NDArray[np.int32], NDArray[np.int32]]:
    """Return the number of labels, the labels, 0 outside, and their areas; corners connect."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=_NEIGHBOURS)
    return count, np.asarray(labels, np.int32), np.asarray(stats[:, cv2.CC_STAT_AREA], np.int32)


def _may_be_stable(logits: Logits, least: float) -> bool:
    inner, outer = np.count_nonzero(logits > _OFFSET), np.count_nonzero(logits > -_OFFSET)
    return bool(outer > 0 and inner / outer >= least - _SLACK)


def _candidate(
    logits: Logits, score: float, point: tuple[float, float], crop: Crop, letterbox: Letterbox
) -> list[Candidate]:
    """Return the candidate of a mask, or nothing where its logits are nowhere above 0."""
    left, top, right, bottom = bounding_box(logits > 0)
    if not bottom:
        return []
    reach = pixels_of((left, top, right, bottom), 1.0, crop, letterbox)
    core = pixels_of((left, top, right, bottom), -1.0, crop, letterbox)
    height, width = logits.shape
    left, top, right, bottom = bounding_box(logits > _FLOOR)
    top, left = max(0, top - _MARGIN), max(0, left - _MARGIN)
    bottom, right = min(height, bottom + _MARGIN), min(width, right + _MARGIN)
    part = logits[top:bottom, left:right].copy()
    return [Candidate(part, top, left, score, point, crop, letterbox, reach, core)]


def pixels_of(cells: PixelBox, grow: float, crop: Crop, letterbox: Letterbox) -> PixelBox:
    """Return the box in the image that cells of the logits cover, made larger by `grow` cells on each side."""
    scale_x, scale_y = letterbox.scale.tolist()
    x, y = crop.box[:2]
    x0, y0, x1, y1 = cells
    across, down = LOGITS_STRIDE / scale_x, LOGITS_STRIDE / scale_y
    left, right = ((x0 - grow) * across, (x1 + grow) * across)
    top, bottom = ((y0 - grow) * down, (y1 + grow) * down)
    return (
        x + max(0, int(left)),
        y + max(0, int(top)),
        x + min(crop.size.width, math.ceil(right)),
        y + min(crop.size.height, math.ceil(bottom)),
    )


class _Boxes:
    """Boxes that are kept, to compare others with."""

    def __init__(self) -> None:
        self._boxes = np.zeros((0, 4), np.float64)

    def add(self, box: PixelBox) -> None:
        self._boxes = np.concatenate([self._boxes, np.array([box], np.float64)])

    def overlap(self, box: PixelBox, limit: float) -> bool:
        """Return whether the IoU with a box that is kept is above `limit`."""
        return self.surely_overlap(box, box, limit)

    def surely_overlap(self, reach: PixelBox, core: PixelBox, limit: float) -> bool:
        """Return whether that is so for every box that contains `core` and lies within `reach`."""
        low = np.maximum(self._boxes[:, :2], core[:2])
        high = np.minimum(self._boxes[:, 2:], core[2:])
        shared = np.maximum(high - low, 0).prod(axis=1)
        area = max(0, reach[2] - reach[0]) * max(0, reach[3] - reach[1])
        union = (self._boxes[:, 2:] - self._boxes[:, :2]).prod(axis=1) + area - shared
        return bool((shared > limit * union).any())


def _without_duplicates(proposals: Sequence[Proposal], limits: Limits) -> list[Proposal]:
    """Return those whose boxes and masks overlap none before them too much."""
    taken, kept = _Boxes(), list[Proposal]()
    for proposal in proposals:
        measures = proposal.measures
        if taken.overlap(measures.box, limits.box_iou):
            continue
        if any(_masks_overlap(measures, other.measures, limits.mask_iou) for other in kept):
            continue
        taken.add(measures.box)
        kept.append(proposal)
    return kept


def _masks_overlap(one: Measures, other: Measures, limit: float | None) -> bool:
    """Return whether the IoU of two masks is above the limit, on their coarse grids."""
    if limit is None or one.coarse is None or other.coarse is None or intersection(one.box, other.box) is None:
        return False
    shared = int(np.bitwise_count(one.coarse & other.coarse).sum())
    either = int(np.bitwise_count(one.coarse | other.coarse).sum())
    return shared > limit * either


def _coarse(mask: CroppedMask) -> NDArray[np.uint8]:
    """Return every n-th pixel of a mask of the image, as packed bits."""
    size = mask.size
    step = -(-max(size.height, size.width) // _COARSE)
    seen = np.zeros((-(-size.height // step), -(-size.width // step)), np.bool_)
    top, left = -(-mask.y0 // step), -(-mask.x0 // step)
    part = mask.pixels[top * step - mask.y0 :: step, left * step - mask.x0 :: step]
    seen[top : top + part.shape[0], left : left + part.shape[1]] = part
    return np.packbits(seen)


def _cut_off(box: PixelBox, crop: Crop) -> bool:
    """Return whether a box ends near an edge of the crop that is not the image's."""
    whole = (0, 0, crop.image.width, crop.image.height)
    sides = zip(box, crop.box, whole, strict=True)
    return any(abs(at - edge) <= _EDGE < abs(at - outer) for at, edge, outer in sides)
