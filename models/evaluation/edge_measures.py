"""How well a map of edges matches annotated edges: the protocol of the Berkeley Segmentation Data Set (BSDS).

Martin, Fowlkes and Malik 2004; Arbelaez et al. 2011. A map is cut at thresholds. Of what is left, lines are thinned to
one pixel and matched one to one with the annotated lines, each pixel with one at most 0.0075 of the image's diagonal
away; as many pairs as possible (the original prefers near ones among matchings of about the same size). Where several
people annotated an image, a pixel is right if anybody's line matches it, and everybody's lines are to be found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow
from scipy.spatial import cKDTree

from models.edges import EdgeMap
from models.types import BinaryMask

TOLERANCE: Final = 0.0075
THRESHOLDS: Final = np.arange(1, 100) / 100


@dataclass(frozen=True, slots=True, eq=False)
class EdgeCounts:
    """Pixels of one image, or of a set, at each threshold: int64 (thresholds,) each.

    Attributes:
        matched: pixels of the map that match somebody's line.
        drawn: pixels of the map.
        found: annotated pixels that are matched, over all annotations.
        annotated: annotated pixels, over all annotations.
    """

    matched: NDArray[np.int64]
    drawn: NDArray[np.int64]
    found: NDArray[np.int64]
    annotated: NDArray[np.int64]


def count_edges(
    edges: EdgeMap,
    annotations: Sequence[BinaryMask],
    *,
    thresholds: NDArray[np.float64] = THRESHOLDS,
    tolerance: float = TOLERANCE,
) -> EdgeCounts:
    """Match a map with its annotations at every threshold.

    Args:
        edges: float32 (height, width), 0 to 1.
        annotations: lines of one pixel's width, bool (height, width) each; at least one.
        thresholds: rising; a pixel is drawn where the map is at least that.
        tolerance: largest distance of two pixels that match, as a share of the diagonal.
    """
    reach = tolerance * float(np.hypot(*edges.shape))
    lines = [np.argwhere(annotation) for annotation in annotations]
    counts = np.zeros((4, len(thresholds)), np.int64)
    for column, threshold in enumerate(thresholds):
        points = np.argwhere(thin(edges >= threshold))
        right = np.zeros(len(points), np.bool_)
        found = 0
        for line in lines:
            mine = _matching(points, line, reach)
            right |= mine >= 0
            found += int((mine >= 0).sum())
        counts[:, column] = right.sum(), len(points), found, sum(len(line) for line in lines)
    return EdgeCounts(*counts)


def edge_measures(images: Sequence[EdgeCounts], thresholds: NDArray[np.float64] = THRESHOLDS) -> dict[str, float]:
    """Return the measures of a set.

    Returns:
        `ODS`: the F-measure at the one threshold that is best for the whole set; `ODS threshold`; `OIS`: that with the
        best threshold of each image; `AP`: the area under precision over recall; `R50`: recall at a precision of 0.5.
    """
    whole = _summed(images)
    precision, recall = _ratios(whole)
    f_measures = _f_measure(precision, recall)
    best = int(f_measures.argmax())
    own = []
    for image in images:
        # The last of equal ones: where there is nothing to find, the threshold with the fewest wrong pixels.
        at = len(thresholds) - 1 - int(_f_measure(*_ratios(image))[::-1].argmax())
        own.append(EdgeCounts(*(values[at : at + 1] for values in _rows(image))))
    ois = float(_f_measure(*_ratios(_summed(own)))[0])
    return {
        "ODS": float(f_measures[best]),
        "ODS threshold": float(thresholds[best]),
        "OIS": ois,
        "AP": _area(precision, recall),
        "R50": _recall_at(precision, recall, 0.5),
    }


def thin(mask: BinaryMask) -> BinaryMask:
    """Thin lines to one pixel without breaking them: Zhang and Suen 1984."""
    image = np.pad(mask, 1)
    while True:
        before = int(image.sum())
        for first in (True, False):
            n, ne, e, se, s, sw, w, nw = (np.roll(image, shift, (0, 1)) for shift in _AROUND)
            ring = (n, ne, e, se, s, sw, w, nw)
            around = sum(each.astype(np.int8) for each in ring)
            turns = sum((~a & b).astype(np.int8) for a, b in zip(ring, (*ring[1:], n), strict=True))
            sides = (~(n & e & s) & ~(e & s & w)) if first else (~(n & e & w) & ~(n & s & w))
            image = image & ~((around >= 2) & (around <= 6) & (turns == 1) & sides)
        if int(image.sum()) == before:
            return image[1:-1, 1:-1]


def boundaries(instance_map: NDArray[np.integer]) -> BinaryMask:
    """Return the pixels whose neighbour to the right or below belongs to another object: lines of one pixel."""
    edges = np.zeros(instance_map.shape, np.bool_)
    edges[:, :-1] |= instance_map[:, :-1] != instance_map[:, 1:]
    edges[:-1] |= instance_map[:-1] != instance_map[1:]
    return thin(edges)


# Where the image is rolled to, so that a pixel sees its neighbour to the north, north-east, and so on.
_AROUND: Final = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))


def _matching(points: NDArray[np.intp], line: NDArray[np.intp], reach: float) -> NDArray[np.int64]:
    """Return for each point the pixel of the line that it is matched with, or -1: as many pairs as possible.

    As a flow from a source through points and line to a sink. SciPy's own `maximum_bipartite_matching` finds as many
    pairs, but takes a minute for some photographs where this takes hundredths of a second.
    """
    matched = np.full(len(points), -1, np.int64)
    if not (len(points) and len(line)):
        return matched
    pairs = cKDTree(points).sparse_distance_matrix(cKDTree(line), reach, output_type="ndarray")
    first, sink = 1 + len(points), 1 + len(points) + len(line)  # after the source, 0, and the points
    heads = (np.zeros(len(points), np.int64), 1 + pairs["i"], np.arange(first, sink))
    tails = (np.arange(1, first), first + pairs["j"], np.full(len(line), sink))
    rows, columns = np.concatenate(heads), np.concatenate(tails)
    graph = csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), shape=(sink + 1, sink + 1))
    flow = maximum_flow(graph, 0, sink, method="dinic").flow[1:first, first:sink].tocoo()
    used = flow.data > 0
    matched[flow.row[used]] = flow.col[used]
    return matched


def _rows(counts: EdgeCounts) -> tuple[NDArray[np.int64], ...]:
    return (counts.matched, counts.drawn, counts.found, counts.annotated)


def _summed(images: Sequence[EdgeCounts]) -> EdgeCounts:
    return EdgeCounts(*(np.sum(values, axis=0) for values in zip(*map(_rows, images), strict=True)))


def _ratios(counts: EdgeCounts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision and recall at each threshold; without any drawn pixel the precision is 0, as in the original."""
    precision = counts.matched / np.maximum(counts.drawn, 1)
    recall = counts.found / np.maximum(counts.annotated, 1)
    return precision, recall


def _f_measure(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    total = precision + recall
    product: NDArray[np.float64] = 2 * precision * recall
    return np.divide(product, total, out=np.zeros_like(total), where=total > 0)


def _area(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> float:
    """Return the area under precision over recall, sampled at 101 recalls within those that are reached."""
    reached, first = np.unique(recall, return_index=True)
    if len(reached) < 2:
        return 0.0
    at = np.arange(101) / 100
    inside = (at >= reached[0]) & (at <= reached[-1])
    return float(np.interp(at[inside], reached, precision[first]).sum() / 100)


def _recall_at(precision: NDArray[np.float64], recall: NDArray[np.float64], level: float) -> float:
    """Return the largest recall at which the precision is at least `level`, interpolated; 0 where it never is."""
    order = np.argsort(recall)
    recalls, precisions = recall[order], precision[order]
    good = np.flatnonzero(precisions >= level)
    if not good.size:
        return 0.0
    last = int(good[-1])
    if last + 1 == len(recalls) or precisions[last] == precisions[last + 1]:
        return float(recalls[last])
    share = (precisions[last] - level) / (precisions[last] - precisions[last + 1])
    return float(recalls[last] + share * (recalls[last + 1] - recalls[last]))
