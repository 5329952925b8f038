"""The candidates of an evaluation, U-Nets and SAMs, and what they answer for an image.

A SAM is several candidates, one for each way to prompt it, which share one embedding of each image.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

from models import images
from models.backends.base import Embedding, SamBackend, UNetBackend
from models.catalog import CatalogueEntry
from models.confidence import INTERVALS
from models.evaluation.prompts import PromptedFruit, prompted_fruits
from models.evaluation.results import Candidate
from models.evaluation.samples import EncodedSample
from models.inspection import Inspection, inspect_scales, prompt_for, refine
from models.letterbox import Letterbox, Padding, letterbox_for
from models.masks import MAX_PIXELS, whole
from models.metrics import mask_iou
from models.sam.clicks import CAREFUL_USER
from models.sam.constants import INPUT_SIDE
from models.sam.postprocess import masks_of
from models.sam.prompts import pack
from models.types import BinaryMask, Mask, PixelClass, Prompt, SemanticMap
from models.unet.letterbox import input_area, unet_letterbox
from models.unet.scales import SCALES, unet_scales

_BOX_JITTER: Final = (
    f"each side moved by normal noise of {CAREFUL_USER.deviation:.0%} of the box's length, "
    f"at most {CAREFUL_USER.deviation * CAREFUL_USER.most_deviations:.0%}"
)
_SINGLE_MASK: Final = "the single mask for clear prompts"
_BEST_SCORED: Final = "the best scored of three"
_ORACLE: Final = "of three, the best one by the annotation"


@dataclass(frozen=True, slots=True, eq=False)
class PromptResult:
    """The mask of a prompt for an annotated fruit.

    Attributes:
        score: IoU that the model predicts for its mask.
        iou: IoU of the mask with the fruit, 0 to 1.
    """

    score: float
    iou: float


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The answer of a candidate for an image.

    Attributes:
        classes: uint8 (height, width) of the image: BACKGROUND, HEALTHY and INFECTED, or BACKGROUND and FRUIT.
        fruits: bool (height, width) each; they may overlap.
        timing_ms: milliseconds by stage, in the order in which the stages ran.
        prompted: one for each prompted fruit; None for a candidate that finds fruits by itself.
        confidences: 0 to 1, of each of `fruits`; empty for a candidate without any.
        intervals: least and largest infected fraction of each of `fruits`; empty where the candidate has none.
    """

    classes: SemanticMap
    fruits: tuple[BinaryMask, ...]
    timing_ms: Mapping[str, float]
    prompted: tuple[PromptResult, ...] | None = None
    confidences: tuple[float, ...] = ()
    intervals: tuple[tuple[float, float], ...] = ()


class Stopwatch:
    """Measure milliseconds by stage.

    Args:
        timings: of earlier stages, to add to.
    """

    def __init__(self, *timings: Mapping[str, float]) -> None:
        self.timing_ms: dict[str, float] = {}
        for timing in timings:
            for stage, spent in timing.items():
                self._add(stage, spent)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._add(name, 1000 * (time.perf_counter() - start))

    def _add(self, name: str, spent: float) -> None:
        self.timing_ms[name] = self.timing_ms.get(name, 0.0) + spent


@dataclass(frozen=True, slots=True, eq=False)
class Inspected:
    """What a U-Net sees in an image: its own answer, and the inspection for a SAM to refine."""

    inspection: Inspection
    answer: Answer


View: TypeAlias = Literal["own", "fast", "scales"]
"""What a U-Net sees of an image: as much as it was trained for, as little as in mode `fast`, or three scales as in mode
`accurate`."""

_VIEWS: Final[Mapping[View, str]] = {"own": "", "fast": ", mode fast", "scales": ", three scales"}


