"""The OpenAPI description: complete, and true of what is answered."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from models.masks import Rle, bounding_box, decode_rle
from service.api import schema
from service.api.operations import OPERATIONS, Operation
from service.errors import PROBLEMS
from service.oip import openapi
from service.oip.models import TENSORS
from tests.contract.door import POINT, Door, fields, image, open_door, prompted
from tests.contract.scenes import PEEL, TWO
from tests.fakes import LOADED

_REFERENCE: Final = "#/components/schemas/"


@pytest.fixture
async def description(door: Door) -> Any:
    return (await door.client.get("/docs.json")).json()


def validate(description: Any, content: Any, body: Any) -> None:
    """Check an answer against the schema that its description refers to."""
    checked = {**content["schema"], "components": description["components"]}
    Draft202012Validator.check_schema(checked)
    Draft202012Validator(checked).validate(body)


def form_of(operation: Any) -> Any:
    return operation["requestBody"]["content"]["multipart/form-data"]["schema"]


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_the_description_has_every_path_and_schema_and_no_dangling_reference(description: Any) -> None:
    assert description["openapi"].startswith("3.1")
    own = {path for path in description["paths"] if not path.startswith("/v2")}
    assert own == {operation.path for operation in OPERATIONS} | {"/livez", "/readyz", "/metrics"}
    schemas = description["components"]["schemas"]
    for operation in OPERATIONS:
        assert {operation.request.__name__, operation.response.__name__} <= set(schemas)
    assert {reference.removeprefix(_REFERENCE) for reference in references(description)} <= set(schemas)
    for one in schemas.values():
        Draft202012Validator.check_schema(one)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_an_operation_is_described_with_its_answer_and_every_code(description: Any, operation: Operation) -> None:
    (described,) = description["paths"][operation.path].values()
    responses = described["responses"]
    assert responses["200"]["content"]["application/json"]["schema"]["$ref"].endswith(operation.response.__name__)
    for row in PROBLEMS.values():
        assert row.code in responses[str(row.status)]["description"]


def test_the_limits_in_force_are_described(description: Any) -> None:
    form = form_of(description["paths"]["/v1/segment"]["post"])
    assert set(form["properties"]) == {"image", "image_id", "request"}
    assert "1 MiB" in form["properties"]["image"]["description"]
    assert "0.101 megapixels" in form["properties"]["image"]["description"]


@pytest.mark.parametrize("overlay", [False, True])
@pytest.mark.parametrize("mask_format", ["rle", "png", "polygons", "logits"])
async def test_answers_are_valid_by_their_schemas(
    door: Door, description: Any, mask_format: str, overlay: bool
) -> None:
    options = {"format": mask_format, "overlay": overlay}
    parts = {
        "/v1/segment": [image(), prompted(POINT, **options)],
        "/v1/embed": [image()],
        "/v1/semantic": [image(PEEL), fields(**options)],
        "/v1/inspect": [image(TWO), fields(**options, frame_id="1")],
    }
    for path, sent in parts.items():
        answer = await door.post(*sent, path=path)
        responses = description["paths"][path]["post"]["responses"]
        assert answer.status_code == (
            422 if mask_format == "logits" and path in ("/v1/semantic", "/v1/inspect") else 200
        )
        (content,) = responses[str(answer.status_code)]["content"].values()
        validate(description, content, answer.json())
    listed = await door.client.get("/v1/models")
    (content,) = description["paths"]["/v1/models"]["get"]["responses"]["200"]["content"].values()
    validate(description, content, listed.json())


async def test_the_paths_of_the_open_inference_protocol_are_those_that_are_answered(
    door: Door, description: Any
) -> None:
    paths = {path: methods for path, methods in description["paths"].items() if path.startswith("/v2")}
    model = "/v2/models/{model}"
    of_a_model = [path + what for path in (model, f"{model}/versions/{{version}}") for what in ("", "/ready", "/infer")]
    assert set(paths) == {"/v2", "/v2/health/live", "/v2/health/ready", *of_a_model}
    for path, methods in paths.items():
        (method,) = methods.keys() - {"parameters"}
        names = re.findall("{(.*?)}", path)
        assert [parameter["name"] for parameter in methods.get("parameters", [])] == names
        here = path.format(model=LOADED.name, version=LOADED.revision)
        answer = await door.client.request(method, here, json=example_of(methods) if method == "post" else None)
        assert answer.status_code == 200, path
        content = methods[method]["responses"]["200"]["content"]["application/json"]
        validate(description, content, answer.json())


def example_of(methods: Any) -> Any:
    return methods["post"]["requestBody"]["content"]["application/json"]["example"]


async def test_the_example_of_an_inference_is_answered(door: Door, description: Any) -> None:
    described = description["paths"]["/v2/models/{model}/infer"]
    for name, tensors in TENSORS.items():
        for spec in (*tensors.inputs, *tensors.outputs):
            assert f"`{spec.name}` {spec.forms[0].datatype}" in described["post"]["description"], name
    for row in PROBLEMS.values():
        answer = described["post"]["responses"][str(row.status)]
        assert row.code in answer["description"]
        assert list(answer["headers"]) == ["X-Pomona-Code"]
    given = await door.client.post(f"/v2/models/{LOADED.name}/infer", json=example_of(described))
    outputs = openapi.InferenceResponse.model_validate_json(given.content).outputs
    assert [output.name for output in outputs] == ["scores", "boxes", "masks"]


def test_the_examples_of_requests_are_valid(description: Any) -> None:
    for operation in OPERATIONS:
        if operation.image != "none":
            form = form_of(description["paths"][operation.path]["post"])
            operation.request.model_validate_json(form["properties"]["request"]["example"])


def test_the_example_of_an_inspection_is_consistent(description: Any) -> None:
    described = description["paths"]["/v1/inspect"]["post"]
    request = schema.InspectRequest.model_validate_json(form_of(described)["properties"]["request"]["example"])
    example = description["components"]["schemas"]["InspectResponse"]["example"]
    answer = schema.InspectResponse.model_validate_json(json.dumps(example))
    assert answer.frame.model_dump() == request.model_dump(include={"frame_id", "trigger_id", "captured_at_ns"})
    (fruit,) = answer.fruits
    assert isinstance(fruit.mask, schema.RleMask)
    assert isinstance(fruit.infected_mask, schema.RleMask)
    mask, infected = (decode_rle(Rle(one.size, one.counts)) for one in (fruit.mask, fruit.infected_mask))
    assert mask.shape == (answer.image.height, answer.image.width)
    assert (bounding_box(mask), mask.sum()) == (fruit.box, fruit.area)
    assert (infected & mask).sum() == infected.sum() == fruit.infected_fraction * fruit.area


async def test_the_description_for_people_reads_nothing_from_elsewhere(door: Door) -> None:
    page = await door.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["x-frame-options"] == "DENY"
    files = re.findall(r'(?:src|href)="\./([^"]+)"', page.text)
    assert len(files) == 5
    for file in files:
        asset = await door.client.get(f"/{file}")
        assert (asset.status_code, asset.headers["content-type"].partition("/")[0]) == (200, "text")
        assert asset.content
        assert asset.headers["x-content-type-options"] == "nosniff"


async def test_the_description_names_the_grades_of_requests_that_name_none() -> None:
    async with open_door(grades=(schema.Grade(grade="Extra", max_infected_fraction=0.02),)) as door:
        described = (await door.client.get("/docs.json")).json()
    assert described["x-grades"] == [{"grade": "Extra", "max_infected_fraction": 0.02}]


async def test_nothing_on_the_way_may_keep_an_answer_or_guess_its_type(door: Door) -> None:
    for answer in (
        await door.post(image(PEEL), path="/v1/semantic"),
        await door.post(path="/v1/semantic"),
        await door.client.get("/v1/models"),
        await door.client.get("/v2"),
        await door.client.get("/metrics"),
        await door.client.get("/nope"),
    ):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
