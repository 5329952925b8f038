"""Masks of the real MobileSAM checkpoint against those that MobileSAM's own code made (see make_golden.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.backends.base import Embedding, SamBackend
from models.letterbox import Letterbox, Padding, letterbox_for, resize
from models.sam.postprocess import masks_of
from models.sam.prompts import pack
from models.types import BinaryMask, Logits, Pixels, Point, Prompt, Size
from tests.golden.golden import GoldenCase, golden_cases, read_image
from tests.reference import upsample

pytestmark = pytest.mark.checkpoint

CASES = golden_cases()


class Segmented:
    """Every golden image encoded, and every golden prompt decoded alone, by one backend."""

    def __init__(self, backend: SamBackend, padding: Padding = "square") -> None:
        self.backend = backend
        self.images: dict[str, tuple[Embedding, Letterbox]] = {}
        self.outputs: list[tuple[Logits, Any]] = []
        for case in CASES:
            if case.image not in self.images:
                pixels = read_image(case.image)
                letterbox = letterbox_for(Size(pixels.shape[0], pixels.shape[1]), padding=padding)
                prepared = backend.prepare(resize(pixels, letterbox), letterbox)
                self.images[case.image] = (backend.encode([prepared])[0], letterbox)
            embedding, letterbox = self.images[case.image]
            logits, scores = backend.decode([embedding], np.zeros(1, np.int64), pack([case.prompt], [letterbox]))
            self.outputs.append((logits[0], scores[0]))

    def masks(self, row: int) -> list[BinaryMask]:
        """Of the golden case's tokens."""
        _, letterbox = self.images[CASES[row].image]
        return [upsample(self.outputs[row][0][token], letterbox) > 0 for token in tokens_of(CASES[row])]


@pytest.fixture(scope="module")
def on_torch(torch_sam: SamBackend) -> Segmented:
    return Segmented(torch_sam)


@pytest.fixture(scope="module")
def on_openvino(openvino_sam: SamBackend) -> Segmented:
    return Segmented(openvino_sam)


@pytest.fixture(scope="module")
def unpadded_on_torch(torch_sam: SamBackend) -> Segmented:
    return Segmented(torch_sam, "none")


@pytest.fixture(scope="module")
def unpadded_on_openvino(openvino_sam: SamBackend) -> Segmented:
    return Segmented(openvino_sam, "none")


def iou(one: BinaryMask, other: BinaryMask) -> float:
    union = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / union if union else 1.0


def tokens_of(case: GoldenCase) -> tuple[int, ...]:
    return (1, 2, 3) if case.prompt.multimask else (0,)


# The thresholds are the project's promise; docs/accuracy.md has what was measured.
@pytest.mark.parametrize(("backend", "least"), [("on_torch", 0.99), ("on_openvino", 0.98)])
def test_every_mask_agrees_with_the_reference(backend: str, least: float, request: pytest.FixtureRequest) -> None:
    segmented: Segmented = request.getfixturevalue(backend)
    worst = 1.0
    for row, case in enumerate(CASES):
        _, scores = segmented.outputs[row]
        for mask, token, golden, score in zip(
            segmented.masks(row), tokens_of(case), case.masks, case.scores, strict=True
        ):
            found = iou(mask, golden)
            worst = min(worst, found)
            assert found >= least, (case.image, case.prompt, token)
            # Predicted IoU is a smooth head on the same features: float32 rounding moves it far less than this.
            assert scores[token] == pytest.approx(score, abs=2e-3)
    print(f"\n{backend}: worst mask IoU {worst:.5f}")


@pytest.mark.parametrize("backend", ["on_torch", "on_openvino"])
def test_prompts_of_different_images_decoded_together_give_what_they_give_apart(
    backend: str, request: pytest.FixtureRequest
) -> None:
    segmented: Segmented = request.getfixturevalue(backend)
    names = list(segmented.images)
    # Every third case: all images, and rows of two, three and four tokens side by side.
    rows = range(0, len(CASES), 3)
    prompts = [CASES[row].prompt for row in [*rows, 34, 35]]
    picked = [*rows, 34, 35]
    letterboxes = [segmented.images[CASES[row].image][1] for row in picked]
    index = np.array([names.index(CASES[row].image) for row in picked], np.int64)
    assert len(set(index.tolist())) == len(names)

    embeddings = [embedding for embedding, _ in segmented.images.values()]
    logits, scores = segmented.backend.decode(embeddings, index, pack(prompts, letterboxes))

    for row, together, together_scores in zip(picked, logits, scores, strict=True):
        alone, alone_scores = segmented.outputs[row]
        assert np.abs(together - alone).max() <= 1e-3
        assert np.abs(together_scores - alone_scores).max() <= 1e-3


def test_without_the_padding_both_backends_draw_the_same_masks(
    unpadded_on_torch: Segmented, unpadded_on_openvino: Segmented
) -> None:
    for row in range(len(CASES)):
        for one, other in zip(unpadded_on_torch.masks(row), unpadded_on_openvino.masks(row), strict=True):
            assert iou(one, other) >= 0.98
    assert {letterbox.padded for _, letterbox in unpadded_on_openvino.images.values()} == {
        Size(768, 1024),
        Size(1024, 768),
        Size(448, 1024),
        Size(1024, 960),
    }


def test_without_the_padding_boxes_draw_nearly_the_masks_of_the_padded_square(unpadded_on_openvino: Segmented) -> None:
    rows = [row for row, case in enumerate(CASES) if case.prompt.box is not None and not case.prompt.multimask]
    found = sorted(iou(unpadded_on_openvino.masks(row)[0], CASES[row].masks[0]) for row in rows)
    # Measured: 0.995 and above, with the margin that letterboxes leave; without it two fell to 0.84 and 0.80.
    assert len(found) == 22
    assert min(found) >= 0.98


