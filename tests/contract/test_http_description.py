from __future__ import annotations

import json
import re
from typing import Any

from pydantic import BaseModel
from service.http.inspect_schema import InspectIn, InspectOut
from service.http.semantic_schema import SemanticIn, SemanticOut

from models.masks import Rle, bounding_box, decode_rle
from service.errors import PROBLEMS
from service.http import inference_openapi, inference_schema, schema
from service.oip.models import TENSORS
from tests.contract.door import Door
from tests.fakes import LOADED


async def test_the_description_holds_every_path_code_and_schema_and_the_limits_in_force(door: Door) -> None:
    told = (await door.client.get("/docs.json")).json()
    assert told["openapi"].startswith("3.1")
    ours = {"/v1/segment", "/v1/embed", "/v1/semantic", "/v1/inspect", "/v1/models"}
    own = {path for path in told["paths"] if not path.startswith("/v2")}
    assert own == ours | {"/livez", "/readyz", "/metrics"}
    models: tuple[type[BaseModel], ...] = (
        *(schema.SegmentIn, schema.SegmentResponse, schema.EmbedIn, schema.EmbedResponse),
        *(SemanticIn, SemanticOut, InspectIn, InspectOut, schema.ModelsOut, schema.Problem),
        *inference_openapi.SCHEMAS,
    )
    assert told["components"]["schemas"] == json.loads(json.dumps(schema.json_schema(*models)))
    answers = {"segment": "SegmentOut", "embed": "EmbedOut", "semantic": "SemanticOut", "inspect": "InspectOut"}
    for path, answer in ((f"/v1/{name}", answer) for name, answer in answers.items()):
        responses = told["paths"][path]["post"]["responses"]
        content = responses["200"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{answer}"}
        for row in PROBLEMS.values():
            assert row.code in responses[str(row.status)]["description"]
    form = told["paths"]["/v1/segment"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"image", "image_id", "request"}
    assert "1 MiB" in form["properties"]["image"]["description"]
    assert "0.1 megapixels" in form["properties"]["image"]["description"]
    references = _references(told)
    assert references
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= set(
        told["components"]["schemas"]
    )


def _references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*map(_references, node.values()))
    return set().union(*map(_references, node)) if isinstance(node, list) else set()


async def test_the_paths_of_the_open_inference_protocol_are_those_that_are_answered(door: Door) -> None:
    told = (await door.client.get("/docs.json")).json()["paths"]
    paths = {path: methods for path, methods in told.items() if path.startswith("/v2")}
    model = "/v2/models/{model}"
    of_a_model = [path + what for path in (model, f"{model}/versions/{{version}}") for what in ("", "/ready", "/infer")]
    assert set(paths) == {"/v2", "/v2/health/live", "/v2/health/ready", *of_a_model}
    for path, methods in paths.items():
        (method,) = methods.keys() - {"parameters"}
        names = re.findall("{(.*?)}", path)
        assert [parameter["name"] for parameter in methods.get("parameters", [])] == names
        here = path.format(model=LOADED.name, version=LOADED.revision)
        example = example_of(methods) if method == "post" else None
        answer = await door.client.request(method, here, json=example)
        assert answer.status_code == 200, path
        content = methods[method]["responses"]["200"]["content"]["application/json"]
        shape = getattr(inference_schema, content["schema"]["$ref"].rpartition("/")[2])
        shape.model_validate_json(answer.content)


def example_of(methods: Any) -> Any:
    return methods["post"]["requestBody"]["content"]["application/json"]["example"]


async def test_the_inference_of_the_description_masks_its_disc(door: Door) -> None:
    told = (await door.client.get("/docs.json")).json()["paths"]["/v2/models/{model}/infer"]
    for name, tensors in TENSORS.items():
        for spec in (*tensors.inputs, *tensors.outputs):
            assert f"`{spec.name}` {spec.forms[0].datatype}" in told["post"]["description"], name
    for row in PROBLEMS.values():
        answer = told["post"]["responses"][str(row.status)]
        assert row.code in answer["description"]
        assert list(answer["headers"]) == ["X-Pomona-Code"]
    answer = await door.client.post(f"/v2/models/{LOADED.name}/infer", json=example_of(told))
    assert [output.name for output in inference_schema.InferenceOut.model_validate_json(answer.content).outputs] == [
        "scores",
        "boxes",
        "masks",
    ]


async def test_the_example_of_the_description_is_a_request_that_is_understood(door: Door) -> None:
    told = (await door.client.get("/docs.json")).json()
    for path, model in (("/v1/segment", schema.SegmentIn), ("/v1/embed", schema.EmbedIn)):
        form = told["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        example = model.model_validate_json(form["properties"]["request"]["example"])
        assert example.model_dump()["model"] == "mobile-sam"
    form = told["paths"]["/v1/semantic"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert SemanticIn.model_validate_json(form["properties"]["request"]["example"]).format == "rle"


async def test_the_examples_of_an_inspection_are_understood_and_hold_together(door: Door) -> None:
    told = (await door.client.get("/docs.json")).json()["paths"]["/v1/inspect"]["post"]
    form = told["requestBody"]["content"]["multipart/form-data"]["schema"]
    asked = InspectIn.model_validate_json(form["properties"]["request"]["example"])
    content = told["responses"]["200"]["content"]["application/json"]
    answer = InspectOut.model_validate_json(json.dumps(content["example"]))
    assert answer.frame.model_dump() == asked.model_dump(include={"frame_id", "trigger_id", "captured_at_ns"})
    (fruit,) = answer.fruits
    assert isinstance(fruit.mask, schema.RleMask)
    assert isinstance(fruit.infected_mask, schema.RleMask)
    mask, infected = (decode_rle(Rle(one.size, one.counts)) for one in (fruit.mask, fruit.infected_mask))
    assert mask.shape == (answer.image.height, answer.image.width)
    assert (bounding_box(mask), mask.sum()) == (fruit.box, fruit.area)
    assert (infected & mask).sum() == infected.sum() == fruit.infected_fraction * fruit.area


async def test_the_page_reads_the_description_and_nothing_from_elsewhere(door: Door) -> None:
    page = await door.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "swagger-ui" in page.text
    assert "http" not in page.text
