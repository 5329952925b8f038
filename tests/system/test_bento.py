"""The Bento that bentofile.yaml makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from loadtest.server import running
from tests.system.calls import render_scene, segment

ROOT = Path(__file__).parents[2]


@pytest.mark.checkpoint
def test_the_built_bento_contains_the_service_and_serves_masks(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--output", "tag"],
        cwd=ROOT,
        env=os.environ | {"BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"},
        capture_output=True,
        text=True,
        check=True,
    )
    tag = built.stdout.strip().removeprefix("__tag__:")
    (bento,) = (path for path in (tmp_path / "bentoml" / "bentos" / "pomona").iterdir() if path.is_dir())
    held = {str(path.relative_to(bento / "src")) for path in (bento / "src").rglob("*.py")}
    ours = {str(path.relative_to(ROOT)) for folder in ("models", "service") for path in (ROOT / folder).rglob("*.py")}
    assert held == ours

    scene = render_scene(3)
    with running(tmp_path, bento=tag) as server, httpx.Client(base_url=server.address, timeout=60) as client:
        answer = segment(client, scene.data, {"points": [scene.centre(1)]})
        for path in ("/", "/page/main.js", "/page/examples/frame.jpg"):
            assert client.get(path).status_code == httpx.codes.OK
    assert len(answer.results[0].masks) == 3
    assert answer.model.name == "mobile-sam"
