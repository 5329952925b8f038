"""One inference: checked tensors to the pipeline, and its answer to tensors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from models.catalog import CatalogueEntry
from service.messages import Timings, When
from service.oip.asking import Asked, Parameter
from service.oip.classifying import classified, semantic_request
from service.oip.inputs import check
from service.oip.models import TENSORS
from service.oip.segmenting import segment_request, segmented
from service.oip.tensors import Tensor
from service.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Inferred:
    """What a model gave.

    Attributes:
        model: that answered.
        outputs: those that were wanted, in the order in which they were.
        timings: where the time went.
        facts: for the log.
        parameters: of the answer.
    """

    model: CatalogueEntry
    outputs: Sequence[Tensor]
    timings: Timings
    facts: Mapping[str, Parameter]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


async def infer(pipeline: Pipeline, model: CatalogueEntry, asked: Asked, when: Callable[[], When]) -> Inferred:
    """Let a model answer.

    Args:
        pipeline: that has the model.
        model: that is loaded.
        asked: of it.
        when: tells until when; asked once the request is built, as that takes time.

    Raises:
        PomonaError: of `models.errors` and `service.errors`, whatever is wrong with the request or the device.
    """
    family = model.architecture.family
    tensors = TENSORS[family]
    check(asked, tensors)
    outputs = asked.outputs or tuple(spec.name for spec in tensors.outputs)
    if family == "unet":
        return await _classify(pipeline, model, asked, outputs, when)
    return await _segment(pipeline, model, asked, outputs, when)


async def _segment(
    pipeline: Pipeline, model: CatalogueEntry, asked: Asked, outputs: Sequence[str], when: Callable[[], When]
) -> Inferred:
    in_worker, limit = pipeline.reception.in_worker, pipeline.reception.settings.max_pixels
    request = await in_worker(functools.partial(segment_request, max_pixels=limit), model.name, asked, outputs)
    answer = await pipeline.segment(replace(request, when=when()))
    made = await in_worker(segmented, answer, outputs)
    facts = {"prompts": len(request.prompts), "degraded": answer.degraded}
    return Inferred(answer.model, made, answer.timings, facts, {"degraded": answer.degraded})


async def _classify(
    pipeline: Pipeline, model: CatalogueEntry, asked: Asked, outputs: Sequence[str], when: Callable[[], When]
) -> Inferred:
    request = await pipeline.reception.in_worker(semantic_request, model.name, asked)
    answer = await pipeline.semantic(replace(request, when=when()))
    return Inferred(answer.model, classified(answer, outputs), answer.timings, {"objects": len(answer.objects)})
