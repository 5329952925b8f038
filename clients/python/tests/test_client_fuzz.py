"""Whatever is given for a public parameter: it works, or is refused with an error of this package."""

from __future__ import annotations

import asyncio
import decimal
import fractions
import io
import ssl
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from stand_in import ANSWERS, IMAGE

from pomona import (
    NO_RETRY,
    AsyncClient,
    AsyncHttpTransport,
    Attempt,
    Box,
    Call,
    Client,
    Embed,
    Frame,
    FrameInfo,
    HttpTransport,
    Inspect,
    Mask,
    PixelBox,
    Point,
    PomonaError,
    Prompt,
    Retry,
    Segment,
    Semantic,
    Timeout,
    errors,
    jpeg,
)
from pomona.grpc_codec import encode_call, encode_frame
from pomona.images import encode_image, open_image
from pomona.masks import Logits, Rle
from pomona.testing import a_fruit, an_embedding, an_inspection

EXAMPLES: Final = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LONGEST: Final = 1000  # characters of an error, whatever was given
MODES: Final = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")

arrays = st.builds(
    np.zeros,
    st.lists(st.integers(0, 4), max_size=4).map(tuple),
    st.sampled_from(["bool", "uint8", "uint16", "int64", "float32", "complex64", "U3", "object", "datetime64[s]"]),
)
images = st.builds(
    PIL.Image.new, st.sampled_from([*MODES, "I;16", "I;16B"]), st.tuples(st.integers(0, 5), st.integers(0, 5))
)
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([1 << 70, -(10**400), 10**400]),
    st.floats(),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.text(max_size=5),
    st.sampled_from(["\ud800", "a\x00b", "1", "0.5", "x" * 200, "."]),
    st.binary(max_size=5),
    st.sampled_from([np.float32(1), np.int64(1), np.bool_(True), object(), Path("none"), print, {1}, range(3), type]),
    st.lists(st.one_of(st.integers(), st.text(max_size=2)), max_size=3),
    st.dictionaries(
        st.one_of(st.text(max_size=2), st.integers()), st.one_of(st.floats(), st.text(max_size=2)), max_size=3
    ),
    arrays,
    images,
)


def mostly(*valid: Any) -> st.SearchStrategy[Any]:
    """Values of which about two in three are valid, so that most calls get far."""
    return st.one_of(st.sampled_from(valid), st.sampled_from(valid), odd)


POINT, BOX, MASK = Point(1, 2), Box(1, 1, 3, 3), Mask.of(np.eye(4, dtype=np.bool_))
numbers = mostly(0, 1, 2.5, np.float32(3), fractions.Fraction(1, 3))
seconds = mostly(None, 0.5, 3, decimal.Decimal(1))
shapes = mostly(POINT, BOX, MASK, PixelBox(1, 1, 2, 2), np.ones((2, 2), np.bool_), Prompt(box=BOX))
sources = mostly(IMAGE, np.zeros((4, 4), np.uint16), PIL.Image.new("RGB", (4, 4)), io.BytesIO(IMAGE))
options = st.fixed_dictionaries(
    {},
    optional={
        "model": mostly(None, "m"),
        "overlay": mostly(True, False),
        "deadline": seconds,
        "urgency": mostly(None, 0, 7),
        "request_id": mostly(None, "r1"),
    },
)
frames = st.builds(Frame, image=sources, frame_id=mostly("f"), trigger_id=mostly("t"), captured_at_ns=mostly(5, None))


def tried(call: Any, *arguments: Any, **named: Any) -> Any:
    """Return what a call returns, or None if it was refused with an error of ours."""
    try:
        return call(*arguments, **named)
    except PomonaError as error:
        refused = error
    assert 0 < len(refused.detail) < LONGEST
    return None


@EXAMPLES
@given(st.data())
def test_prompts_and_limits(data: st.DataObject) -> None:
    number = data.draw(st.lists(numbers, min_size=5, max_size=5))
    tried(Point, *number[:2], label=data.draw(mostly(0, 1)))
    tried(Box, *number[:4])
    tried(Timeout, connect=number[0], attempt=number[1], total=number[2])
    retry = tried(
        Retry,
        attempts=data.draw(mostly(1, 2000)),
        first_delay=number[1],
        longest_delay=number[2],
        budget=number[3],
        reserve=number[4],
    )
    if retry is not None:
        assert retry.delay(5000, 1.0) <= retry.longest_delay
    tried(FrameInfo, *data.draw(st.tuples(mostly("f"), mostly("t"), mostly(1, 2**63 - 1))))
    tried(Prompt.of, *data.draw(st.lists(shapes, max_size=3)), multimask=data.draw(mostly(True)))
    tried(Prompt, data.draw(mostly((POINT,), ())), *data.draw(st.tuples(mostly(BOX), mostly(MASK), mostly(True))))
    for cls in (Rle, Logits):
        tried(cls, *data.draw(st.tuples(*[mostly((4, 4), "04", b"1234", (2.0, 2.0))] * (2 if cls is Rle else 3))))
    mask = tried(Mask, *data.draw(st.tuples(mostly((4, 4)), mostly(MASK.encoded))))
    if mask is not None:
        tried(lambda: mask.array)


