"""The service's requests and answers as the load generator writes and reads them: the one place that knows the wire.

The gRPC messages are imported where they are needed: Locust's process has no use for grpcio.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import quote

from models.types import Point, Size

if TYPE_CHECKING:
    from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

Masks: TypeAlias = Literal["RLE", "PNG", "pixels"]

SEGMENT: Final = "/v1/segment"
DEADLINE_HEADER: Final = "X-Deadline-Ms"

_BOUNDARY: Final = uuid.uuid4().hex
CONTENT_TYPE: Final = f"multipart/form-data; boundary={_BOUNDARY}"
"""Of the bodies that `multipart` builds."""


class Unanswered(Exception):
    """A server gave no proper answer to a request that nothing could have prevented."""


@dataclass(frozen=True, slots=True)
class Call:
    """An HTTP request that is sent over and over.

    Attributes:
        path: with its query.
        content_type: of the body.
        body: sent as it is.
        deadline_header: header for the milliseconds that are left; None if the server knows no deadlines.
    """

    path: str
    content_type: str
    body: bytes
    deadline_header: str | None = None

    def chunks(self, left_ms: float | None = None) -> tuple[bytes, bytes]:
        """Return head and body of a request of HTTP/1.1 on a connection that stays open."""
        headers = {"Host": "127.0.0.1", "Content-Type": self.content_type, "Content-Length": str(len(self.body))}
        if self.deadline_header is not None and left_ms is not None:
            headers[self.deadline_header] = f"{left_ms:.1f}"
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii"), self.body


def multipart(fields: Mapping[str, str], jpeg: bytes | None, part: str = "image") -> bytes:
    """Build the body of a form.

    Args:
        fields: values by name.
        jpeg: content of the file part, if there is one.
        part: name of that part.
    """
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if jpeg is not None:
        head = f'Content-Disposition: form-data; name="{part}"; filename="frame.jpg"\r\nContent-Type: image/jpeg'
        parts += [f"--{_BOUNDARY}\r\n{head}\r\n\r\n".encode(), jpeg, b"\r\n"]
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])


def as_form(request: str, jpeg: bytes) -> Call:
    """Return the call of /v1/segment as a multipart form."""
    return Call(SEGMENT, CONTENT_TYPE, multipart({"request": request}, jpeg), DEADLINE_HEADER)


def as_raw_body(request: str, jpeg: bytes) -> Call:
    """Return the call of /v1/segment with the image as the body."""
    return Call(f"{SEGMENT}?request={quote(request)}", "image/jpeg", jpeg, DEADLINE_HEADER)


def point_request(point: Point, *, multimask: bool = True, **fields: object) -> dict[str, Any]:
    """Return the JSON of /v1/segment for one point; `fields` are further fields."""
    return {"prompts": [{"points": [[point.x, point.y]], "multimask": multimask}], **fields}


def masks_of(body: bytes | Mapping[str, Any]) -> int:
    """Return the number of masks of the first prompt in an answer of /v1/segment."""
    answer = json.loads(body) if isinstance(body, bytes) else body
    return len(answer["results"][0]["masks"])


def problem_code(body: bytes | None) -> str:
    """Return the `code` of a problem; empty if the body is not one."""
    try:
        problem = json.loads(body or b"")
    except ValueError:
        return ""
    code = problem.get("code") if isinstance(problem, dict) else None
    return code if isinstance(code, str) else ""


def retry_after_s(header: str | None) -> float:
    """Return the seconds to wait after a refusal or a failure; 1 if the answer does not say it in seconds."""
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return 1.0


def point_message(jpeg: bytes, point: Point, *, multimask: bool, model: str, masks: Masks) -> pb.SegmentRequest:
    """Return the gRPC request for one point; `masks` is RLE or PNG."""
    from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

    prompt = pb.Prompt(points=[pb.Point(x=point.x, y=point.y)], multimask=multimask)
    return pb.SegmentRequest(
        image=jpeg, prompts=[prompt], model=model, format=pb.MaskFormat.Value(f"MASK_FORMAT_{masks}")
    )


def empty_response(size: Size) -> pb.SegmentResponse:
    """Return a gRPC answer with one empty mask."""
    from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

    mask = pb.EncodedMask(rle=pb.RleMask(size=[size.height, size.width]))
    return pb.SegmentResponse(results=[pb.PromptResult(masks=[pb.ScoredMask(mask=mask)])])


def masks_of_response(response: pb.SegmentResponse) -> int:
    """Return the number of masks of the first prompt in a gRPC answer."""
    return len(response.results[0].masks)


def stream_settings(max_in_flight: int) -> pb.SegmentStreamRequest:
    """Return the first message of a stream."""
    from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

    return pb.SegmentStreamRequest(settings=pb.StreamSettings(max_in_flight=max_in_flight))


def stream_frame(request: pb.SegmentRequest, frame_id: str) -> pb.SegmentStreamRequest:
    """Return the message of a stream that sends a frame."""
    from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

    return pb.SegmentStreamRequest(request=request, frame=pb.Frame(frame_id=frame_id))


def stream_answer(reply: pb.SegmentStreamResponse) -> pb.SegmentResponse:
    """Return the answer in a reply of a stream.

    Raises:
        Unanswered: the frame was not answered.
    """
    from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

    if reply.outcome != pb.FRAME_OUTCOME_ANSWERED:
        raise Unanswered(f"{pb.FrameOutcome.Name(reply.outcome)}: {reply.problem.detail}")
    return reply.response
