"""`/label-studio`: what Label Studio sends and gets, and that images come from its own storage and nowhere else."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest

from models.data.brush import decode_brush
from models.data.dataset import ClassMap
from models.data.label_studio import region_of_result
from models.types import BinaryMask, PixelClass, Size
from service.access import new_key
from service.errors import ImageNotFetched
from service.keys import add
from service.label_studio.images import LabelStudio, TaskImages
from service.label_studio.protocol import MAX_TASKS
from tests.contract.door import LIMITS, Door, open_door, problem
from tests.contract.scenes import BOX_MASK, CLEAN, FRUIT_SIZE, IMAGE, SICK, SPOT, TWO, fruit_mask
from tests.contract.studio import LEGACY, PERSONAL, Studio, open_studio
from tests.fakes import SIZE

CONFIG: Final = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <BrushLabels name="brush" toName="image">
    <Label value="Healthy"/><Label value="Infected" background="red"/>
  </BrushLabels>
  <PolygonLabels name="outline" toName="image"><Label value="Leaf"/></PolygonLabels>
  <KeyPointLabels name="click" toName="image" smart="true"><Label value="Healthy" smart="true"/></KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true">
    <Label value="Healthy"/><Label value="Leaf"/>
  </RectangleLabels>
</View>"""
POLYGONS: Final = """<View><Image name="photo" value="$photo"/>
  <PolygonLabels name="outline" toName="photo"><Label value="healthy"/><Label value="infected"/></PolygonLabels>
</View>"""

UPLOAD: Final = "/data/upload/1/two.png"
SMALL: Final = "/data/upload/1/small.png"


@pytest.fixture
async def studio() -> AsyncIterator[Studio]:
    async with open_studio() as opened:
        opened.files |= {UPLOAD: TWO, SMALL: IMAGE}
        yield opened


@pytest.fixture
async def connected(studio: Studio) -> AsyncIterator[Door]:
    async with open_door(label_studio_url=studio.url, label_studio_token=LEGACY, **LIMITS) as opened:
        yield opened


async def predict(
    door: Door, *images: object, config: str = CONFIG, context: Any = None, key: str = "image", **options: Any
) -> httpx.Response:
    """Ask for predictions as Label Studio does."""
    tasks = [{"id": number, "data": {key: image}, "project": 1} for number, image in enumerate(images, start=7)]
    body = {
        "tasks": tasks,
        "project": "1.1732680000",
        "label_config": config,
        "params": {"login": None, "password": None, "context": context},
    }
    return await door.client.post("/label-studio/predict", json=body, **options)


def results(answer: httpx.Response) -> list[Any]:
    assert answer.status_code == 200, answer.text
    found: list[Any] = answer.json()["results"]
    return found


def painted(result: Any, size: Size) -> BinaryMask:
    mask: BinaryMask = decode_brush(bytes(result["value"]["rle"]), size) > 127
    return mask


def percent(value: float, of: int) -> float:
    return 100 * value / of


def click(x: float, y: float, *, on: bool = True, label: str = "Healthy") -> dict[str, Any]:
    return {
        "id": "k1",
        "type": "keypointlabels",
        "from_name": "click",
        "to_name": "image",
        "original_width": SIZE.width,
        "original_height": SIZE.height,
        "is_positive": on,
        "value": {"x": percent(x, SIZE.width), "y": percent(y, SIZE.height), "width": 0.4, "keypointlabels": [label]},
    }


def box(x0: float, y0: float, x1: float, y1: float, label: str = "Healthy", **value: Any) -> dict[str, Any]:
    where = {
        "x": percent(x0, SIZE.width),
        "y": percent(y0, SIZE.height),
        "width": percent(x1 - x0, SIZE.width),
        "height": percent(y1 - y0, SIZE.height),
        "rotation": 0,
        "rectanglelabels": [label],
        **value,
    }
    return {"id": "r1", "type": "rectanglelabels", "from_name": "box", "to_name": "image", "value": where}


# The protocol.


async def test_health_and_setup_name_the_models(connected: Door) -> None:
    health = await connected.client.get("/label-studio/health")
    assert (health.status_code, health.json()) == (200, {"status": "UP", "model_class": "Pomona"})
    setup = await connected.client.post(
        "/label-studio/setup",
        json={"project": "1.2", "schema": CONFIG, "hostname": "http://elsewhere", "access_token": "a-users-token"},
    )
    assert setup.status_code == 200
    assert setup.json()["model_version"].split() == [
        "peel-unet@0d0d0d0d0d0d",
        "orange-sam@0a0a0a0a0a0a",
        "fruit-detector@0f0f0f0f0f0f",
    ]