@pytest.mark.parametrize("name", ["torch_sam", "openvino_sam"])
def test_unpadded_images_of_one_shape_share_batches(name: str, request: pytest.FixtureRequest) -> None:
    backend: SamBackend = request.getfixturevalue(name)
    case = CASES[1]
    pixels = read_image(case.image)
    height, width = pixels.shape[:2]
    box = case.prompt.box
    assert box is not None
    centre = Point((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
    letterbox = letterbox_for(Size(height, width), 512, "none")
    images: list[Pixels] = [pixels, np.ascontiguousarray(pixels[:, ::-1])]
    prompts = [case.prompt, Prompt((Point(width - centre.x, centre.y),)), Prompt((centre,))]
    index = np.array([0, 1, 0], np.int64)

    together = backend.encode([backend.prepare(resize(image, letterbox), letterbox) for image in images])
    logits, scores = backend.decode(together, index, pack(prompts, [letterbox] * 3))

    for row, (prompt, image) in enumerate(zip(prompts, index, strict=True)):
        alone = backend.encode([backend.prepare(resize(images[image], letterbox), letterbox)])
        expected, expected_scores = backend.decode(alone, np.zeros(1, np.int64), pack([prompt], [letterbox]))
        assert logits.shape == (3, 4, 96, 128)
        assert np.abs(logits[row] - expected[0]).max() <= 1e-3
        assert np.abs(scores[row] - expected_scores[0]).max() <= 1e-3


@pytest.mark.parametrize("name", ["torch_sam", "openvino_sam"])
def test_inputs_that_do_not_fit_together_are_rejected(name: str, request: pytest.FixtureRequest) -> None:
    backend: SamBackend = request.getfixturevalue(name)
    assert backend.flexible
    wide, tall = letterbox_for(Size(64, 192), 192, "none"), letterbox_for(Size(192, 64), 192, "none")
    of_wide, of_tall = (
        backend.prepare(np.zeros((letterbox.resized.height, letterbox.resized.width, 3), np.uint8), letterbox)
        for letterbox in (wide, tall)
    )
    with pytest.raises(ValueError, match="separate batches"):
        backend.encode([of_wide, of_tall])
    with pytest.raises(ValueError, match="as the prompts were packed for"):
        backend.decode(backend.encode([of_wide]), np.zeros(1, np.int64), pack([Prompt((Point(1, 1),))], [tall]))
    with pytest.raises(ValueError, match="the pixels must have the shape"):
        backend.prepare(np.zeros((64, 64, 3), np.uint8), wide)
    with pytest.raises(ValueError, match="must be multiples of 64"):
        backend.prepare(np.zeros((50, 100, 3), np.uint8), letterbox_for(Size(50, 100), 100))


def test_masks_come_best_first_with_figures_that_fit_their_pixels(on_openvino: Segmented) -> None:
    case, (logits, scores) = CASES[0], on_openvino.outputs[0]
    _, letterbox = on_openvino.images[case.image]

    masks = masks_of(logits, scores, letterbox, multimask=True)

    assert [mask.score for mask in masks] == sorted((float(s) for s in scores[1:]), reverse=True)
    for mask in masks:
        x0, y0, x1, y1 = mask.box
        assert mask.area == np.count_nonzero(mask.pixels) == np.count_nonzero(mask.pixels[y0:y1, x0:x1])
        assert mask.pixels[y0].any()
        assert mask.pixels[:, x1 - 1].any()
        assert 0 <= mask.stability_score <= 1
    assert masks[0].stability_score > 0.9


def test_a_mask_given_back_as_a_prompt_returns_about_itself(on_openvino: Segmented) -> None:
    case = CASES[1]
    embedding, letterbox = on_openvino.images[case.image]
    logits, _ = on_openvino.outputs[1]
    first = upsample(logits[0], letterbox) > 0
    for guess in (logits[0], first):
        prompt = type(case.prompt)(box=case.prompt.box, mask=guess, multimask=False)
        again, _ = on_openvino.backend.decode([embedding], np.zeros(1, np.int64), pack([prompt], [letterbox]))
        assert iou(upsample(again[0, 0], letterbox) > 0, first) > 0.97


@pytest.mark.parametrize("side", [1024, 512])
def test_a_mask_alone_is_followed_without_the_padding_too(openvino_sam: SamBackend, side: int) -> None:
    case = CASES[1]
    pixels = read_image(case.image)
    letterbox = letterbox_for(Size(pixels.shape[0], pixels.shape[1]), side, "none")
    embedding = openvino_sam.encode([openvino_sam.prepare(resize(pixels, letterbox), letterbox)])[0]
    golden = case.masks[0]
    for guess in (golden, logits_of(openvino_sam, embedding, case, letterbox)):
        prompt = Prompt(mask=guess, multimask=False)
        logits, scores = openvino_sam.decode([embedding], np.zeros(1, np.int64), pack([prompt], [letterbox]))
        (mask,) = masks_of(logits[0], scores[0], letterbox, multimask=False)
        # Without the box that `pack` adds, three of four such masks were lost altogether.
        assert iou(mask.pixels, golden) >= 0.95


def logits_of(backend: SamBackend, embedding: Embedding, case: GoldenCase, letterbox: Letterbox) -> Logits:
    """The logits that an answer to the case's prompt carries."""
    logits, _ = backend.decode([embedding], np.zeros(1, np.int64), pack([case.prompt], [letterbox]))
    answer: Logits = logits[0, 0]
    return answer
