"""Average recall is COCO's, and edges are matched as in the Berkeley protocol, on cases that can be worked out."""

from __future__ import annotations

import contextlib
import io
import math

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from models.edges import EdgeAccumulator, canny_edges, encode_edges, enlarged, sobel_edges, thinned
from models.evaluation.average_recall import AREAS, MOST, ProposedImage, average_recall, average_recalls
from models.evaluation.edge_measures import boundaries, count_edges, edge_measures, thin
from models.letterbox import letterbox_for
from models.types import BinaryMask, Size

SIZE = (120, 160)


def box(x0: int, y0: int, x1: int, y1: int) -> BinaryMask:
    mask = np.zeros(SIZE, np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def rles(masks: list[BinaryMask]) -> list[dict[str, object]]:
    return [coco.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks]


def random_boxes(chance: np.random.Generator, count: int, longest: int) -> list[BinaryMask]:
    found = []
    for _ in range(count):
        width, height = chance.integers(4, longest, 2)
        x, y = chance.integers(0, SIZE[1] - width), chance.integers(0, SIZE[0] - height)
        found.append(box(x, y, x + width, y + height))
    return found


def by_pycocotools(truth: list[list[BinaryMask]], proposed: list[list[BinaryMask]]) -> dict[str, float]:
    """Return the recalls of COCO's own evaluation, without classes; proposals by falling score."""
    annotations: list[dict[str, object]] = []
    results: list[dict[str, object]] = []
    for image, masks in enumerate(truth, start=1):
        for rle in rles(masks):
            area = float(coco.area(rle))
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": 1, "segmentation": rle, "area": area}
                | {"iscrowd": 0, "bbox": coco.toBbox(rle).tolist()}
            )
    for image, masks in enumerate(proposed, start=1):
        for number, rle in enumerate(rles(masks)):
            results.append({"image_id": image, "category_id": 1, "segmentation": rle, "score": 1 - number / len(masks)})
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO()
        images = [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in range(1, len(truth) + 1)]
        dataset.dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
        dataset.createIndex()
        evaluation = COCOeval(dataset, dataset.loadRes(results), "segm")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(MOST)
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"]  # thresholds, categories, areas, most
    areas = evaluation.params.areaRngLbl
    found = {f"AR@{most}": float(recall[:, 0, 0, place].mean()) for place, most in enumerate(MOST)}
    for name in ("small", "medium", "large"):
        values = recall[:, 0, areas.index(name), -1]
        found[f"AR@1000 {name}"] = float("nan") if (values == -1).all() else float(values.mean())
    return found


@pytest.mark.parametrize("seed", range(4))
def test_average_recalls_are_those_of_pycocotools(seed: int) -> None:
    chance = np.random.default_rng(seed)
    truth = [random_boxes(chance, count, longest) for count, longest in ((6, 30), (4, 110), (5, 60))]
    proposed = []
    for masks in truth:
        near = [np.roll(mask, chance.integers(-4, 5, 2), (0, 1)) for mask in masks for _ in range(4)]
        all_of_them = near + random_boxes(chance, 12, 60)
        proposed.append([all_of_them[at] for at in chance.permutation(len(all_of_them))])
    images = [
        ProposedImage(
            np.asarray(coco.iou(rles(some), rles(masks), [0] * len(masks))),
            np.array([mask.sum() for mask in masks], np.float64),
        )
        for some, masks in zip(proposed, truth, strict=True)
    ]
    assert average_recalls(images) == pytest.approx(by_pycocotools(truth, proposed), nan_ok=True)


def test_average_recall_counts_thresholds_that_are_reached() -> None:
    image = ProposedImage(np.array([[0.72, 0.0], [0.0, 0.4]]), np.array([400.0, 5000.0]))
    assert average_recall([image], 10) == pytest.approx(5 / 10 / 2)  # 0.5 to 0.7, of one object in two
    assert average_recall([image], 10, AREAS["small"]) == pytest.approx(0.5)
    assert average_recall([image], 10, AREAS["medium"]) == 0
    assert math.isnan(average_recall([image], 10, AREAS["large"]))


