"""A SAM as several candidates, one for each way to prompt it, on one embedding of each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from models import images
from models.backends.base import Embedding, SamBackend
from models.catalog import CatalogueEntry
from models.evaluation.answers import Answer, Prompted, Stopwatch
from models.evaluation.prompts import FURTHEST, JITTER, Wanted, wanted_fruits
from models.evaluation.results import Subject
from models.evaluation.shots import Shot
from models.evaluation.unet_subject import Inspected
from models.letterbox import Letterbox, Padding, letterbox_for
from models.masks import MAX_PIXELS
from models.metrics import mask_iou
from models.refinement import cut_out, prompt_for, refined
from models.sam.constants import INPUT_SIDE
from models.sam.postprocess import masks_of
from models.sam.prompts import pack
from models.types import BinaryMask, Mask, PixelClass, Prompt, SemanticMap

_JITTER: Final = f"each side moved by normal noise of {JITTER:.0%} of the box's length, at most {JITTER * FURTHEST:.0%}"
_CLEAR: Final = "the one for clear prompts"
_BEST_SCORED: Final = "of three, the one that the model scores best"
_ORACLE: Final = "of three, the one that the annotation says is best"


@dataclass(frozen=True, slots=True)
class SamSetup:
    """How a SAM is asked.

    Attributes:
        entry: what it is.
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


@dataclass(frozen=True, slots=True)
class _Seen:
    frame: Letterbox
    embedding: Embedding
    watch: Stopwatch


