"""From what an annotator drew to a prompt, and from answers to Label Studio's regions."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from models.data.exports import LabelTags, label_studio_region, label_studio_results
from models.types import Size
from service.api import schema
from service.api.annotations import decoded_mask, found_fruits
from service.errors import MalformedRequest
from service.label_studio.config import LabelConfig
from service.label_studio.protocol import PromptRegion, RegionValue, parse_value
from service.pipelines import Pipelines

_CLICK: Final = "keypointlabels"
_BOX: Final = "rectanglelabels"
_FOREGROUND: Final = 1


@dataclass(frozen=True, slots=True)
class Drawn:
    """What an annotator drew with smart tools.

    Attributes:
        to_name: name of the Image tag it is on.
        label: that the mask gets.
        clicks: with whether they are on the object.
        box: around it, the last one drawn; None without one.
    """

    to_name: str
    label: str
    clicks: Sequence[tuple[RegionValue, bool]]
    box: RegionValue | None

    @classmethod
    def of(cls, regions: Sequence[PromptRegion]) -> Drawn:
        """Read the regions of a context; other types than clicks and boxes are ignored.

        Raises:
            MalformedRequest: there are none, they are on several images, or have no label.
        """
        prompts = [(region, parse_value(region.value)) for region in regions if region.type in (_CLICK, _BOX)]
        if not prompts:
            raise MalformedRequest(
                "The context must have at least one click (KeyPointLabels) or box (RectangleLabels)."
            )
        images = sorted({region.to_name for region, _ in prompts})
        if len(images) > 1:
            raise MalformedRequest(f"The clicks and boxes must be on one image, got {', '.join(images)}.")
        labels = [label for _, value in prompts for label in (*value.keypointlabels, *value.rectanglelabels)]
        if not labels:
            raise MalformedRequest("A click or box must have a label: choose one before clicking.")
        boxes = [value for region, value in prompts if region.type == _BOX]
        if any(box.rotation for box in boxes):
            raise MalformedRequest("A box must not be rotated.")
        clicks = [(value, region.is_positive) for region, value in prompts if region.type == _CLICK]
        return cls(images[0], labels[-1], clicks, boxes[-1] if boxes else None)

    def request(self, size: Size) -> schema.SegmentRequest:
        """Return the request for an image; a lone click is ambiguous, so the best of three masks is taken."""
        points = [(_within(value.x, size.width), _within(value.y, size.height)) for value, _ in self.clicks]
        prompt = schema.Prompt.model_construct(
            points=points or None,
            labels=[_FOREGROUND if on else 0 for _, on in self.clicks] or None,
            box=None if self.box is None else _corners(self.box, size),
            mask=None,
            multimask=self.box is None and len(points) == 1,
        )
        return schema.SegmentRequest(prompts=[prompt])


def segmented(answer: schema.SegmentResponse, tags: LabelTags, label: str) -> tuple[list[dict[str, Any]], float]:
    """Return the regions of the best mask of an answer, and its score; for a worker thread."""
    best = answer.results[0].masks[0]
    if not best.area:
        return [], 0.0
    score = min(1.0, best.score)
    return list(label_studio_region(decoded_mask(best.mask), tags, label, score, _new_id())), score


def inspected(answer: schema.InspectResponse, tags: LabelTags) -> tuple[list[dict[str, Any]], float]:
    """Return the regions of the fruit of an answer, and the least confidence; for a worker thread."""
    fruits = found_fruits(answer.fruits)
    return label_studio_results(fruits, tags, _new_id()), min((fruit.score for fruit in fruits), default=0.0)


def tags_for(config: LabelConfig, drawn: Drawn | None) -> LabelTags:
    """Return where a prediction belongs.

    Raises:
        MalformedRequest: nowhere in the labelling configuration.
    """
    return config.for_fruit() if drawn is None else config.for_label(drawn.label, drawn.to_name)


def model_version(pipelines: Pipelines) -> str:
    """Name the models that answer, with their revisions: Label Studio asks again for predictions of others."""
    engine = pipelines.engine
    names = [engine.default(family) for family in ("unet", "sam", "detector")]
    return " ".join(f"{name}@{engine.runners[name].entry.revision}" for name in names if name is not None)


def _new_id() -> str:
    return f"pomona-{secrets.token_hex(4)}"


def _within(percent: float, length: int) -> float:
    """Return pixels; a click on the very edge is on the last one."""
    return min(max(percent * length / 100, 0.0), length - 0.5)


def _corners(box: RegionValue, size: Size) -> tuple[float, float, float, float]:
    x0, x1 = sorted((box.x, box.x + box.width))
    y0, y1 = sorted((box.y, box.y + box.height))

    def clipped(percent: float, length: int) -> float:
        return min(max(percent, 0.0), 100.0) * length / 100

    return clipped(x0, size.width), clipped(y0, size.height), clipped(x1, size.width), clipped(y1, size.height)
