"""Measure what `automatic` and `edges` find, as the Segment Anything paper measures object proposals and edges.

Everything that is annotated counts as an object; its boundaries are the edges to find. On photographs in which only the
fruit is annotated, proposals and edges of other things are neither right nor wrong for recall, but count as wrong for
the precision of edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from models.backends.base import Embedding, SamBackend
from models.data.samples import InstanceMap
from models.edges import EdgeAccumulator, EdgeMap, canny_edges, enlarged, sobel_edges
from models.evaluation.average_recall import ProposedImage, average_recalls
from models.evaluation.candidates import SamCandidate
from models.evaluation.edge_measures import EdgeCounts, boundaries, count_edges, edge_measures
from models.evaluation.operations import Row, without_intervals
from models.evaluation.samples import EncodedSample, ImageSet
from models.letterbox import INPUT_SIDE, Letterbox, Padding, letterbox_for, resize
from models.sam.grid import crops_of, point_grid, spread
from models.sam.postprocess import chosen_tokens
from models.sam.prompts import pack
from models.sam.proposals import Limits, Proposal, Selection, candidates_of
from models.types import BinaryMask, Pixels, Point, Prompt, Size

_MAX_BYTES: Final = 256 << 20
_EDGES: Final = Limits(score=-math.inf, stability=-math.inf)
_RECALL: Final = Limits(score=-math.inf, stability=0.9, box_iou=0.9)
"""For recall at up to 1000 proposals, as in the paper: nothing is left out for its score, and little as a duplicate."""

_LEVELS: Final = np.arange(1, 20) / 20


def propose(
    sam: SamBackend,
    pixels: Pixels,
    per_side: int,
    limits: Limits,
    *,
    side: int = INPUT_SIDE,
    padding: Padding = "square",
    max_bytes: int = _MAX_BYTES,
) -> tuple[list[Proposal], Letterbox]:
    """Return the masks of everything in an image, best first, and how it fitted into the model's square.

    Args:
        sam: the model.
        pixels: uint8 (height, width, 3), RGB.
        per_side: points along each side of the grid.
        limits: which masks are wanted.
        side: longest side at which the image is encoded.
        padding: how it is padded.
        max_bytes: see `Selection`.
    """
    size = Size(pixels.shape[0], pixels.shape[1])
    letterbox = letterbox_for(size, side, padding)
    (embedding,) = sam.encode([sam.prepare(resize(pixels, letterbox), letterbox)])
    selection = Selection(limits, max_bytes)
    crop = next(crops_of(size, 0))
    for asked, logits, scores in _answers(sam, embedding, letterbox, point_grid(per_side, size)[spread(per_side)]):
        selection.add(candidates_of(logits, scores, asked, crop, letterbox, limits))
    return selection.chosen(), letterbox


def measure_everything(
    sams: Sequence[SamCandidate],
    sets: Sequence[ImageSet],
    *,
    proposals: bool,
    edges: bool,
    per_side: int,
    progress: bool,
) -> Iterator[Row]:
    """Measure SAMs, and for edges Sobel's and Canny's filters too.

    Args:
        sams: the models; each image is padded to a square, as by the reference.
        sets: images whose annotations separate objects; others are left out.
        proposals: measure the recall of masks.
        edges: measure edges.
        per_side: points along each side of the grid for proposals; edges are asked at half as many.
        progress: show progress bars on a terminal.

    Yields:
        What was measured, set by set.

    Raises:
        DataError: an image can no longer be used.
        BackendError: a device failed.
    """
    for images in sets:
        if not images.has_instances:
            continue
        recalled: dict[str, list[ProposedImage]] = {}
        drawn: dict[str, list[EdgeCounts]] = {}
        count = objects = 0
        for image in tqdm(images, images.name, len(images.names), leave=False, disable=None if progress else True):
            truth = image.sample.instance_map
            if truth is None:
                continue
            count, objects = count + 1, objects + len(image.sample.instances)
            for sam in sams if proposals else ():
                recalled.setdefault(sam.setup.title, []).append(_proposed(sam, image, truth, per_side))
            if edges:
                for method, edge_map in _maps(sams, image, per_side):
                    drawn.setdefault(method, []).append(count_edges(edge_map, [boundaries(truth)], thresholds=_LEVELS))
        for name, recalls in recalled.items():
            found = without_intervals(average_recalls(recalls))
            yield Row("proposals", images.title, count, objects, name, found)
        for name, counts in drawn.items():
            found = without_intervals(edge_measures(counts, _LEVELS))
            yield Row("edges", images.title, count, objects, name, found)


def _propose(sam: SamCandidate, pixels: Pixels, per_side: int, limits: Limits) -> tuple[list[Proposal], Letterbox]:
    padding: Padding = "square" if sam.backend.stretched_to is None else "stretch"
    return propose(sam.backend, pixels, per_side, limits, side=sam.setup.side, padding=padding)


def _proposed(sam: SamCandidate, image: EncodedSample, truth: InstanceMap, per_side: int) -> ProposedImage:
    objects: list[BinaryMask] = [truth == one.id for one in image.sample.instances]
    found, _ = _propose(sam, image.sample.pixels, per_side, _RECALL)
    areas = np.array([np.count_nonzero(one) for one in objects], np.float64)
    ious = np.zeros((len(found), len(objects)), np.float64)
    for row, proposal in enumerate(found):
        mask = proposal.candidate.mask()
        x0, y0, x1, y1 = mask.box
        for column, one in enumerate(objects):
            shared = np.count_nonzero(mask.pixels & one[y0:y1, x0:x1])
            ious[row, column] = shared / (mask.area + areas[column] - shared)
    return ProposedImage(ious, areas)


def _maps(sams: Sequence[SamCandidate], image: EncodedSample, per_side: int) -> Iterator[tuple[str, EdgeMap]]:
    """Yield the maps of edges of all methods, with their names."""
    pixels = image.sample.pixels
    for sam in sams:
        found, letterbox = _propose(sam, pixels, max(1, per_side // 2), _EDGES)
        accumulator = EdgeAccumulator(letterbox)
        for proposal in found:
            candidate = proposal.candidate
            accumulator.add(candidate.logits, candidate.top, candidate.left)
        yield sam.setup.title, enlarged(accumulator.finish(thin=True), image.sample.size)
    yield "Sobel", sobel_edges(pixels)
    yield "Canny", canny_edges(pixels)


def _answers(
    sam: SamBackend, embedding: Embedding, letterbox: Letterbox, points: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.float64], list[NDArray[np.float32]], list[NDArray[np.float32]]]]:
    """Yield, chunk by chunk, points with the logits and scores of the masks at each."""
    step = sam.prompt_batches[-1]
    for start in range(0, len(points), step):
        asked = points[start : start + step]
        prompts = pack([Prompt((Point(x, y),)) for x, y in asked.tolist()], [letterbox] * len(asked))
        logits, scores = sam.decode([embedding], np.zeros(len(asked), np.int64), prompts)
        tokens = [chosen_tokens(row, multimask=True) for row in scores]
        yield (
            asked,
            [logits[row, chosen] for row, chosen in enumerate(tokens)],
            [scores[row, chosen] for row, chosen in enumerate(tokens)],
        )
