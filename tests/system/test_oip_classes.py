"""The real server's U-Net over the Open Inference Protocol, beside `/v1/semantic`."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import PIL.Image
import pytest
from service.http.semantic_schema import SemanticOut

from loadtest.server import Server
from models.catalog import CATALOGUE
from models.images import decode
from models.types import PixelClass
from service.api import schema
from tests.system.calls import FRUITS, SIZE, draw

pytestmark = pytest.mark.checkpoint

ROOT = Path(__file__).parents[2]
CLASSES = {"healthy": PixelClass.HEALTHY, "infected": PixelClass.INFECTED}


def unet_of(client: httpx.Client) -> str:
    answer = client.get("/v1/models").raise_for_status()
    models = schema.ModelsOut.model_validate_json(answer.content).models
    return next(model.name for model in models if model.family == "unet" and model.loaded)


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_the_clients_of_triton_get_the_classes_of_semantic(
    server: Server, client: httpx.Client, grpc_port: int, tmp_path: Path, kind: str
) -> None:
    drawn, model = draw(1, infected_share=0.4), unet_of(client)
    (tmp_path / "image").write_bytes(drawn.data)
    np.save(tmp_path / "pixels.npy", decode(drawn.data, max_pixels=10**6).pixels)
    address = server.address.removeprefix("http://") if kind == "http" else f"127.0.0.1:{grpc_port}"
    asking = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.system.triton_classes", kind, address, model, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    told = json.loads(asking.stdout)
    assert (told["ready"], told["version"], told["others"]) == (True, CATALOGUE[model].revision, ["class_map"])

    request = json.dumps({"model": model, "format": "png"})
    answer = client.post("/v1/semantic", files=[("image", ("oranges.png", drawn.data)), ("request", (None, request))])
    over_v1 = SemanticOut.model_validate_json(answer.raise_for_status().content)
    assert over_v1.class_map is not None
    with PIL.Image.open(io.BytesIO(base64.b64decode(over_v1.class_map))) as image:
        class_map = np.asarray(image)
    given = np.load(tmp_path / "of_file.npz")
    assert np.array_equal(given["class_map"], class_map)
    assert np.array_equal(np.load(tmp_path / "of_pixels.npz")["class_map"], class_map)
    assert given["class_map"].dtype == np.uint8
    assert (class_map.shape, set(np.unique(class_map))) == ((SIZE.height, SIZE.width), {0, 1, 2})
    assert len(over_v1.objects) == FRUITS
    assert given["object_boxes"].tolist() == [list(found.box) for found in over_v1.objects]
    assert given["object_areas"].tolist() == [found.area for found in over_v1.objects]
    assert given["object_classes"].tolist() == [CLASSES[found.name] for found in over_v1.objects]
    # float32 over this door
    assert given["object_scores"].tolist() == pytest.approx([found.score for found in over_v1.objects], rel=1e-6)

    statuses = {"text": 415, "output": 422, "version": 404, "late": 504}
    meanings = {404: "NOT_FOUND", 504: "DEADLINE_EXCEEDED"}
    assert told["refused"] == {
        name: str(status) if kind == "http" else f"StatusCode.{meanings.get(status, 'INVALID_ARGUMENT')}"
        for name, status in statuses.items()
    }