class UNetCandidate:
    """A U-Net on a backend.

    Args:
        entry: the model.
        backend: runs it.
        view: what it sees of an image.
    """

    def __init__(self, entry: CatalogueEntry, backend: UNetBackend, view: View = "own") -> None:
        self.entry = entry
        self.backend = backend
        self.view = view
        self.area = input_area(entry.input_area, fast=view == "fast")
        self._intervals = INTERVALS.read(entry)
        areas = [self.area] if view != "scales" else [round(scale * self.area) for scale in sorted(SCALES)]
        self.candidate = Candidate(
            name=entry.name if view == "own" else f"{entry.name}@{view}",
            title=f"U-Net {entry.name}{_VIEWS[view]}",
            family="unet",
            description="Sees the image only: no prompt, nothing of the annotation.",
            revision=entry.revision,
            settings={
                "architecture": entry.architecture,
                "backend": backend.name,
                "device": backend.device,
                "input": f"at most {', '.join(f'{area:,}' for area in areas)} pixels",
            },
        )

    def inspect(self, image: EncodedSample) -> Inspected:
        """Find classes and fruits of an image, as `/v1/semantic` does, and `/v1/inspect` without a SAM.

        At three scales it finds what `/v1/inspect` in mode `accurate` gives to the SAM.

        Raises:
            BackendError: the device failed.
        """
        watch = Stopwatch()
        size = image.sample.size
        letterboxes = unet_scales(size, self.area) if self.view == "scales" else (unet_letterbox(size, self.area),)
        sizes = [each.resized for each in letterboxes]
        with watch.stage("decode"):
            decoded = images.decode_to_sizes(image.data, sizes, max_pixels=MAX_PIXELS, scaled=True)
        with watch.stage("infer"):
            outputs = [
                self.backend.infer([self.backend.prepare(pixels, letterbox)])[0]
                for pixels, letterbox in zip(decoded, letterboxes, strict=True)
            ]
        with watch.stage("postprocess"):
            inspection = inspect_scales(outputs, letterboxes)
        answer = Answer(
            inspection.classes,
            tuple(fruit.mask.full() for fruit in inspection.fruits),
            watch.timing_ms,
            confidences=tuple(fruit.confidence for fruit in inspection.fruits),
            intervals=tuple(
                self._intervals.of(fruit.infected_fraction) for fruit in inspection.fruits if self._intervals
            ),
        )
        return Inspected(inspection, answer)


@dataclass(frozen=True, slots=True)
class SamSetup:
    """How a SAM is used.

    Attributes:
        entry: the model.
        tuned: whether it was fine-tuned.
        side: of the model's square.
        padding: of the images.
    """

    entry: CatalogueEntry
    tuned: bool = False
    side: int = INPUT_SIDE
    padding: Padding = "none"

    @property
    def name(self) -> str:
        """Unique among models and input sizes."""
        return self.entry.name if self.side == INPUT_SIDE else f"{self.entry.name}-{self.side}"

    @property
    def title(self) -> str:
        """The model's name as tables show it."""
        size = "" if self.side == INPUT_SIDE else f" at {self.side}"
        return f"{self.entry.name}{size}{', fine-tuned' if self.tuned else ''}"


@dataclass(frozen=True, slots=True)
class Embedded:
    """An image that a SAM has encoded, and how long that took."""

    letterbox: Letterbox
    embedding: Embedding
    timing_ms: Mapping[str, float]


