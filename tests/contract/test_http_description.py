from __future__ import annotations

import json
from typing import Any

from service.errors import PROBLEMS
from service.http import schema
from service.http.semantic_schema import SemanticIn, SemanticOut
from tests.contract.door import Door


async def test_the_description_holds_every_path_code_and_schema_and_the_limits_in_force(door: Door) -> None:
    told = (await door.client.get("/docs.json")).json()
    assert told["openapi"].startswith("3.1")
    ours = {"/v1/segment", "/v1/embed", "/v1/semantic", "/v1/models"}
    assert set(told["paths"]) == ours | {"/livez", "/readyz", "/metrics"}
    models = (
        *(schema.SegmentIn, schema.SegmentOut, schema.EmbedIn, schema.EmbedOut),
        *(SemanticIn, SemanticOut, schema.ModelsOut, schema.ProblemOut),
    )
    assert told["components"]["schemas"] == json.loads(json.dumps(schema.json_schema(*models)))
    for path, answer in (("/v1/segment", "SegmentOut"), ("/v1/embed", "EmbedOut"), ("/v1/semantic", "SemanticOut")):
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


async def test_the_example_of_the_description_is_a_request_that_is_understood(door: Door) -> None:
    told = (await door.client.get("/docs.json")).json()
    for path, model in (("/v1/segment", schema.SegmentIn), ("/v1/embed", schema.EmbedIn)):
        form = told["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
        example = model.model_validate_json(form["properties"]["request"]["example"])
        assert example.model_dump()["model"] == "mobile-sam"
    form = told["paths"]["/v1/semantic"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert SemanticIn.model_validate_json(form["properties"]["request"]["example"]).format == "rle"


async def test_the_page_reads_the_description_and_nothing_from_elsewhere(door: Door) -> None:
    page = await door.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "swagger-ui" in page.text
    assert "http" not in page.text
