"""The real server over the Open Inference Protocol, called with Triton's client library."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import PIL.Image
import pytest

from loadtest.server import Server
from models.catalog import CATALOGUE
from models.images import decode
from service.api import schema
from tests.contract.doors import CLASSES, mask_array
from tests.system.calls import ENTRY, FRUITS, SIZE, Scene, answered, iou, pixels_of, post, render_scene, segment

pytestmark = pytest.mark.checkpoint

ROOT: Final = Path(__file__).parents[2]
PROMPTS: Final = 2
UNET: Final = "unet-mobilenetv2-citrus"
STATUSES: Final = {"text": 415, "outside": 422, "model": 404, "version": 404, "output": 422, "late": 504}
MEANINGS: Final = {404: "NOT_FOUND", 504: "DEADLINE_EXCEEDED"}

every_kind = pytest.mark.parametrize("kind", ["http", "grpc"])


async def call(kind: str, server: Server, grpc_port: int, model: str, folder: Path) -> Any:
    address = server.address.removeprefix("http://") if kind == "http" else f"127.0.0.1:{grpc_port}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "tests.system.triton_caller", kind, address, model, str(folder)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    found = json.loads(output)
    assert (found["live"], found["ready"], found["models"]) == (True, True, [True, False])
    assert (found["server"], found["versions"], found["id"]) == ("pomona", [CATALOGUE[model].revision], "belt-7")
    for name, (status, _) in found["refused"].items():
        meaning = f"StatusCode.{MEANINGS.get(STATUSES[name], 'INVALID_ARGUMENT')}"
        assert status == (str(STATUSES[name]) if kind == "http" else meaning), name
    return found


def put_image(folder: Path, image: Scene) -> None:
    (folder / "image").write_bytes(image.data)
    np.save(folder / "pixels.npy", decode(image.data, max_pixels=10**6).pixels)


@every_kind
async def test_triton_clients_get_the_masks_of_segment(
    server: Server, client: httpx.Client, scene: Scene, grpc_port: int, tmp_path: Path, kind: str
) -> None:
    boxes = [scene.box(number + 1) for number in range(PROMPTS)]
    put_image(tmp_path, scene)
    np.save(tmp_path / "boxes.npy", np.array(boxes, np.float32))
    found = await call(kind, server, grpc_port, ENTRY.name, tmp_path)

    over_v1 = segment(client, scene.data, *({"box": box, "multimask": False} for box in boxes))
    expected = [result.masks[0] for result in over_v1.results]
    given = np.load(tmp_path / "of_file.npz")
    assert np.array_equal(given["masks"][:, 0], np.array([pixels_of(mask) for mask in expected]))
    assert iou(given["masks"][0, 0], scene.fruit(1)) >= 0.9
    assert given["masks"].dtype == np.bool_
    assert given["boxes"].reshape(-1, 4).tolist() == [list(mask.box) for mask in expected]
    assert given["areas"].ravel().tolist() == [mask.area for mask in expected]
    assert given["scores"].ravel().tolist() == pytest.approx([mask.score for mask in expected])
    assert np.array_equal(np.load(tmp_path / "of_pixels.npz")["masks"], given["masks"])
    assert found["rle"] == [mask.mask.model_dump(mode="json") for mask in expected]
    assert np.array_equal(mask_array(found["rle"][0]), given["masks"][0, 0])
    assert found["others"] == ["masks"]
    if kind == "http":
        assert found["areas"] == [mask.area for mask in expected]

    assert set(found["refused"]) == set(STATUSES)
    far = [side + 10_000 for side in boxes[0]]
    detail = post(client, "/v1/segment", scene.data, prompts=[{"box": far, "multimask": False}]).json()["detail"]
    assert found["refused"]["outside"][1] == detail


@every_kind
async def test_triton_clients_get_the_classes_of_semantic(
    server: Server, client: httpx.Client, grpc_port: int, tmp_path: Path, kind: str
) -> None:
    image = render_scene(1, infected_share=0.4)
    put_image(tmp_path, image)
    found = await call(kind, server, grpc_port, UNET, tmp_path)
    assert found["others"] == ["class_map"]
    assert set(found["refused"]) == set(STATUSES) - {"outside"}

    answer = post(client, "/v1/semantic", image.data, model=UNET, format="png")
    over_v1 = answered(answer, schema.SemanticResponse)
    assert over_v1.class_map is not None
    with PIL.Image.open(io.BytesIO(over_v1.class_map)) as opened:
        class_map = np.asarray(opened)
    given = np.load(tmp_path / "of_file.npz")
    assert np.array_equal(given["class_map"], class_map)
    assert np.array_equal(np.load(tmp_path / "of_pixels.npz")["class_map"], class_map)
    assert given["class_map"].dtype == np.uint8
    assert (class_map.shape, set(np.unique(class_map))) == ((SIZE.height, SIZE.width), {0, 1, 2})
    assert len(over_v1.objects) == FRUITS
    assert given["object_boxes"].tolist() == [list(region.box) for region in over_v1.objects]
    assert given["object_areas"].tolist() == [region.area for region in over_v1.objects]
    assert given["object_classes"].tolist() == [CLASSES[region.pixel_class] for region in over_v1.objects]
    # float32 over this protocol
    assert given["object_scores"].tolist() == pytest.approx([region.score for region in over_v1.objects], rel=1e-6)


async def test_the_example_in_the_documentation_runs_as_it_stands(server: Server) -> None:
    page = (ROOT / "docs" / "open-inference-protocol.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert "localhost:3000" in example
    code = example.replace("localhost:3000", server.address.removeprefix("http://"))
    code += "assert mask.shape == (np.asarray(PIL.Image.open('docs/oranges.jpg')).shape[:2]) and mask[190, 548]\n"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", f"import PIL.Image\n{code}", cwd=ROOT)
    assert await process.wait() == 0
