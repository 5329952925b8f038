"""The schema and the `.proto` say the same, and convert into each other."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from models.errors import MalformedPrompt, PomonaError
from service.api import detection, proposals, schema, tracking, video
from service.errors import MalformedRequest, UnsupportedFormat, UnsupportedInput
from service.grpc.codec import Mismatch, read_request, reader, writer
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb

REQUESTS = [
    schema.SegmentRequest,
    schema.EmbedRequest,
    schema.SemanticRequest,
    schema.InspectRequest,
    schema.Frame,
    proposals.AutomaticRequest,
    proposals.EdgesRequest,
]
ANSWERS = [
    schema.SegmentResponse,
    schema.EmbedResponse,
    schema.SemanticResponse,
    schema.InspectResponse,
    schema.ListModelsResponse,
    proposals.AutomaticResponse,
    proposals.AutomaticProgress,
    proposals.EdgesResponse,
]
BATCH = schema.Batch(encode=1, prompt=2, infer=3)
TIMINGS = schema.Timings(decode=1, queue=2, encode=3, prompt=4, infer=5, postprocess=6, total=21)
IMAGE = schema.Image(id="ab", width=8, height=4)
SAM = schema.SamModel(name="m", revision="r", input_size=768, padding="none")
UNET = schema.UnetModel(name="u", revision="s", input_width=64, input_height=32)
RLE = schema.RleMask(size=(4, 8), counts="0a")
LOGITS = schema.LogitsMask(shape=(1, 2), dtype="float16", data=b"\0\1\2\3")
MASKS: dict[str, schema.EncodedMask] = {
    "rle": RLE,
    "png": schema.PngMask(png=b"\x89PNG"),
    "polygons": schema.PolygonsMask(polygons=[[[[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]], [[0.5, 0.5]]]]),
    "logits": LOGITS,
}


@pytest.mark.parametrize("model", REQUESTS)
def test_every_request_of_the_schema_has_its_message(model: type[schema.Schema]) -> None:
    reader(model, pb.DESCRIPTOR.message_types_by_name[model.__name__])


@pytest.mark.parametrize("model", ANSWERS)
def test_every_answer_of_the_schema_has_its_message(model: type[schema.Schema]) -> None:
    writer(model, pb.DESCRIPTOR.message_types_by_name[model.__name__])


def test_every_message_is_of_the_schema_or_of_streams() -> None:
    of_streams = {"StreamSettings", "Problem"}
    of_shapes = {"Point", "Box", "PixelBox", "FractionInterval", "Ring", "Polygon", "EncodedMask", "MaskPrompt"}
    ours = {
        name
        for module in (schema, proposals, detection, tracking, video)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, schema.Schema) and not name.startswith("_")
    }
    theirs = {
        name
        for name in pb.DESCRIPTOR.message_types_by_name
        if not name.endswith(("StreamRequest", "StreamResponse")) and name not in of_streams | of_shapes
    }
    assert theirs == ours - {"Schema", "Problem"}


def test_a_field_that_only_one_of_them_has_is_a_mismatch() -> None:
    class RleMask(schema.RleMask):
        order: int = 0

    with pytest.raises(Mismatch, match="order"):
        writer(RleMask, pb.RleMask.DESCRIPTOR)


def test_a_request_is_read_field_by_field() -> None:
    message = pb.SegmentRequest(
        image=b"jpeg",
        model="mobile-sam",
        input_size=pb.INPUT_SIZE_768,
        padding=pb.PADDING_SQUARE,
        format=pb.MASK_FORMAT_POLYGONS,
        overlay=True,
        prompts=[
            pb.Prompt(points=[pb.Point(x=1, y=2.5)], labels=[0], multimask=False),
            pb.Prompt(box=pb.Box(x0=1, y0=2, x1=3, y1=4)),
            pb.Prompt(mask=pb.MaskPrompt(rle=pb.RleMask(size=[4, 8], counts="0a"))),
            pb.Prompt(mask=pb.MaskPrompt(logits=pb.LogitsMask(shape=[1, 2], dtype="float16", data=b"\0\1\2\3"))),
        ],
    )
    assert read_request(message, schema.SegmentRequest) == schema.SegmentRequest(
        model="mobile-sam",
        input_size=768,
        padding="square",
        format="polygons",
        overlay=True,
        prompts=[
            schema.Prompt(points=[(1, 2.5)], labels=[0], multimask=False),
            schema.Prompt(box=(1, 2, 3, 4)),
            schema.Prompt(mask=RLE),
            schema.Prompt(mask=LOGITS),
        ],
    )


def test_an_empty_message_is_a_request_of_defaults() -> None:
    assert read_request(pb.InspectRequest(), schema.InspectRequest) == schema.InspectRequest()


def test_grades_and_frame_fields_are_read() -> None:
    message = pb.InspectRequest(
        mode=pb.INSPECT_MODE_ACCURATE,
        grades=[pb.Grade(grade="A", max_infected_fraction=0.1)],
        frame_id="f",
        captured_at_ns=0,
    )
    assert read_request(message, schema.InspectRequest) == schema.InspectRequest(
        mode="accurate", grades=(schema.Grade(grade="A", max_infected_fraction=0.1),), frame_id="f", captured_at_ns=0
    )


@pytest.mark.parametrize(
    ("message", "error", "detail"),
    [
        (pb.SegmentRequest(format=9), UnsupportedFormat, "format must be one of MASK_FORMAT_RLE, .*, got the number 9"),  # type: ignore[arg-type]
        (pb.SegmentRequest(input_size=9), UnsupportedInput, "input_size must be one of"),  # type: ignore[arg-type]
        (pb.SegmentRequest(padding=9), UnsupportedInput, "padding must be one of"),  # type: ignore[arg-type]
        (pb.InspectRequest(mode=9), MalformedRequest, "mode must be one of"),  # type: ignore[arg-type]
        (pb.SemanticRequest(format=pb.MASK_FORMAT_LOGITS), UnsupportedFormat, "got the number 4"),
        (
            pb.SegmentRequest(prompts=[pb.Prompt(points=[pb.Point(x=float("nan"))])]),
            MalformedPrompt,
            r"prompts\[0\]\.points\[0\]\[0\]: Input should be a finite number",
        ),
        (pb.SegmentRequest(prompts=[pb.Prompt(mask=pb.MaskPrompt())]), MalformedPrompt, "one of rle, logits"),
        (pb.InspectRequest(grades=[pb.Grade(grade="")]), MalformedRequest, r"grades\[0\]\.grade"),
        (pb.InspectRequest(frame_id=129 * "x"), MalformedRequest, "frame_id: String should have at most 128"),
        (pb.InspectRequest(captured_at_ns=-1), MalformedRequest, "captured_at_ns"),
    ],
)
def test_a_message_that_cannot_be_read_names_the_field(message: Message, error: type[PomonaError], detail: str) -> None:
    with pytest.raises(error, match=detail):
        read_request(message, getattr(schema, message.DESCRIPTOR.name))


def test_operations_and_methods_are_the_same() -> None:
    from service.api.operations import OPERATIONS

    service = pb.DESCRIPTOR.services_by_name["Segmentation"]
    expected = {operation.rpc for operation in OPERATIONS}
    expected |= {f"{op.rpc}Stream" for op in OPERATIONS if op.streams or op.progress is not None}
    assert set(service.methods_by_name) == expected
    for operation in OPERATIONS:
        method = service.methods_by_name[operation.rpc]
        assert (method.input_type.name, method.output_type.name) == (
            operation.request.__name__,
            operation.response.__name__,
        )
        assert issubclass(GetMessageClass(method.input_type), Message)
