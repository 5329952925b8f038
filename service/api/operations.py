"""The operations: what callers can ask for.

HTTP, gRPC, the OpenAPI description and metrics are bound to this table: `POST /v1/{name}` or, without an image,
`GET /v1/{name}`; `pomona.v1.Segmentation/{rpc}`. None of them has logic of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from models.catalog import Family
from service.api import detection, proposals, schema, video
from service.api.context import RequestContext
from service.api.schema import Schema
from service.pipelines import Pipelines
from service.pipelines.source import ImageInput

Run = Callable[[Pipelines, Any, ImageInput, RequestContext], Awaitable[Schema]]
"""Answer a request: pipelines, the request, its image, its context."""


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation.

    Attributes:
        name: last part of its path.
        rpc: name of its method.
        summary: one line.
        family: of the model that a request names in `model`, or None.
        request: its schema.
        response: its schema.
        run: does it.
        image: whether it takes an image: `required`, `or_id` (the image or an image id) or `none`; without one, a
            request with fields is the body, JSON.
        streams: whether frames of a camera may be sent in a stream of `{rpc}Stream`.
        progress: schema of what is reported before the answer to a caller of `{rpc}Stream`, or None.
        log: fields of the log line: from request and response.
        example: a request.
    """

    name: str
    rpc: str
    summary: str
    family: Family | None
    request: type[Schema]
    response: type[Schema]
    run: Run
    image: Literal["required", "or_id", "none"] = "required"
    streams: bool = False
    progress: type[Schema] | None = None
    log: Callable[[Any, Any], Mapping[str, Any]] = lambda request, answer: {}  # noqa: ARG005
    example: Mapping[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Its path over HTTP."""
        return f"/v1/{self.name}"

    @property
    def posts(self) -> bool:
        """Whether its request has a body over HTTP."""
        return self.image != "none" or bool(self.request.model_fields)

    async def answer(self, pipelines: Pipelines, request: Schema, image: ImageInput, context: RequestContext) -> Schema:
        """Run the operation and note what its log line says, also where there is no answer.

        Raises:
            PomonaError: of `models.errors` and `service.errors`.
        """
        engine = pipelines.engine
        if self.family is not None:
            model: str = getattr(request, "model", None) or engine.default(self.family) or ""
            context.model = model if model in engine.runners else ""
        for name in ("frame_id", "trigger_id"):
            if (value := getattr(request, name, None)) is not None:
                context.log[name] = value
        answer = await self.run(pipelines, request, image, context)
        context.log.update(self.log(request, answer))
        if self.family is not None:
            context.log["timing_ms"] = {part: value for part, value in context.timing_ms() if value}
        return answer


async def _list_models(
    pipelines: Pipelines, request: schema.ListModelsRequest, image: ImageInput, context: RequestContext
) -> Schema:
    del request, image, context
    return pipelines.list_models()


async def _end_track(
    pipelines: Pipelines, request: video.EndTrackRequest, image: ImageInput, context: RequestContext
) -> Schema:
    del image
    return await pipelines.track.end(request, context)


OPERATIONS: Final = (
    Operation(
        name="segment",
        rpc="Segment",
        summary="Masks for points, boxes and masks on an image",
        family="sam",
        request=schema.SegmentRequest,
        response=schema.SegmentResponse,
        run=lambda pipelines, *request: pipelines.segment.run(*request),
        image="or_id",
        streams=True,
        log=lambda request, answer: {"prompts": len(request.prompts), "degraded": answer.degraded},
        example={
            "model": "mobile-sam",
            "prompts": [{"points": [[548, 190]], "labels": [1], "multimask": True}],
            "format": "rle",
            "overlay": False,
        },
    ),
    Operation(
        name="embed",
        rpc="Embed",
        summary="Encode an image once, to prompt it many times by its image_id",
        family="sam",
        request=schema.EmbedRequest,
        response=schema.EmbedResponse,
        run=lambda pipelines, *request: pipelines.segment.embed(*request),
        example={"model": "mobile-sam"},
    ),
    Operation(
        name="semantic",
        rpc="Semantic",
        summary="Which pixels are healthy fruit, and which are infected",
        family="unet",
        request=schema.SemanticRequest,
        response=schema.SemanticResponse,
        run=lambda pipelines, *request: pipelines.semantic.run(*request),
        log=lambda request, answer: {"objects": len(answer.objects)},  # noqa: ARG005
        example={"format": "rle", "overlay": False},
    ),
    Operation(
        name="inspect",
        rpc="Inspect",
        summary="Every fruit: where it is, how much of it is infected, its grade",
        family="unet",
        request=schema.InspectRequest,
        response=schema.InspectResponse,
        run=lambda pipelines, *request: pipelines.inspect.run(*request),
        streams=True,
        log=lambda request, answer: {  # noqa: ARG005
            "fruits": len(answer.fruits),
            "mode": answer.mode,
            "degraded": answer.degraded,
        },
        example={
            "mode": "auto",
            "format": "rle",
            "grades": [{"grade": "A", "max_infected_fraction": 0.01}, {"grade": "B", "max_infected_fraction": 0.1}],
            "overlay": False,
            "frame_id": "cam2-004711",
            "trigger_id": "lane3-000815",
            "captured_at_ns": 1767225600000000000,
        },
    ),
    Operation(
        name="automatic",
        rpc="Automatic",
        summary="Masks of everything in an image",
        family="sam",
        request=proposals.AutomaticRequest,
        response=proposals.AutomaticResponse,
        run=lambda pipelines, *request: pipelines.automatic.run(*request),
        image="or_id",
        progress=proposals.AutomaticProgress,
        log=lambda request, answer: {  # noqa: ARG005
            "masks": len(answer.masks),
            "points": answer.points_done,
            "degraded": answer.degraded,
        },
        example={"model": "mobile-sam", "points_per_side": 32, "min_area": 100, "format": "rle", "overlay": False},
    ),
    Operation(
        name="edges",
        rpc="Edges",
        summary="Edges of everything in an image",
        family="sam",
        request=proposals.EdgesRequest,
        response=proposals.EdgesResponse,
        run=lambda pipelines, *request: pipelines.edges.run(*request),
        image="or_id",
        log=lambda request, answer: {  # noqa: ARG005
            "masks": answer.masks,
            "points": answer.points_done,
            "degraded": answer.degraded,
        },
        example={"model": "mobile-sam", "points_per_side": 16, "thick": False, "depth": "8"},
    ),
    Operation(
        name="detect",
        rpc="Detect",
        summary="Boxes of objects of known classes",
        family="detector",
        request=detection.DetectRequest,
        response=detection.DetectResponse,
        run=lambda pipelines, *request: pipelines.detect.run(*request),
        log=lambda request, answer: {"objects": len(answer.detections)},  # noqa: ARG005
        example={"classes": ["orange", "apple"], "score_threshold": 0.3, "overlay": False},
    ),
    Operation(
        name="instances",
        rpc="Instances",
        summary="Masks of what a detector finds",
        family="detector",
        request=detection.InstancesRequest,
        response=detection.InstancesResponse,
        run=lambda pipelines, *request: pipelines.instances.run(*request),
        log=lambda request, answer: {"objects": len(answer.instances), "degraded": answer.degraded},  # noqa: ARG005
        example={"classes": ["orange", "apple"], "score_threshold": 0.3, "format": "rle", "overlay": False},
    ),
    Operation(
        name="text",
        rpc="Text",
        summary="Masks of what a text names, where a detector knows it",
        family="detector",
        request=detection.TextRequest,
        response=detection.TextResponse,
        run=lambda pipelines, *request: pipelines.instances.text(*request),
        log=lambda request, answer: {"objects": len(answer.instances), "degraded": answer.degraded},  # noqa: ARG005
        example={"text": "oranges", "format": "rle", "overlay": False},
    ),
    Operation(
        name="track",
        rpc="Track",
        summary="Masks of objects that are followed over the frames of a video, which come one by one",
        family="sam2",
        request=video.TrackRequest,
        response=video.TrackResponse,
        run=lambda pipelines, *request: pipelines.track.run(*request),
        streams=True,
        log=lambda request, answer: {  # noqa: ARG005
            "session": answer.session[:8],
            "frame_index": answer.frame_index,
            "objects": len(answer.objects),
        },
        example={"prompts": [{"object_id": 1, "points": [[548, 190]]}], "format": "rle", "frame_id": "cam2-004711"},
    ),
    Operation(
        name="track/end",
        rpc="EndTrack",
        summary="Close a session of track",
        family=None,
        request=video.EndTrackRequest,
        response=video.EndTrackResponse,
        run=_end_track,
        image="none",
        example={"session": "0123456789abcdef0123456789abcdef"},
    ),
    Operation(
        name="models",
        rpc="ListModels",
        summary="Which models are loaded, and which could be",
        family=None,
        request=schema.ListModelsRequest,
        response=schema.ListModelsResponse,
        run=_list_models,
        image="none",
    ),
)
