"""`inference.GRPCInferenceService` of the Open Inference Protocol: messages in, the pipeline, messages out."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import grpc

from service.grpc import tensors
from service.grpc.answers import timings_ms
from service.grpc.calls import current_call
from service.grpc.desk import Desk
from service.oip import models
from service.oip.asking import wanted
from service.oip.inference import infer
from service.proto.generated.inference import open_inference_pb2 as pb
from service.proto.generated.inference.open_inference_pb2_grpc import GRPCInferenceServiceServicer

SERVICE_NAME: Final = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name

_Context = grpc.aio.ServicerContext[Any, Any]


class Inference(GRPCInferenceServiceServicer):
    """See the module.

    Args:
        desk: what the services share.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def ServerLive(self, request: pb.ServerLiveRequest, context: _Context) -> pb.ServerLiveResponse:  # noqa: N802, ARG002
        """Tell whether the server answers."""
        return pb.ServerLiveResponse(live=models.is_live(self._desk.pipeline))

    async def ServerReady(self, request: pb.ServerReadyRequest, context: _Context) -> pb.ServerReadyResponse:  # noqa: N802, ARG002
        """Tell whether all models are loaded."""
        return pb.ServerReadyResponse(ready=models.all_ready(self._desk.pipeline))

    async def ModelReady(self, request: pb.ModelReadyRequest, context: _Context) -> pb.ModelReadyResponse:  # noqa: N802, ARG002
        """Tell whether a model is loaded."""
        return pb.ModelReadyResponse(ready=models.is_ready(self._desk.pipeline, request.name, request.version))

    async def ServerMetadata(  # noqa: N802 (the protocol's names, here and around)
        self,
        request: pb.ServerMetadataRequest,  # noqa: ARG002
        context: _Context,  # noqa: ARG002
    ) -> pb.ServerMetadataResponse:
        """Tell what the server is."""
        return pb.ServerMetadataResponse(
            name=models.SERVER_NAME, version=models.SERVER_VERSION, extensions=models.EXTENSIONS
        )

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: _Context) -> pb.ModelMetadataResponse:  # noqa: N802, ARG002
        """Tell which tensors a model takes and gives."""
        return tensors.metadata(models.metadata(self._desk.ready(), request.name, request.version))

    async def ModelInfer(self, request: pb.ModelInferRequest, context: _Context) -> pb.ModelInferResponse:  # noqa: N802, ARG002
        """Let a model answer."""
        pipeline, call = self._desk.ready(), current_call()
        model = models.find(pipeline, request.model_name, request.model_version)
        call.note_model(pipeline, model.name, model.architecture.family)
        if request.raw_input_contents:
            asked = tensors.asked(request)
        else:
            asked = await asyncio.to_thread(tensors.asked, request)
        answer = await infer(pipeline, model, asked, lambda: wanted(asked.parameters, call.when(), call.arrived))
        call.facts.update(**answer.facts, timing_ms=timings_ms(answer.timings))
        return await asyncio.to_thread(tensors.inferred, answer, request)
