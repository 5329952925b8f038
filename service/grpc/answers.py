"""The pipeline's answers as messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from models.catalog import CatalogueEntry, Family
from models.letterbox import Letterbox
from models.masks import EncodedLogits, PixelBox, Rle
from models.types import PixelClass, Size
from models.unet.letterbox import UNetLetterbox
from service.callers import Refusal
from service.formats import EncodedMask, Png
from service.messages import (
    Capture,
    Classified,
    ClassResult,
    Embedded,
    FruitResult,
    Inspected,
    MaskResult,
    Segmented,
    Timings,
    Together,
)
from service.pipeline import Pipeline
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

_CLASSES: Final[Mapping[PixelClass, pb.PixelClass.ValueType]] = {
    PixelClass.HEALTHY: pb.PIXEL_CLASS_HEALTHY,
    PixelClass.INFECTED: pb.PIXEL_CLASS_INFECTED,
}
_FAMILIES: Final[Mapping[Family, pb.ModelFamily.ValueType]] = {
    "sam": pb.MODEL_FAMILY_SAM,
    "unet": pb.MODEL_FAMILY_UNET,
}


def segmented(answer: Segmented, request_id: str) -> pb.SegmentResponse:
    """The answer of Segment."""
    return pb.SegmentResponse(
        request_id=request_id,
        image=_image(answer.image_id, answer.frame.original),
        model=_sam(answer.model, answer.frame),
        results=[pb.PromptResult(masks=[_scored(mask) for mask in masks]) for masks in answer.results],
        overlay=answer.overlay,
        degraded=answer.degraded,
        batch=_batch(answer.together),
        timing=_timing(answer.timings),
    )


def embedded(answer: Embedded, request_id: str) -> pb.EmbedResponse:
    """The answer of Embed."""
    return pb.EmbedResponse(
        request_id=request_id,
        image=_image(answer.image_id, answer.frame.original),
        model=_sam(answer.model, answer.frame),
        batch=_batch(answer.together),
        timing=_timing(answer.timings),
    )


def classified(answer: Classified, request_id: str) -> pb.SemanticResponse:
    """The answer of Semantic."""
    return pb.SemanticResponse(
        request_id=request_id,
        image=_image(answer.image_id, answer.frame.original),
        model=_unet(answer.model, answer.frame),
        classes=[_class(result) for result in answer.classes],
        class_map=answer.class_map,
        objects=[
            pb.Region(
                pixel_class=_CLASSES[region.pixel_class], box=_box(region.box), area=region.area, score=region.score
            )
            for region in answer.objects
        ],
        overlay=answer.overlay,
        batch=_batch(answer.together),
        timing=_timing(answer.timings),
    )


def inspected(answer: Inspected, request_id: str) -> pb.InspectResponse:
    """The answer of Inspect."""
    return pb.InspectResponse(
        request_id=request_id,
        image=_image(answer.image_id, answer.frame.original),
        unet=_unet(answer.model, answer.frame),
        sam=None if answer.sam is None else _sam(answer.sam.model, answer.sam.frame),
        fruits=[_fruit(fruit) for fruit in answer.fruits],
        mode=pb.INSPECT_MODE_FAST if answer.mode == "fast" else pb.INSPECT_MODE_ACCURATE,
        degraded=answer.degraded,
        reason=answer.reason,
        frame=frame(answer.capture),
        overlay=answer.overlay,
        batch=_batch(answer.together),
        timing=_timing(answer.timings),
    )


def models(pipeline: Pipeline) -> pb.ListModelsResponse:
    """The answer of ListModels: what is loaded first, the default of each family before its others."""
    runners, catalogue = pipeline.runners, pipeline.catalogue
    names = [*runners, *(name for name in catalogue if name not in runners)]
    return pb.ListModelsResponse(
        models=[
            pb.Model(
                name=name,
                family=_FAMILIES[catalogue[name].architecture.family],
                revision=catalogue[name].revision,
                licence=catalogue[name].licence,
                loaded=name in runners,
                device=runners[name].device if name in runners else None,
                backend=runners[name].backend_name if name in runners else None,
            )
            for name in names
        ]
    )


def frame(capture: Capture) -> pb.Frame:
    """What a camera said of a frame."""
    return pb.Frame(frame_id=capture.frame_id, trigger_id=capture.trigger_id, captured_at_ns=capture.captured_at_ns)


def problem(refusal: Refusal) -> pb.Problem:
    """Why a frame has no answer."""
    seconds = refusal.retry_after
    return pb.Problem(
        code=refusal.problem.code,
        title=refusal.problem.title,
        detail=refusal.detail,
        retry_after_ms=None if seconds is None else 1000 * seconds,
    )


def timings_ms(timings: Timings) -> dict[str, float]:
    """The parts of a request in milliseconds, for the log."""
    return {part: round(1000 * getattr(timings, part), 2) for part in Timings.__slots__}


def _image(image_id: str, size: Size) -> pb.Image:
    return pb.Image(id=image_id, width=size.width, height=size.height)


def _sam(entry: CatalogueEntry, frame: Letterbox) -> pb.SamModel:
    square = frame.padded == Size(frame.side, frame.side)
    return pb.SamModel(
        name=entry.name,
        revision=entry.revision,
        input_size=frame.side,
        padding=pb.PADDING_SQUARE if square else pb.PADDING_NONE,
    )


def _unet(entry: CatalogueEntry, frame: UNetLetterbox) -> pb.UnetModel:
    seen = frame.resized
    return pb.UnetModel(name=entry.name, revision=entry.revision, input_width=seen.width, input_height=seen.height)


def _batch(together: Together) -> pb.Batch:
    return pb.Batch(encode=together.encode, prompt=together.prompt, infer=together.infer)


def _timing(timings: Timings) -> pb.Timing:
    return pb.Timing(
        decode_ms=1000 * timings.decode,
        queue_ms=1000 * timings.queue,
        encode_ms=1000 * timings.encode,
        prompt_ms=1000 * timings.prompt,
        infer_ms=1000 * timings.infer,
        postprocess_ms=1000 * timings.postprocess,
        total_ms=1000 * timings.total,
    )


def _box(box: PixelBox) -> pb.PixelBox:
    x0, y0, x1, y1 = box
    return pb.PixelBox(x0=x0, y0=y0, x1=x1, y1=y1)


def _scored(result: MaskResult) -> pb.ScoredMask:
    mask = result.mask
    return pb.ScoredMask(
        mask=None if result.encoded is None else _encoded(result.encoded),
        score=mask.score,
        stability_score=mask.stability_score,
        box=_box(mask.box),
        area=mask.area,
    )


def _class(result: ClassResult) -> pb.ClassMask:
    mask = None if result.encoded is None else _encoded(result.encoded)
    return pb.ClassMask(pixel_class=_CLASSES[result.pixel_class], mask=mask, area=result.area)


def _fruit(fruit: FruitResult) -> pb.Fruit:
    return pb.Fruit(
        id=fruit.id,
        box=_box(fruit.box),
        area=fruit.area,
        mask=_encoded(fruit.mask),
        infected_mask=_encoded(fruit.infected_mask),
        infected_fraction=fruit.infected_fraction,
        pixel_class=_CLASSES[fruit.pixel_class],
        confidence=fruit.confidence,
        grade=fruit.grade,
        truncated=fruit.truncated,
        refined=fruit.refined,
    )


def _encoded(encoded: EncodedMask) -> pb.EncodedMask:
    if isinstance(encoded, Rle):
        height, width = encoded.size
        return pb.EncodedMask(rle=pb.RleMask(height=height, width=width, counts=encoded.counts.encode()))
    if isinstance(encoded, Png):
        return pb.EncodedMask(png=encoded.data)
    if isinstance(encoded, EncodedLogits):
        height, width = encoded.shape
        return pb.EncodedMask(logits=pb.LogitsMask(height=height, width=width, data=encoded.data))
    polygons = [
        pb.Polygon(rings=[pb.Ring(coordinates=[value for corner in ring for value in corner]) for ring in polygon])
        for polygon in encoded.polygons
    ]
    return pb.EncodedMask(polygons=pb.PolygonsMask(polygons=polygons))