async def test_while_models_load_label_studio_hears_so(connected: Door) -> None:
    connected.app.pipelines = None
    problem(await connected.client.get("/label-studio/health"), "not_ready")
    problem(await predict(connected, UPLOAD), "not_ready")


async def test_webhooks_are_accepted_and_ignored(connected: Door) -> None:
    answer = await connected.client.post("/label-studio/webhook", json={"action": "ANNOTATION_CREATED", "task": {}})
    assert (answer.status_code, answer.json()) == (200, {"status": "ignored"})


async def test_without_a_label_studio_there_is_no_such_path(door: Door) -> None:
    problem(await door.client.get("/label-studio/health"), "not_found")


async def test_the_description_has_the_paths_where_they_are_served(connected: Door, door: Door) -> None:
    def paths(description: Any) -> set[str]:
        return {path for path in description["paths"] if path.startswith("/label-studio")}

    assert paths((await connected.client.get("/docs.json")).json()) == {
        f"/label-studio/{name}" for name in ("health", "setup", "predict", "webhook")
    }
    assert paths((await door.client.get("/docs.json")).json()) == set()


async def test_an_api_key_is_the_password_that_label_studio_sends(studio: Studio, tmp_path: Path) -> None:
    key, text = new_key("studio", ("infer",))
    add(tmp_path / "keys.json", key)
    settings: dict[str, Any] = {"label_studio_url": studio.url, "label_studio_token": LEGACY}
    async with open_door(api_keys_file=tmp_path / "keys.json", **settings, **LIMITS) as door:
        problem(await predict(door, UPLOAD), "unauthenticated")
        problem(await predict(door, UPLOAD, auth=("pomona", "wrong")), "unauthenticated")
        odd = {"authorization": "Basic " + base64.b64encode(b"no colon").decode()}
        problem(await predict(door, UPLOAD, headers=odd), "unauthenticated")
        problem(await predict(door, UPLOAD, headers={"authorization": "Basic ***"}), "unauthenticated")
        assert len(results(await predict(door, UPLOAD, auth=("pomona", text)))) == 1
        assert (await door.client.get("/label-studio/health")).status_code == 200


# Whole images.


async def test_fruit_and_its_infected_part_are_brush_regions_that_read_back(connected: Door) -> None:
    (prediction,) = results(await predict(connected, UPLOAD))
    regions = prediction["result"]
    assert [region["value"]["brushlabels"] for region in regions] == [["Healthy"], ["Healthy"], ["Infected"]]
    assert {(r["type"], r["from_name"], r["to_name"]) for r in regions} == {("brushlabels", "brush", "image")}
    assert {(r["original_width"], r["original_height"]) for r in regions} == {(448, 224)}
    assert len({region["id"] for region in regions}) == 3
    sizes = [int(painted(region, FRUIT_SIZE).sum()) for region in regions]
    assert sizes[2] == 800
    assert (painted(regions[2], FRUIT_SIZE) == fruit_mask(SPOT)).all()
    for region, fruit in zip(regions[:2], (CLEAN, SICK), strict=True):
        read = region_of_result(region, ClassMap(), FRUIT_SIZE)
        assert read.pixel_class is PixelClass.HEALTHY
        mask = fruit_mask(fruit)
        assert np.count_nonzero(painted(region, FRUIT_SIZE) & mask) > 0.9 * mask.sum()
    assert 0.9 < prediction["score"] <= 1
    assert prediction["model_version"].startswith("peel-unet@0d0d0d0d0d0d ")


async def test_where_there_is_no_brush_fruit_are_polygons(connected: Door) -> None:
    (prediction,) = results(await predict(connected, UPLOAD, config=POLYGONS, key="photo"))
    assert [region["value"]["polygonlabels"] for region in prediction["result"]] == [
        ["healthy"],
        ["healthy"],
        ["infected"],
    ]
    spot = region_of_result(prediction["result"][2], ClassMap(), FRUIT_SIZE)
    assert (spot.pixel_class, spot.area) == (PixelClass.INFECTED, 800)
    assert prediction["result"][0]["from_name"] == "outline"


async def test_an_image_without_fruit_has_an_empty_prediction(connected: Door, studio: Studio) -> None:
    studio.files["/data/upload/1/none.png"] = IMAGE
    (prediction,) = results(await predict(connected, "/data/upload/1/none.png"))
    assert (prediction["result"], prediction["score"]) == ([], 0.0)


async def test_tasks_are_answered_in_their_order_and_after_the_line(connected: Door) -> None:
    first, second = results(await predict(connected, UPLOAD, SMALL))
    assert (len(first["result"]), len(second["result"])) == (3, 0)