class SamCandidate:
    """A SAM on a backend.

    Args:
        setup: how it is asked.
        backend: runs it.
        finder: name of the U-Net whose fruits it is prompted with, or None.
    """

    def __init__(self, setup: SamSetup, backend: SamBackend, finder: str | None = None) -> None:
        self._setup = setup
        self._backend = backend
        self.box = self._subject("box", "box", f"A box around each annotated fruit, {_JITTER}.", _CLEAR)
        self.point = self._subject(
            "point", "click", "One click at the innermost pixel of each annotated fruit.", _BEST_SCORED
        )
        self.oracle = self._subject(
            "point-oracle",
            "click, truly best of three masks",
            "The same click; the annotation chooses the mask, which is no result that one can have.",
            _ORACLE,
        )
        self.found = self._subject(
            "box-unet",
            "boxes of U-Net's fruits",
            f"Boxes of the fruits that {finder} finds, grown a little: nothing of the annotation. A mask that shows "
            "something else than that fruit is not taken; healthy and infected are the U-Net's within the masks.",
            _CLEAR,
        )
        self.finder = finder

    def answers(self, shot: Shot, seed: int, found: Inspected | None) -> Iterator[tuple[Subject, Answer]]:
        """Ask for the fruits of an image in every way.

        Args:
            shot: its prompts from the annotation are left out where that tells no fruits apart.
            seed: of the boxes' jitter.
            found: what the U-Net made of it, or None.

        Yields:
            A subject and its answer.

        Raises:
            BackendError: the device failed.
        """
        seen = self._see(shot)
        if shot.sample.instance_map is not None:
            wanted = wanted_fruits(shot.sample, seed)
            by_box, _ = self._ask_for(shot, seen, wanted, [each.by_box for each in wanted])
            yield self.box, by_box
            by_point, by_oracle = self._ask_for(shot, seen, wanted, [each.by_point for each in wanted])
            yield self.point, by_point
            if not self._setup.tuned:
                yield self.oracle, by_oracle
        if found is not None:
            yield self.found, self._refine(seen, found)

    def _see(self, shot: Shot) -> _Seen:
        watch = Stopwatch()
        frame = letterbox_for(shot.sample.size, self._setup.side, self._setup.padding)
        # As the service has it, see `service.prompted`: large JPEGs at half their size, but for the reference's frame.
        scaled = frame.side == INPUT_SIDE and not frame.is_reference
        with watch.runs("decode"):
            pixels = images.decode_resized(shot.data, frame.resized, max_pixels=MAX_PIXELS, scaled=scaled)
        with watch.runs("encode"):
            (embedding,) = self._backend.encode([self._backend.prepare(pixels, frame)])
        return _Seen(frame, embedding, watch)

    def _ask_for(
        self, shot: Shot, seen: _Seen, wanted: Sequence[Wanted], prompts: Sequence[Prompt]
    ) -> tuple[Answer, Answer]:
        """The answer of the best-scored masks, and that of the truly best ones; where there is one mask, the same."""
        ignored = shot.sample.semantic == PixelClass.IGNORE
        watch = Stopwatch(seen.watch.milliseconds)
        chosen: list[tuple[Mask, Prompted]] = []
        truly_best: list[tuple[Mask, Prompted]] = []
        for fruit, masks in zip(wanted, self._masks(seen, prompts, watch), strict=True):
            judged = [
                (mask, Prompted(mask.score, mask_iou(mask.pixels, fruit.mask, ignored=ignored))) for mask in masks
            ]
            chosen.append(judged[0])
            truly_best.append(max(judged, key=lambda each: each[1].iou))
        by_score, by_truth = (
            Answer(
                classes=_union([mask.pixels for mask, _ in some], ignored.shape),
                fruits=tuple(mask.pixels for mask, _ in some),
                milliseconds=watch.milliseconds,
                prompted=tuple(prompted for _, prompted in some),
            )
            for some in (chosen, truly_best)
        )
        return by_score, by_truth

    def _refine(self, seen: _Seen, found: Inspected) -> Answer:
        """As `/v1/inspect` does in its mode `accurate`; but what both models decode is counted, and done, twice."""
        watch = Stopwatch(found.answer.milliseconds)
        for stage, spent in seen.watch.milliseconds.items():
            watch.milliseconds[stage] = watch.milliseconds.get(stage, 0.0) + spent
        prompts = [prompt_for(fruit) for fruit in found.inspection.fruits]
        drawn = {number: cut_out(masks[0]) for number, masks in enumerate(self._masks(seen, prompts, watch))}
        with watch.runs("postprocess"):
            inspection = refined(found.inspection, drawn)
        classes = np.zeros_like(inspection.classes)
        for fruit in inspection.fruits:
            x0, y0, x1, y1 = fruit.box
            inside = classes[y0:y1, x0:x1]
            inside[fruit.mask.pixels] = PixelClass.HEALTHY
            inside[fruit.infected.pixels] = PixelClass.INFECTED
        return Answer(classes, tuple(fruit.mask.full() for fruit in inspection.fruits), watch.milliseconds)

    def _masks(self, seen: _Seen, prompts: Sequence[Prompt], watch: Stopwatch) -> Iterator[tuple[Mask, ...]]:
        """The masks of each prompt, in batches that keep memory bounded."""
        batch = self._backend.prompt_batches[-1]
        for start in range(0, len(prompts), batch):
            some = prompts[start : start + batch]
            with watch.runs("prompt"):
                packed = pack(some, [seen.frame] * len(some))
                logits, scores = self._backend.decode([seen.embedding], np.zeros(len(some), np.int64), packed)
            for row, prompt in enumerate(some):
                with watch.runs("postprocess"):
                    masks = masks_of(logits[row], scores[row], seen.frame, multimask=prompt.multimask)
                yield masks

    def _subject(self, ending: str, way: str, description: str, mask: str) -> Subject:
        setup = self._setup
        size = "" if setup.side == INPUT_SIDE else f" at {setup.side}"
        return Subject(
            name=f"{setup.name}-{ending}",
            title=f"{setup.entry.name}{size}{', fine-tuned' if setup.tuned else ''}: {way}",
            family="sam",
            description=description,
            revision=setup.entry.revision,
            settings={
                "architecture": setup.entry.architecture,
                "backend": self._backend.name,
                "device": self._backend.device,
                "input": f"longest side {setup.side}, padding {setup.padding}",
                "mask": mask,
            },
            oracle=mask == _ORACLE,
        )


def _union(masks: Sequence[BinaryMask], shape: tuple[int, ...]) -> SemanticMap:
    union = np.zeros(shape, np.bool_)
    for mask in masks:
        union |= mask
    return np.where(union, np.uint8(PixelClass.FRUIT), np.uint8(PixelClass.BACKGROUND))
