"""One real server for all tests of this folder; its output is shown with every test that fails."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import httpx
import pytest

from loadtest.server import Server, free_port, running
from tests.system.calls import Scene, embed, render_scene

LIMITS = {"max_upload_mib": "4", "max_megapixels": "3", "max_prompts": "16", "max_points": "8"}


@pytest.fixture(scope="session")
def grpc_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, grpc_port: int) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server"), grpc_port=str(grpc_port), **LIMITS) as started:
        yield started


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="session")
def scene() -> Scene:
    return render_scene(7)


@pytest.fixture
def known(client: httpx.Client, scene: Scene) -> str:
    """The id of `scene`, whose embedding the server holds now: it forgets embeddings after ten minutes."""
    return embed(client, scene.data).image.id


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    started = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(started, Server):
        report.sections.append(("the server's output", started.log()[-8000:]))
    return report
