"""Masks of everything in an image, by the real MobileSAM, against MobileSAM's own generator (see make_automatic.py)."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from pycocotools import mask as coco

from models.backends.base import SamBackend
from models.evaluation.everything import propose
from models.sam.proposals import Limits
from service.pipelines.costs import CANDIDATES
from tests.golden.automatic import IMAGES, NOTEBOOK, NOTEBOOK_FOLDER, automatic_case, path_of

pytestmark = pytest.mark.checkpoint


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in NOTEBOOK else ()) for name in IMAGES]
)
def test_everything_that_the_reference_finds_is_found_and_little_else(openvino_sam: SamBackend, name: str) -> None:
    path = path_of(name)
    if path is None:
        pytest.skip(f"{name} of segment-anything's notebook is not in {NOTEBOOK_FOLDER}")
    case = automatic_case(name)
    with PIL.Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    proposals, _ = propose(openvino_sam, pixels, case.points_per_side, Limits(), max_bytes=CANDIDATES)
    found = [proposal.candidate.mask().full() for proposal in proposals]
    ours, theirs = (
        [coco.encode(np.asfortranarray(one.view(np.uint8))) for one in masks] for masks in (found, case.masks)
    )
    overlaps = coco.iou(ours, theirs, [0] * len(theirs))
    matched, extra = int((overlaps.max(axis=0) >= 0.9).sum()), int((overlaps.max(axis=1) < 0.9).sum())
    assert matched >= 0.95 * len(theirs), f"{matched} of {len(theirs)}"
    assert extra <= 0.05 * len(theirs), f"{extra} beside {len(theirs)}"
