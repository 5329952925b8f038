"""The real server as callers of the Open Inference Protocol see it, with the library that they have."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from loadtest.server import Server
from models.images import decode
from models.masks import Rle, decode_rle
from service.api import schema
from tests.system.calls import ENTRY, Drawn, ask, iou, pixels_of, segment

pytestmark = pytest.mark.checkpoint

ROOT = Path(__file__).parents[2]
PROMPTS = 2


async def call(kind: str, address: str, folder: Path) -> Any:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "tests.system.triton_caller", kind, address, str(folder)),
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(output)


@pytest.mark.parametrize("kind", ["http", "grpc"])
async def test_the_clients_of_triton_get_the_masks_of_segment(
    server: Server, client: httpx.Client, drawn: Drawn, grpc_port: int, tmp_path: Path, kind: str
) -> None:
    boxes = [drawn.box(number + 1) for number in range(PROMPTS)]
    (tmp_path / "image").write_bytes(drawn.data)
    np.save(tmp_path / "pixels.npy", decode(drawn.data, max_pixels=10**6).pixels)
    np.save(tmp_path / "boxes.npy", np.array(boxes, np.float32))
    address = server.address.removeprefix("http://") if kind == "http" else f"127.0.0.1:{grpc_port}"
    told = await call(kind, address, tmp_path)
    assert (told["live"], told["ready"], told["models"]) == (True, True, [True, False])
    assert (told["server"], told["versions"], told["id"]) == ("pomona", [ENTRY.revision], "belt-7")

    over_v1 = segment(client, drawn.data, *({"box": box, "multimask": False} for box in boxes))
    wanted = [result.masks[0] for result in over_v1.results]
    given = np.load(tmp_path / "masks.npz")
    assert np.array_equal(given["masks"][:, 0], np.array([pixels_of(mask) for mask in wanted]))
    assert iou(given["masks"][0, 0], drawn.fruit(1)) >= 0.9
    assert given["masks"].dtype == np.bool_
    assert given["boxes"].reshape(-1, 4).tolist() == [list(mask.box) for mask in wanted]
    assert given["areas"].ravel().tolist() == [mask.area for mask in wanted]
    assert given["scores"].ravel().tolist() == pytest.approx([mask.score for mask in wanted])
    assert np.array_equal(given["of_pixels"], given["masks"])
    for rle, mask in zip(told["rle"], wanted, strict=True):
        assert isinstance(mask.mask, schema.RleMask)
        assert rle["counts"] == mask.mask.counts
        assert np.array_equal(decode_rle(Rle(tuple(rle["size"]), rle["counts"])), pixels_of(mask))
    assert not told["others"]
    if kind == "http":
        assert told["areas"] == [mask.area for mask in wanted]

    refused = {name: status for name, (status, _) in told["refused"].items()}
    statuses = {"text": 415, "outside": 422, "model": 404, "version": 404, "output": 422, "late": 504}
    if kind == "http":
        assert refused == {name: str(status) for name, status in statuses.items()}
    else:
        meanings = {404: "NOT_FOUND", 504: "DEADLINE_EXCEEDED"}
        assert refused == {
            name: f"StatusCode.{meanings.get(status, 'INVALID_ARGUMENT')}" for name, status in statuses.items()
        }
    # The same words as those of the other API.
    far = [side + 10_000 for side in boxes[0]]
    detail = ask(client, drawn.data, {"box": far, "multimask": False}).json()["detail"]
    assert told["refused"]["outside"][1] == detail


async def test_the_example_of_the_page_runs_as_it_stands(server: Server) -> None:
    page = (ROOT / "docs" / "open-inference-protocol.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert "localhost:3000" in example
    code = example.replace("localhost:3000", server.address.removeprefix("http://"))
    code += "assert mask.shape == (np.asarray(PIL.Image.open('docs/oranges.jpg')).shape[:2]) and mask[190, 548]\n"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", f"import PIL.Image\n{code}", cwd=ROOT)
    assert await process.wait() == 0