class SamCandidate:
    """A SAM on a backend, as one candidate for each way to prompt it.

    Args:
        setup: how it is used.
        backend: runs it.
        finder: name of the U-Net whose fruits prompt it, or None.
    """

    def __init__(self, setup: SamSetup, backend: SamBackend, finder: str | None = None) -> None:
        self.setup = setup
        self.backend = backend
        self.finder = finder
        self._box = self._candidate("box", "box", f"A box around each annotated fruit, {_BOX_JITTER}.", _SINGLE_MASK)
        self._point = self._candidate(
            "point", "click", "One click at the innermost pixel of each annotated fruit.", _BEST_SCORED
        )
        self._oracle = self._candidate(
            "point-oracle",
            "click, best of three",
            "The same click; the annotation chooses the mask, so this is an upper bound and not a result.",
            _ORACLE,
        )
        self._refined = self._candidate(
            "box-unet",
            "boxes of U-Net's fruits",
            f"Boxes, grown a little, of the fruits that {finder} finds: nothing of the annotation. A mask that shows "
            "something other than that fruit is rejected; the U-Net says which pixels of the masks are infected.",
            _SINGLE_MASK,
        )

    def answers(self, image: EncodedSample, seed: int, found: Inspected | None) -> Iterator[tuple[Candidate, Answer]]:
        """Segment the fruits of an image with every kind of prompt.

        Args:
            image: prompts from the annotation are left out where it does not separate fruits.
            seed: of box jitter.
            found: what the U-Net sees in the image, or None.

        Yields:
            A candidate and its answer.

        Raises:
            BackendError: the device failed.
        """
        embedded = self.embed(image)
        if image.sample.instance_map is not None:
            fruits = prompted_fruits(image.sample, seed)
            by_box, _ = self._prompt(image, embedded, fruits, [each.by_box for each in fruits])
            yield self._box, by_box
            by_point, by_oracle = self._prompt(image, embedded, fruits, [each.by_point for each in fruits])
            yield self._point, by_point
            if not self.setup.tuned:
                yield self._oracle, by_oracle
        if found is not None:
            yield self._refined, self._refine(embedded, found)

    def embed(self, image: EncodedSample) -> Embedded:
        """Encode an image as the service does.

        Raises:
            BackendError: the device failed.
        """
        watch = Stopwatch()
        letterbox = letterbox_for(image.sample.size, self.setup.side, self.setup.padding)
        # As the service does: large JPEGs at half their size, except for the letterbox of the reference.
        scaled = letterbox.side == INPUT_SIDE and not letterbox.is_reference
        with watch.stage("decode"):
            pixels = images.decode_resized(image.data, letterbox.resized, max_pixels=MAX_PIXELS, scaled=scaled)
        with watch.stage("encode"):
            (embedding,) = self.backend.encode([self.backend.prepare(pixels, letterbox)])
        return Embedded(letterbox, embedding, watch.timing_ms)

    def _prompt(
        self, image: EncodedSample, embedded: Embedded, fruits: Sequence[PromptedFruit], prompts: Sequence[Prompt]
    ) -> tuple[Answer, Answer]:
        """Return the answer with the best scored masks and that with the best ones by the annotation."""
        ignored = image.sample.semantic == PixelClass.IGNORE
        watch = Stopwatch(embedded.timing_ms)
        by_score: list[tuple[Mask, PromptResult]] = []
        by_truth: list[tuple[Mask, PromptResult]] = []
        for fruit, masks in zip(fruits, self.masks(embedded, prompts, watch), strict=True):
            scored = [
                (mask, PromptResult(mask.score, mask_iou(mask.pixels, fruit.mask, ignored=ignored))) for mask in masks
            ]
            by_score.append(scored[0])
            by_truth.append(max(scored, key=lambda each: each[1].iou))

        def answer(chosen: Sequence[tuple[Mask, PromptResult]]) -> Answer:
            masks = tuple(mask.pixels for mask, _ in chosen)
            return Answer(_union(masks, ignored.shape), masks, watch.timing_ms, tuple(result for _, result in chosen))

        return answer(by_score), answer(by_truth)

    def _refine(self, embedded: Embedded, found: Inspected) -> Answer:
        """Refine a U-Net's fruits as `/v1/inspect` does in its mode `accurate`, but decode for both models."""
        watch = Stopwatch(found.answer.timing_ms, embedded.timing_ms)
        prompts = [prompt_for(fruit) for fruit in found.inspection.fruits]
        masks = {
            number: whole(each[0].pixels).tight() for number, each in enumerate(self.masks(embedded, prompts, watch))
        }
        with watch.stage("postprocess"):
            inspection = refine(found.inspection, masks)
        classes = np.zeros_like(inspection.classes)
        for fruit in inspection.fruits:
            x0, y0, x1, y1 = fruit.box
            inside = classes[y0:y1, x0:x1]
            inside[fruit.mask.pixels] = PixelClass.HEALTHY
            inside[fruit.infected.pixels] = PixelClass.INFECTED
        return Answer(classes, tuple(fruit.mask.full() for fruit in inspection.fruits), watch.timing_ms)

    def masks(self, embedded: Embedded, prompts: Sequence[Prompt], watch: Stopwatch) -> Iterator[tuple[Mask, ...]]:
        """Yield the masks of each prompt, in batches that keep memory bounded."""
        batch_size = self.backend.prompt_batches[-1]
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            with watch.stage("prompt"):
                packed = pack(batch, [embedded.letterbox] * len(batch))
                logits, scores = self.backend.decode([embedded.embedding], np.zeros(len(batch), np.int64), packed)
            for row, prompt in enumerate(batch):
                with watch.stage("postprocess"):
                    masks = masks_of(logits[row], scores[row], embedded.letterbox, multimask=prompt.multimask)
                yield masks

    def _candidate(self, suffix: str, prompting: str, description: str, mask: str) -> Candidate:
        setup = self.setup
        return Candidate(
            name=f"{setup.name}-{suffix}",
            title=f"{setup.title}: {prompting}",
            family="sam",
            description=description,
            revision=setup.entry.revision,
            settings={
                "architecture": setup.entry.architecture,
                "backend": self.backend.name,
                "device": self.backend.device,
                "input": f"longest side {setup.side}, padding {setup.padding}",
                "mask": mask,
            },
            oracle=mask == _ORACLE,
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """All candidates of an evaluation.

    Attributes:
        unets: include the `finder` of every SAM.
        sams: the SAMs.
    """

    unets: Sequence[UNetCandidate]
    sams: Sequence[SamCandidate]

    def answers(self, image: EncodedSample, seed: int) -> Iterator[tuple[Candidate, Answer]]:
        """Yield every candidate and its answer for an image; see `SamCandidate.answers`.

        Raises:
            BackendError: a device failed.
        """
        found: dict[str, Inspected] = {}
        for unet in self.unets:
            inspected = unet.inspect(image)
            found[unet.candidate.name] = inspected
            yield unet.candidate, inspected.answer
        for sam in self.sams:
            yield from sam.answers(image, seed, found.get(sam.finder) if sam.finder else None)


def _union(masks: Sequence[BinaryMask], shape: tuple[int, ...]) -> SemanticMap:
    union = np.zeros(shape, np.bool_)
    for mask in masks:
        union |= mask
    return np.where(union, np.uint8(PixelClass.FRUIT), np.uint8(PixelClass.BACKGROUND))