async def test_images_for_annotators_are_not_captured(studio: Studio, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"label_studio_url": studio.url, "label_studio_token": LEGACY}
    async with open_door(capture_dir=tmp_path / "captures", capture_sample=1.0, **settings, **LIMITS) as door:
        results(await predict(door, UPLOAD))
        assert door.pipelines.captures is not None
        assert door.pipelines.captures.idle(0)
    assert list((tmp_path / "captures").glob("2*")) == []


# Clicks and boxes.


async def test_a_box_gives_the_mask_of_segment_with_its_label(connected: Door) -> None:
    (prediction,) = results(await predict(connected, SMALL, context={"result": [box(32, 16, 64, 48)]}))
    (region,) = prediction["result"]
    assert (region["type"], region["from_name"], region["to_name"]) == ("brushlabels", "brush", "image")
    assert region["value"]["brushlabels"] == ["Healthy"]
    assert (painted(region, SIZE) == BOX_MASK).all()
    assert connected.sam.decodes[-1].prompts == 1


async def test_a_label_that_only_polygons_offer_gives_polygons(connected: Door) -> None:
    drawn = {"result": [box(32, 16, 64, 48, label="Leaf")]}
    (region,) = results(await predict(connected, SMALL, context=drawn))[0]["result"]
    assert (region["type"], region["from_name"], region["value"]["polygonlabels"]) == (
        "polygonlabels",
        "outline",
        ["Leaf"],
    )


async def test_clicks_are_the_points_of_the_prompt(connected: Door) -> None:
    drawn = {"result": [click(64, 48), click(20, 20, on=False)]}
    (region,) = results(await predict(connected, SMALL, context=drawn))[0]["result"]
    expected = await connected.client.post(
        "/v1/segment",
        files={
            "image": ("a.png", IMAGE),
            "request": (
                None,
                json.dumps({"prompts": [{"points": [[64, 48], [20, 20]], "labels": [1, 0], "multimask": False}]}),
            ),
        },
    )
    assert int(painted(region, SIZE).sum()) == expected.json()["results"][0]["masks"][0]["area"]


async def test_a_lone_click_gives_the_best_of_three_masks(connected: Door) -> None:
    (prediction,) = results(await predict(connected, SMALL, context={"result": [click(64, 48)]}))
    assert prediction["score"] == pytest.approx(0.9)


async def test_a_click_or_a_box_at_the_edge_is_within_the_image(connected: Door) -> None:
    for drawn in (click(SIZE.width, SIZE.height), box(-3, -3, SIZE.width + 9, SIZE.height + 9)):
        assert results(await predict(connected, SMALL, context={"result": [drawn]}))[0]["result"]


async def test_the_same_image_is_encoded_once_for_many_clicks(connected: Door) -> None:
    for x in (30, 64, 90):
        results(await predict(connected, SMALL, context={"result": [click(x, 48)]}))
    assert sum(connected.sam.encodes) == 1


# Refusals.


@pytest.mark.parametrize(
    ("context", "what"),
    [
        ([click(1, 1) | {"type": "ellipselabels"}], "must have at least one click"),
        ([click(1, 1, label="Leaf") | {"to_name": "photo"}], "photo offers the label 'Leaf'"),
        ([click(1, 1), click(2, 2) | {"to_name": "other"}], "must be on one image, got image, other"),
        ([click(1, 1, label="Twig")], "No BrushLabels or PolygonLabels of image offers the label 'Twig'"),
        ([click(1, 1) | {"value": {"x": 1, "y": 1, "keypointlabels": []}}], "must have a label"),
        ([click(1, 1) | {"value": {"x": "left", "y": 1}}], "x: Input should be a valid number"),
        ([click(1, 1) | {"value": {"x": 1}}], "y: Field required"),
        ([box(1, 1, 9, 9, rotation=30)], "must not be rotated"),
        ([{"type": "keypointlabels"}], "to_name: Field required"),
    ],
)
async def test_faults_of_what_was_drawn_are_named(connected: Door, context: Sequence[Any], what: str) -> None:
    body = problem(await predict(connected, SMALL, context={"result": context}), "malformed_request")
    assert what in body.detail


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ("", "must have an Image tag"),
        ('<View><Image name="image"/></View>', "must have an Image tag"),
        ('<View><Image name="image" value="$image"/></View>', "must have BrushLabels"),
        (CONFIG.replace('toName="image"', 'toName="text"'), "for an image (image)"),
        ("x" * (1 << 18) + "x", "at most 262144 characters"),
    ],
)
async def test_faults_of_the_configuration_are_named_when_it_is_set_up(connected: Door, config: str, what: str) -> None:
    setup = await connected.client.post("/label-studio/setup", json={"schema": config})
    assert what in problem(setup, "malformed_request").detail


