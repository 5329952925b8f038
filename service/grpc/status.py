"""Refusals as gRPC statuses with details, in the form of `google.rpc.Status`."""

from __future__ import annotations

from typing import Any, Final, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from service.callers import Refusal
from service.grpc.calls import Call

DOMAIN: Final = "pomona"

_DETAILS: Final = "grpc-status-details-bin"


async def refuse(context: grpc.aio.ServicerContext[Any, Any], refusal: Refusal, call: Call) -> NoReturn:
    """End a call with the status of a refusal.

    The details are an `ErrorInfo`, whose reason is the code in capitals, as that message wants it, and whose metadata
    have the code, the title and the request id as HTTP's problem has them, and a `RetryInfo` where that is known.

    Raises:
        grpc.aio.AbortError: always.
    """
    code = grpc.StatusCode[refusal.problem.grpc]
    number: int = code.value[0]
    details = [
        error_details_pb2.ErrorInfo(
            reason=refusal.problem.code.upper(),
            domain=DOMAIN,
            metadata={
                "code": refusal.problem.code,
                "title": refusal.problem.title,
                "request_id": call.request_id,
            },
        )
    ]
    if refusal.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=refusal.retry_after)))
    status = status_pb2.Status(code=number, message=refusal.detail)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort(code, refusal.detail, ((_DETAILS, status.SerializeToString()), *call.echo))