def test_only_the_best_proposals_count() -> None:
    ious = np.zeros((30, 1))
    ious[20] = 1.0
    image = ProposedImage(ious, np.array([400.0]))
    assert [average_recall([image], most) for most in MOST] == [0, 1, 1]


# Edges.


def drawn(*rows: int) -> NDArray[np.float32]:
    edges = np.zeros((100, 100), np.float32)
    for row in rows:
        edges[row, 10:90] = 1
    return edges


def measured(edges: NDArray[np.float32], *annotations: NDArray[np.float32]) -> dict[str, float]:
    return edge_measures([count_edges(edges, [each > 0 for each in annotations])])


def test_the_annotated_edges_themselves_are_perfect() -> None:
    found = measured(drawn(30, 60), drawn(30, 60))
    assert (found["ODS"], found["OIS"]) == (1, 1)


def test_an_edge_within_the_tolerance_is_right_and_one_beyond_it_is_wrong() -> None:
    # 0.0075 of the diagonal of 141 pixels is 1.06.
    assert measured(drawn(31), drawn(30))["ODS"] == 1
    assert measured(drawn(32), drawn(30))["ODS"] == 0


def test_half_of_the_lines_found_is_half_of_the_recall() -> None:
    found = measured(drawn(30), drawn(30, 60))
    assert found["ODS"] == pytest.approx(2 / 3)  # precision 1, recall 0.5
    assert found["R50"] == pytest.approx(0.5)


def test_two_pixels_do_not_match_one() -> None:
    counts = count_edges(drawn(30, 32), [drawn(31) > 0])
    assert (counts.matched[0], counts.drawn[0], counts.found[0]) == (80, 160, 80)


@pytest.mark.parametrize(("drawn_rows", "annotated"), [((30, 31, 32), (31,)), ((31,), (30, 31, 32))])
def test_as_many_pairs_are_matched_whichever_side_has_more_pixels(
    drawn_rows: tuple[int, ...], annotated: tuple[int, ...]
) -> None:
    edges, lines = np.zeros((100, 100), np.float32), np.zeros((100, 100), np.bool_)
    for row in drawn_rows:
        edges[row, 10:90:3] = 1  # single pixels, which are not thinned
    for row in annotated:
        lines[row, 10:90:3] = True
    counts = count_edges(edges, [lines])
    assert counts.matched[0] == counts.found[0]
    assert counts.found[0] >= 27


def test_a_pixel_is_right_if_any_annotation_has_it_and_all_are_to_be_found() -> None:
    counts = count_edges(drawn(30), [drawn(30) > 0, drawn(60) > 0])
    assert (counts.matched[0], counts.drawn[0], counts.found[0], counts.annotated[0]) == (80, 80, 80, 160)


def test_a_weaker_line_that_is_wrong_costs_nothing_at_the_best_threshold() -> None:
    edges = np.maximum(drawn(30), 0.4 * drawn(60))
    found = measured(edges, drawn(30))
    assert found["ODS"] == 1
    assert found["ODS threshold"] > 0.4


def test_each_image_has_its_own_threshold_in_ois_and_a_common_one_in_ods() -> None:
    right, wrong = drawn(30), drawn(60)
    strong = count_edges(np.maximum(right, 0.5 * wrong), [right > 0])
    weak = count_edges(np.maximum(0.3 * right, 0.1 * wrong), [right > 0])
    found = edge_measures([strong, weak])
    assert found["OIS"] == 1
    assert found["ODS"] < 1


def test_an_image_without_edges_has_its_best_threshold_where_the_least_is_drawn() -> None:
    right = drawn(30)
    full = count_edges(right, [right > 0])
    empty = count_edges(0.5 * drawn(60), [np.zeros((100, 100), np.bool_)])
    assert edge_measures([full, empty])["OIS"] == 1


