"""A grpcio server with nothing behind it: `Segment` always has the same answer, an empty mask.

python -m loadtest.peers.serve_grpc PORT
"""

from __future__ import annotations

import sys
from typing import Any, Final

import grpc
import uvloop

from loadtest.peers import STRIP
from loadtest.wire import empty_response
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

_ANSWER: Final = empty_response(STRIP)


async def _segment(request: pb.SegmentRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.SegmentResponse:  # noqa: ARG001
    return _ANSWER


async def _serve(port: int) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    method = grpc.unary_unary_rpc_method_handler(
        _segment, pb.SegmentRequest.FromString, pb.SegmentResponse.SerializeToString
    )
    service = pb.DESCRIPTOR.services_by_name["Segmentation"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Segment": method}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
