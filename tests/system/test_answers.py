"""What the real server answers, apart from the masks' quality."""

from __future__ import annotations

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import PIL.Image
import pytest

from loadtest.server import Server
from models.catalog import CATALOGUE
from models.masks import EncodedLogits, decode_logits
from models.types import Pixels
from service.api import schema
from tests.fakes import encode_image
from tests.system.calls import ENTRY, SIZE, Drawn, draw, embed, enlarged, iou, only, pixels_of, segment

pytestmark = pytest.mark.checkpoint


def test_a_new_image_is_encoded_once_and_then_known_by_its_bytes_and_its_id(client: httpx.Client) -> None:
    new = draw(11)
    box = {"box": new.box(1), "multimask": False}
    first = segment(client, new.data, box)
    assert first.model == schema.ModelRef(name=ENTRY.name, revision=ENTRY.revision, input_size=1024, padding="none")
    assert (first.image.width, first.image.height) == (SIZE.width, SIZE.height)
    timings = first.timing_ms.model_dump()
    total = timings.pop("total")
    assert min(timings["decode"], timings["encode"], timings["prompt"], timings["postprocess"]) > 0
    assert sum(timings.values()) <= total + 0.05
    for again in (segment(client, new.data, box), segment(client, first.image.id, box)):
        assert again.results == first.results
        assert again.timing_ms.encode == again.timing_ms.decode == 0
    assert embed(client, new.data).timing_ms.encode == 0


def test_two_requests_at_once_for_a_new_image_encode_it_once(client: httpx.Client) -> None:
    new = draw(12)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: embed(client, new.data), range(2))
    waited, encoded = sorted((first.timing_ms.encode, second.timing_ms.encode))
    assert waited == 0 < encoded
    assert first.image == second.image


def test_all_formats_hold_the_same_mask(client: httpx.Client, drawn: Drawn, known: str) -> None:
    box = {"box": drawn.box(1), "multimask": False}
    rle, png, polygons, logits = (
        segment(client, known, box, format=name).results[0].masks[0] for name in ("rle", "png", "polygons", "logits")
    )
    kinds = [type(answer.mask) for answer in (rle, png, polygons, logits)]
    assert kinds == [schema.RleMask, schema.PngMask, schema.PolygonsMask, schema.LogitsMask]
    for other in (png, polygons):
        np.testing.assert_array_equal(pixels_of(other), pixels_of(rle))
    assert isinstance(logits.mask, schema.LogitsMask)
    values = decode_logits(EncodedLogits(logits.mask.shape, logits.mask.dtype, base64.b64decode(logits.mask.data)))
    assert iou(enlarged(values), pixels_of(rle)) >= 0.999  # half precision moves single pixels


def test_an_overlay_is_the_image_with_the_fruit_tinted(client: httpx.Client, drawn: Drawn) -> None:
    answer = segment(client, drawn.data, {"box": drawn.box(1), "multimask": False}, overlay=True)
    assert answer.overlay is not None
    overlay = PIL.Image.open(io.BytesIO(base64.b64decode(answer.overlay, validate=True)))
    assert (overlay.format, overlay.size) == ("PNG", (SIZE.width, SIZE.height))
    changed = (np.asarray(overlay) != drawn.sample.pixels).any(axis=2)
    assert changed[only(answer.results[0])].mean() > 0.99
    assert not changed[drawn.fruit(2) | drawn.fruit(3)].any()


def test_coordinates_are_those_of_the_image_as_people_see_it(client: httpx.Client, drawn: Drawn) -> None:
    upright = drawn.sample.pixels
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    lying: Pixels = np.ascontiguousarray(np.rot90(upright))
    data = encode_image(lying, "JPEG", quality=95, exif=exif)
    answer = segment(client, data, {"box": drawn.box(1), "multimask": False})
    assert (answer.image.width, answer.image.height) == (SIZE.width, SIZE.height)
    pixels = only(answer.results[0])
    assert pixels.shape == (SIZE.height, SIZE.width)
    assert iou(pixels, drawn.fruit(1)) >= 0.9


@pytest.mark.parametrize("file_format", ["JPEG", "WebP", "BMP", "TIFF"])
def test_other_image_formats_are_read_as_well(client: httpx.Client, drawn: Drawn, file_format: str) -> None:
    answer = embed(client, encode_image(drawn.sample.pixels, file_format))
    assert (answer.image.width, answer.image.height) == (SIZE.width, SIZE.height)


def test_models_tell_what_is_loaded(client: httpx.Client) -> None:
    listed = schema.ModelsOut.model_validate_json(client.get("/v1/models").raise_for_status().content).models
    assert {model.name for model in listed} == set(CATALOGUE)
    loaded = [model for model in listed if model.loaded]
    assert [(one.name, one.family) for one in loaded] == [(ENTRY.name, "sam"), ("unet-mobilenetv2-citrus", "unet")]
    for one in loaded:
        assert (one.revision, one.licence) == (CATALOGUE[one.name].revision, "Apache-2.0")
        assert (one.backend, one.device) in {("openvino", "cpu"), ("torch", "cuda:0")}
    assert not any(model.backend or model.device for model in listed if not model.loaded)


def test_metrics_count_requests_by_path_and_outcome(client: httpx.Client, known: str) -> None:
    assert known

    def embeds() -> float:
        text = client.get("/metrics").raise_for_status().text
        lines = re.findall(r"^pomona_requests_total\{(.*)\} (\S+)$", text, re.MULTILINE)
        return sum(float(value) for labels, value in lines if "/v1/embed" in labels and '"refused"' in labels)

    before = embeds()
    assert client.post("/v1/embed").status_code == 400
    assert embeds() == before + 1


def test_the_page_and_all_that_it_loads_come_from_the_server(client: httpx.Client) -> None:
    page = client.get("/").raise_for_status()
    assert page.headers["content-type"].startswith("text/html")
    files = re.findall(r'(?:src|href)="\./([^"]+)"', page.text)
    assert len(files) >= 3
    for file in files:
        assert client.get(f"/{file}").raise_for_status().content
    told = client.get("/docs.json").raise_for_status().json()
    assert {"/v1/segment", "/v1/embed", "/v1/models"} <= set(told["paths"])
    assert "4 MiB" in json.dumps(told)


def test_the_log_has_one_line_of_json_for_a_request(client: httpx.Client, server: Server, drawn: Drawn) -> None:
    request = json.dumps({"prompts": [{"box": drawn.box(1)}]})
    files = [("image", ("oranges.png", drawn.data)), ("request", (None, request.encode()))]
    answer = client.post("/v1/segment", files=files, headers={"x-request-id": "belt-7.frame-1"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "belt-7.frame-1"
    (line,) = [line for line in server.log().splitlines() if "belt-7.frame-1" in line]
    told = json.loads(line)
    assert (told["request_id"], told["model"], told["status"]) == ("belt-7.frame-1", ENTRY.name, 200)
    assert told["timing_ms"] == answer.json()["timing_ms"]