def test_average_precision_is_the_area_under_the_curve() -> None:
    # Precision 1 up to a recall of a half, and falling to a half at a recall of 1.
    edges = np.maximum(drawn(20), 0.5 * drawn(40, 60, 80))
    found = measured(edges, drawn(20, 40))
    assert found["AP"] == pytest.approx(np.interp(np.arange(50, 101) / 100, [0.5, 1], [1, 0.5]).sum() / 100)


def test_lines_are_thinned_to_one_pixel_and_not_broken() -> None:
    thick = np.zeros((40, 60), np.bool_)
    thick[10:15, 5:55] = True
    line = thin(thick)
    assert line[10:15, 8:52].sum(axis=0).max() == 1
    assert line[10:15, 8:52].any(axis=0).all()


def test_boundaries_lie_between_objects() -> None:
    objects = np.zeros((20, 20), np.uint16)
    objects[5:15, 5:10], objects[5:15, 10:15] = 1, 2
    found = boundaries(objects)
    assert found[7:13, 9].all()
    assert not found[7:13, 6:8].any()
    assert not found[:3].any()


# Maps.


def test_the_boundary_of_a_disc_is_a_thin_ring() -> None:
    size = Size(512, 512)
    ys, xs = (np.mgrid[:256, :256] + 0.5) * 2
    logits = (100 - np.hypot(xs - 256, ys - 256)).astype(np.float32)
    accumulator = EdgeAccumulator(letterbox_for(size))
    accumulator.add(logits, 0, 0)
    ring = accumulator.finish(thin=True)
    assert ring.shape == (512, 512)
    assert ring.max() == 1
    rows, columns = np.nonzero(ring > 0.2)
    radii = np.hypot(columns + 0.5 - 256, rows + 0.5 - 256)
    assert abs(radii - 100).max() < 2.5
    around = np.unique(np.round(np.degrees(np.arctan2(rows - 255.5, columns - 255.5)) / 4))
    assert len(around) >= 88
    assert len(radii) < 3 * 2 * math.pi * 100


def test_nothing_is_drawn_where_a_mask_ends_because_the_image_does() -> None:
    accumulator = EdgeAccumulator(letterbox_for(Size(512, 512)))
    accumulator.add(np.full((256, 256), 5, np.float32), 0, 0)
    assert accumulator.finish(thin=False).max() == 0


def test_a_map_is_enlarged_alike_in_one_piece_and_by_rows() -> None:
    edges = np.random.default_rng(0).random((30, 40)).astype(np.float32)
    size = Size(75, 90)
    expected = cv2.resize(edges, (90, 75), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(enlarged(edges, size), expected, atol=1e-5)
    by_rows = [enlarged(edges, size, range(top, min(top + 16, 75))) for top in range(0, 75, 16)]
    np.testing.assert_array_equal(np.concatenate(by_rows), enlarged(edges, size))
    with PIL.Image.open(io.BytesIO(encode_edges(edges, size, "16"))) as opened:
        np.testing.assert_allclose(np.asarray(opened) / 65535, expected, atol=2e-5)


def test_a_ridge_stays_and_its_slopes_go() -> None:
    edges = np.zeros((40, 40), np.float32)
    edges[18:23] = np.array([0.2, 0.6, 1.0, 0.6, 0.2], np.float32)[:, None]
    kept = thinned(edges)
    assert (kept[20, 5:35] == 1).all()
    assert not kept[[18, 22], 5:35].any()


@pytest.mark.parametrize("baseline", [sobel_edges, canny_edges])
def test_the_baselines_find_a_step(baseline: object) -> None:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, 40:] = 200
    assert callable(baseline)
    edges = baseline(pixels)
    assert edges.shape == (60, 80)
    assert (edges[5:55, 38:42].max(axis=1) >= 0.4).all()
    assert edges[5:55, :30].max() == 0