@EXAMPLES
@given(sources, mostly(1, 95))
def test_images(source: Any, quality: Any) -> None:
    tried(encode_image, source)
    tried(open_image, source)
    tried(jpeg, source, quality)
    tried(Mask.of, source)
    if not isinstance(source, str):
        tried(Mask.open, source)


ATTEMPT: Final = Attempt(timeout=1, connect=1, deadline=0.5, urgency=1, request_id="r1")


@EXAMPLES
@given(st.data())
def test_calls_over_both_transports(data: st.DataObject) -> None:
    sizes = st.fixed_dictionaries(
        {}, optional={"input_size": mostly(512, "auto"), "padding": mostly("none", "square"), "logits": mostly(True)}
    )
    limits = mostly(None, {"A": 0.1}, {"A": 0.1, "B": np.float32(0.5)})
    prompts = data.draw(st.one_of(shapes, st.lists(st.one_of(shapes, st.lists(shapes, max_size=2)), max_size=3)))
    common, source = data.draw(options), data.draw(sources)
    request_options = {name: value for name, value in common.items() if name in ("model", "overlay")}
    requests = [
        tried(Segment, prompts, **request_options, **data.draw(sizes)),
        tried(Inspect, mode=data.draw(mostly("fast", "auto")), grades=data.draw(limits), **request_options),
        tried(Semantic, **request_options),
        tried(Embed, model=common.get("model"), padding=data.draw(mostly("none"))),
        data.draw(odd),
    ]
    call_options = {name: value for name, value in common.items() if name not in request_options}
    info = tried(FrameInfo, data.draw(mostly("f")), data.draw(mostly("t")), data.draw(mostly(1)))
    with Client(
        transport=HttpTransport("http://pomona", through=httpx.MockTransport(answer)), retry=NO_RETRY
    ) as client:
        for request in requests:
            tried(client.send, request, source, info, **call_options)
            call = tried(Call.of, request, source, info)
            if call is not None:
                tried(encode_call, call)
                if request.streams:
                    tried(encode_frame, call, ATTEMPT)


def answer(request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json=ANSWERS[request.url.path.rpartition("/")[2]])


@EXAMPLES
@given(st.data())
def test_streams(data: st.DataObject) -> None:
    given_frames = data.draw(st.one_of(st.lists(st.one_of(frames, sources), max_size=3), odd))
    request = data.draw(mostly(Inspect(), Segment(POINT)))
    named = {
        "deadline": data.draw(seconds),
        "urgency": data.draw(mostly(None, 1)),
        "in_flight": data.draw(mostly(1, 3)),
        "ordered": data.draw(mostly(True, False)),
        "newest_first": data.draw(mostly(True, False)),
        "capture_clock": data.draw(mostly(None, lambda: 5)),
    }
    if data.draw(st.booleans()):
        transport = HttpTransport("http://pomona", through=httpx.MockTransport(answer))
        with Client(transport=transport, retry=NO_RETRY) as client:
            tried(lambda: list(client.stream(given_frames, request, **named)))
        return

    async def run() -> None:
        transport = AsyncHttpTransport("http://pomona", through=httpx.MockTransport(answer))
        async with AsyncClient(transport=transport, retry=NO_RETRY) as client:
            async for _ in client.stream(given_frames, request, **named):
                pass

    tried(lambda: asyncio.run(run()))


urls = st.one_of(
    st.sampled_from(["http://localhost:1", "https://localhost", "grpc://localhost:1", "grpcs://localhost"]),
    st.text(max_size=8).map("http://".__add__),
    st.text(max_size=8).map("grpc://".__add__),
    odd,
)


@EXAMPLES
@given(
    urls,
    seconds,
    mostly(None, Retry()),
    mostly(None, {"x-token": "a"}, {"x-token": "ä"}, {"x y": "1"}),
    mostly(None, ssl.create_default_context()),
    mostly(None, "key", "two words"),
    mostly(None, ("no certificate", "no key")),
)
def test_clients(url: Any, timeout: Any, retry: Any, headers: Any, tls: Any, key: Any, certificate: Any) -> None:
    options = {"timeout": timeout, "retry": retry, "headers": headers, "tls": tls, "api_key": key}
    client = tried(Client, url, client_certificate=certificate, **options)
    if client is not None:
        client.close()
    waiting = tried(AsyncClient, url, client_certificate=certificate, **options)
    if waiting is not None:
        asyncio.run(waiting.close())


@EXAMPLES
@given(source=sources, name=mostly("a.png", "b.json", "c.xyz", "d.jpg"), number=mostly(1), text=mostly("a"))
def test_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Any, name: Any, number: Any, text: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    report = an_inspection([a_fruit((0, 0, 2, 2), size=(4, 4))], size=(4, 4))
    tried(report.overlay, source)
    tried(report.to_coco, file_name=text, image_number=number)
    tried(report.to_label_studio, image=text, from_name=text, to_name=text)
    tried(report.save, name)
    tried(report.fruits[0].save, name)
    tried(Call.of, Segment(POINT), an_embedding())
    assert isinstance(errors.PomonaError("x"), Exception)
