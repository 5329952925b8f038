"""Masks of everything in an image, by the real MobileSAM, against MobileSAM's own generator (see make_automatic.py)."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco

from models.backends.base import SamBackend
from models.letterbox import letterbox_for, resize
from models.sam.grid import crops_of, point_grid, spread
from models.sam.postprocess import chosen_tokens
from models.sam.prompts import pack
from models.sam.proposals import Limits, Selection, candidates_of
from models.types import BinaryMask, Pixels, Point, Prompt, Size
from service.pipelines.costs import CANDIDATES
from tests.golden.automatic import IMAGES, NOTEBOOK, NOTEBOOK_FOLDER, automatic_case, path_of

pytestmark = pytest.mark.checkpoint

AT_ONCE = 4


def everything(sam: SamBackend, pixels: Pixels, per_side: int) -> list[BinaryMask]:
    """Return the masks of everything in an image, at the reference's input size and padding."""
    size = Size(pixels.shape[0], pixels.shape[1])
    letterbox, crop, limits = letterbox_for(size), next(crops_of(size, 0)), Limits()
    (embedding,) = sam.encode([sam.prepare(resize(pixels, letterbox), letterbox)])
    selection = Selection(limits, CANDIDATES)
    points = point_grid(per_side, size)[spread(per_side)]
    for start in range(0, len(points), AT_ONCE):
        asked = points[start : start + AT_ONCE]
        prompts = pack([Prompt((Point(x, y),)) for x, y in asked], [letterbox] * len(asked))
        logits, scores = sam.decode([embedding], np.zeros(len(asked), np.int64), prompts)
        tokens = [chosen_tokens(row, multimask=True) for row in scores]
        masks = [logits[row, chosen] for row, chosen in enumerate(tokens)]
        their_scores = [scores[row, chosen] for row, chosen in enumerate(tokens)]
        selection.add(candidates_of(masks, their_scores, asked, crop, letterbox, limits))
    return [proposal.candidate.mask().full() for proposal in selection.chosen()]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in NOTEBOOK else ()) for name in IMAGES]
)
def test_everything_that_the_reference_finds_is_found_and_little_else(openvino_sam: SamBackend, name: str) -> None:
    path = path_of(name)
    if path is None:
        pytest.skip(f"{name} of segment-anything's notebook is not in {NOTEBOOK_FOLDER}")
    case = automatic_case(name)
    with PIL.Image.open(path) as image:
        found = everything(openvino_sam, np.asarray(image.convert("RGB")), case.points_per_side)
    ours, theirs = (
        [coco.encode(np.asfortranarray(one.view(np.uint8))) for one in masks] for masks in (found, case.masks)
    )
    overlaps = coco.iou(ours, theirs, [0] * len(theirs))
    matched, extra = int((overlaps.max(axis=0) >= 0.9).sum()), int((overlaps.max(axis=1) < 0.9).sum())
    assert matched >= 0.95 * len(theirs), f"{matched} of {len(theirs)}"
    assert extra <= 0.05 * len(theirs), f"{extra} beside {len(theirs)}"
