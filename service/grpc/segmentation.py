"""`pomona.v1.Segmentation`: messages in, the pipeline, messages out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from typing import Any, Final

import grpc

from service.grpc import answers, reading
from service.grpc.calls import Call, current_call
from service.grpc.desk import Desk
from service.grpc.streams import Streams
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from service.proto.generated.pomona.v1.segmentation_pb2_grpc import SegmentationServicer

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["Segmentation"].full_name

_Context = grpc.aio.ServicerContext[Any, Any]


class Segmentation(SegmentationServicer):
    """See the module.

    Args:
        desk: what the services share.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._segments = Streams(desk, lambda message: message.frame, self._segment_frame, pb.SegmentStreamResponse)
        self._inspections = Streams(
            desk, lambda message: message.request.frame, self._inspect_frame, pb.InspectStreamResponse
        )

    async def Segment(self, request: pb.SegmentRequest, context: _Context) -> pb.SegmentResponse:  # noqa: N802, ARG002
        """Mask what prompts point at."""
        return await self._segment(request, current_call())

    async def Semantic(self, request: pb.SemanticRequest, context: _Context) -> pb.SemanticResponse:  # noqa: N802, ARG002
        """Tell of every pixel what it is."""
        pipeline, call = self._desk.ready(), current_call()
        asked = reading.semantic_request(request)
        call.note_model(pipeline, asked.model, "unet")
        answer = await pipeline.semantic(replace(asked, when=call.when()))
        call.facts.update(objects=len(answer.objects), timing_ms=answers.timings_ms(answer.timings))
        return answers.classified(answer, call.request_id)

    async def Inspect(self, request: pb.InspectRequest, context: _Context) -> pb.InspectResponse:  # noqa: N802, ARG002
        """Validator every fruit."""
        return await self._inspect(request, current_call())

    async def Embed(self, request: pb.EmbedRequest, context: _Context) -> pb.EmbedResponse:  # noqa: N802, ARG002
        """Encode an image."""
        pipeline, call = self._desk.ready(), current_call()
        data, choice, model = reading.image_of(request), reading.input_choice(request), request.model or None
        call.note_model(pipeline, model, "sam")
        answer = await pipeline.embed(data, model, choice, call.when())
        call.facts.update(timing_ms=answers.timings_ms(answer.timings))
        return answers.embedded(answer, call.request_id)

    async def ListModels(  # noqa: N802 (the protocol's names, here and above)
        self,
        request: pb.ListModelsRequest,  # noqa: ARG002
        context: _Context,  # noqa: ARG002
    ) -> pb.ListModelsResponse:
        """Tell which models there are."""
        return answers.models(self._desk.ready())

    def SegmentStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.SegmentStreamRequest],
        context: _Context,  # noqa: ARG002
    ) -> AsyncGenerator[pb.SegmentStreamResponse, None]:
        """Segment the frames of a camera."""
        return self._segments.run(request_iterator)

    def InspectStream(  # noqa: N802
        self,
        request_iterator: AsyncIterator[pb.InspectStreamRequest],
        context: _Context,  # noqa: ARG002
    ) -> AsyncGenerator[pb.InspectStreamResponse, None]:
        """Inspect the frames of a camera."""
        return self._inspections.run(request_iterator)

    async def _segment(self, request: pb.SegmentRequest, call: Call) -> pb.SegmentResponse:
        pipeline, limit = self._desk.ready(), self._desk.settings.max_pixels
        if reading.has_masks(request):
            asked = await asyncio.to_thread(reading.segment_request, request, max_pixels=limit)
        else:
            asked = reading.segment_request(request, max_pixels=limit)
        call.note_model(pipeline, asked.model, "sam")
        answer = await pipeline.segment(replace(asked, when=call.when()))
        call.facts.update(
            prompts=len(asked.prompts), degraded=answer.degraded, timing_ms=answers.timings_ms(answer.timings)
        )
        return answers.segmented(answer, call.request_id)

    async def _inspect(self, request: pb.InspectRequest, call: Call) -> pb.InspectResponse:
        pipeline = self._desk.ready()
        asked = reading.inspect_request(request)
        call.note_model(pipeline, asked.model, "unet")
        call.note_frame(asked.capture.frame_id, asked.capture.trigger_id)
        answer = await pipeline.inspect(replace(asked, when=call.when()))
        call.facts.update(
            fruits=len(answer.fruits),
            mode=answer.mode,
            degraded=answer.degraded,
            timing_ms=answers.timings_ms(answer.timings),
        )
        return answers.inspected(answer, call.request_id)

    async def _segment_frame(self, message: pb.SegmentStreamRequest, call: Call) -> pb.SegmentStreamResponse:
        return pb.SegmentStreamResponse(response=await self._segment(message.request, call))

    async def _inspect_frame(self, message: pb.InspectStreamRequest, call: Call) -> pb.InspectStreamResponse:
        return pb.InspectStreamResponse(response=await self._inspect(message.request, call))