async def test_a_configuration_without_the_classes_of_fruit_is_for_clicks_only(connected: Door) -> None:
    config = CONFIG.replace("Healthy", "Orange").replace("Infected", "Rot")
    assert (await connected.client.post("/label-studio/setup", json={"schema": config})).status_code == 200
    body = problem(await predict(connected, UPLOAD, config=config), "malformed_request")
    assert "must offer the label Healthy or Infected; offered: Orange, Rot, Leaf" in body.detail
    drawn = {"result": [click(64, 48, label="Orange")]}
    assert results(await predict(connected, SMALL, config=config, context=drawn))[0]["result"]


async def test_xml_entities_are_not_expanded(connected: Door) -> None:
    bomb = '<!DOCTYPE v [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>' + CONFIG.replace("Leaf", "&b;")
    assert results(await predict(connected, UPLOAD, config=bomb))[0]["result"]
    file = '<!DOCTYPE v [<!ENTITY f SYSTEM "file:///etc/passwd">]>' + CONFIG.replace("Leaf", "&f;")
    body = problem(
        await predict(connected, SMALL, config=file, context={"result": [click(1, 1, label="Twig")]}),
        "malformed_request",
    )
    assert "root:" not in body.detail


async def test_bodies_that_are_not_of_the_protocol_are_refused(connected: Door) -> None:
    send = connected.client.post
    problem(await send("/label-studio/predict", content=b"{"), "malformed_json")
    problem(await send("/label-studio/predict", json=[]), "malformed_request")
    problem(await send("/label-studio/predict", json={"tasks": [], "label_config": CONFIG}), "malformed_request")
    problem(await predict(connected, *[UPLOAD] * (MAX_TASKS + 1)), "malformed_request")
    two = await predict(connected, SMALL, SMALL, context={"result": [click(1, 1)]})
    assert "must be one task, got 2" in problem(two, "malformed_request").detail
    problem(await send("/label-studio/predict", content=b" " * (1 << 20) + b"  "), "upload_too_large")
    problem(await connected.client.get("/label-studio/predict"), "method_not_allowed")
    problem(await send("/label-studio/train", json={}), "not_found")
    long = {"id": 1, "data": {"image": SMALL}, "annotations": [{"rle": [0] * 100_000}]}
    assert results(await send("/label-studio/predict", json={"tasks": [long], "label_config": CONFIG}))


async def test_what_is_no_image_names_the_task(connected: Door, studio: Studio) -> None:
    studio.files["/data/upload/1/notes.txt"] = b"these are notes, not an image"
    body = problem(await predict(connected, UPLOAD, "/data/upload/1/notes.txt"), "not_an_image")
    assert body.detail.startswith("Task 8: ")


# Where images come from.


@pytest.mark.parametrize(
    "reference",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:1/data/upload/1/two.png",
        "https://127.0.0.1:{port}/data/upload/1/two.png",
        "http://localhost:{port}/data/upload/1/two.png",
        "http://127.0.0.1:{port}@evil.example/data/upload/1/two.png",
        "http://user:secret@127.0.0.1:{port}/data/upload/1/two.png",
        "//evil.example/data/upload/1/two.png",
        "file:///etc/passwd",
        "file:///data/upload/1/two.png",
        "ftp://127.0.0.1:{port}/data/upload/1/two.png",
        "data:image/png;base64,iVBORw0KGgo=",
        "s3://bucket/two.png",
        "gopher://127.0.0.1:{port}/data/upload/1/two.png",
        "/api/users/",
        "/api/token/",
        "/admin/",
        "/",
        "/data/upload/",
        "/data/upload/../../api/users/",
        "/data/upload/%2e%2e/%2e%2e/api/users/",
        "/data/upload/%252e%252e/api/users/",
        "/data/upload/..\\..\\api\\users",
        "/data/upload//evil.example/x.png",
        "data/upload/1/two.png",
        "/tasks/x/resolve/",
        "/data/upload/1/two.png\r\nX-Evil: 1",
        "http://127.0.0.1:99999/data/upload/1/two.png",
        "http://[::1/data/upload/1/two.png",
        "",
        "/data/upload/" + "x" * 5000,
        None,
        7,
        ["/data/upload/1/two.png"],
    ],
)
async def test_nothing_else_than_label_studios_files_is_fetched(
    connected: Door, studio: Studio, reference: object
) -> None:
    if isinstance(reference, str):
        reference = reference.replace("{port}", str(studio.port))
    problem(await predict(connected, reference), "malformed_request")
    assert studio.requests == []


