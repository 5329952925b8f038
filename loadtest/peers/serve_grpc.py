"""grpcio's own server with nothing behind it: `Segment` has one answer for all, an empty mask.

python -m loadtest.peers.serve_grpc PORT
"""

from __future__ import annotations

import sys
from typing import Any, Final

import grpc
import uvloop

from loadtest.peers.servers import STRIP
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

_EMPTY: Final = pb.RleMask(height=STRIP.height, width=STRIP.width)
_ANSWER: Final = pb.SegmentResponse(results=[pb.PromptResult(masks=[pb.ScoredMask(mask=pb.EncodedMask(rle=_EMPTY))])])


async def _segment(request: pb.SegmentRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.SegmentResponse:  # noqa: ARG001
    return _ANSWER


async def _serve(port: int) -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    answer = grpc.unary_unary_rpc_method_handler(
        _segment, pb.SegmentRequest.FromString, pb.SegmentResponse.SerializeToString
    )
    service = pb.DESCRIPTOR.services_by_name["Segmentation"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Segment": answer}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
