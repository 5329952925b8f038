"""The page reads, writes and outlines masks as the service does."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import Page

from models.masks import encode_rle
from tests.contract.live import LiveDoor


def filled(rings: list[list[int]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill rings along the edges of pixels by the even-odd rule: a pixel flips with every upright edge to its left."""
    flips = np.zeros((shape[0], shape[1] + 1), np.int64)
    for ring in rings:
        corners = np.array(ring).reshape(-1, 2)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            assert (x0 == x1) != (y0 == y1), "edges are upright or level, and none is empty"
            flips[min(y0, y1) : max(y0, y1), x0] += x0 == x1
    inside: NDArray[np.bool_] = flips.cumsum(axis=1)[:, :-1] % 2 == 1
    return inside


def test_masks_are_the_services_own(page: Page, served: LiveDoor) -> None:
    random = np.random.default_rng(0)
    masks = [
        random.random((random.integers(1, 12), random.integers(1, 12))) < share
        for share in (0.02, 0.2, 0.5, 0.8, 1.1)
        for _ in range(40)
    ]
    sent = [{"size": list(mask.shape), "counts": encode_rle(mask).counts} for mask in masks]
    page.goto(served.address)
    read: list[dict[str, Any]] = page.evaluate(
        """async (sent) => {
          const masks = await import(new URL("page/masks.js", document.baseURI).href);
          return sent.map((mask) => ({
            pixels: [...masks.pixelsOf(mask)],
            area: masks.areaOf(mask),
            counts: masks.countsOf(masks.runsOf(mask.counts)),
            rings: masks.outlinesOf(masks.cropOf(mask)).map((ring) => [...ring]),
          }));
        }""",
        sent,
    )
    for mask, encoded, each in zip(masks, sent, read, strict=True):
        assert each["pixels"] == mask.reshape(-1).astype(int).tolist()
        assert each["area"] == mask.sum()
        assert each["counts"] == encoded["counts"]
        assert np.array_equal(filled(each["rings"], mask.shape), mask)