@pytest.mark.parametrize(
    "path",
    [
        UPLOAD,
        "/data/upload/1/an%20orange.png",
        "/data/local-files/?d=line%2F3%2Ftwo.png",
        "/storage-data/uploaded/?filepath=upload/1/two.png",
        "/tasks/12/resolve/?fileuri=czM6Ly9idWNrZXQ=",
        "/projects/3/presign/?fileuri=czM6Ly9idWNrZXQ=",
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
async def test_label_studios_files_are_fetched_with_its_token(
    connected: Door, studio: Studio, path: str, absolute: bool
) -> None:
    studio.files[path] = TWO
    assert results(await predict(connected, f"{studio.url}{path}" if absolute else path))[0]["result"]
    assert studio.requests == [(f"GET {path}", f"Token {LEGACY}")]


async def test_a_label_studio_below_a_path_is_not_left_upwards(studio: Studio) -> None:
    images = TaskImages(LabelStudio(f"{studio.url}/studio", LEGACY), 1 << 20)
    studio.files["/studio/data/upload/1/two.png"] = TWO
    assert await images.fetch("/studio/data/upload/1/two.png") == TWO
    for outside in (UPLOAD, f"/studio/..{UPLOAD}", f"/studios{UPLOAD}"):
        with pytest.raises(Exception, match="Images are fetched from Label Studio"):
            await images.fetch(outside)


@pytest.mark.parametrize("to", ["http://169.254.169.254/latest", "/data/upload/1/two.png", "file:///etc/passwd"])
async def test_redirects_are_not_followed(connected: Door, studio: Studio, to: str) -> None:
    studio.redirects["/tasks/7/resolve/"] = to
    body = problem(await predict(connected, "/tasks/7/resolve/?fileuri=YQ=="), "image_not_fetched")
    assert "which is not followed" in body.detail
    assert "YQ" not in body.detail, "a query may hold a signature"
    assert len(studio.requests) == 1


async def test_an_image_that_is_too_large_is_given_up_while_it_comes(connected: Door, studio: Studio) -> None:
    studio.files["/data/upload/1/large.png"] = bytes((1 << 20) + 1)
    body = problem(await predict(connected, "/data/upload/1/large.png"), "image_not_fetched")
    assert "must have at most 1 MiB (POMONA_MAX_UPLOAD_MIB)" in body.detail


async def test_an_image_that_comes_too_slowly_is_given_up(studio: Studio) -> None:
    studio.slow.add("/data/upload/1/slow.png")
    images = TaskImages(LabelStudio(studio.url, LEGACY), 1 << 20, within_s=0.2)
    with pytest.raises(ImageNotFetched, match=r"did not come from Label Studio within 0\.2 s"):
        await images.fetch("/data/upload/1/slow.png")


async def test_a_label_studio_that_is_not_there_is_named(connected: Door, studio: Studio) -> None:
    images = TaskImages(LabelStudio("http://127.0.0.1:1", LEGACY), 1 << 20)
    with pytest.raises(ImageNotFetched, match=r"cannot be reached at http://127\.0\.0\.1:1"):
        await images.fetch(UPLOAD)
    body = problem(await predict(connected, "/data/upload/1/gone.png"), "image_not_fetched")
    assert "with status 404" in body.detail


async def test_a_personal_access_token_is_exchanged_once_and_again_when_it_expires(studio: Studio) -> None:
    images = TaskImages(LabelStudio(studio.url, PERSONAL), 1 << 20)
    assert await images.fetch(UPLOAD) == await images.fetch(UPLOAD) == TWO
    exchange, file = "POST /api/token/refresh/", f"GET {UPLOAD}"
    assert [request for request, _ in studio.requests] == [exchange, file, file]
    studio.access = "another"
    assert await images.fetch(UPLOAD) == TWO
    assert [request for request, _ in studio.requests[3:]] == [file, exchange, file]
    studio.access = None
    with pytest.raises(ImageNotFetched, match=r"refused the token of POMONA_LABEL_STUDIO_TOKEN with status 401"):
        await images.fetch(UPLOAD)
    assert PERSONAL not in str(studio.requests), "it is sent in a body alone"


async def test_a_token_that_is_refused_is_said_so(studio: Studio) -> None:
    with pytest.raises(ImageNotFetched, match="must be a member of the project"):
        await TaskImages(LabelStudio(studio.url, "wrong"), 1 << 20).fetch(UPLOAD)
