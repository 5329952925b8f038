"""A new revision of the real U-Net gets into a real server under way, and a server that stops leaves no load behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
import pytest

from loadtest.server import Server, free_port, running
from models.catalog import CATALOGUE
from models.weights.fetch import fetch
from pomona import NO_RETRY, Client, errors
from tests.system.calls import render_scene

pytestmark = [pytest.mark.slow]

MODEL: Final = "unet-mobilenetv2-citrus"
OLD: Final = CATALOGUE[MODEL].revision
PATIENCE_S: Final = 300
"""For a load with its conversion, on a busy machine."""

_ROOT: Final = Path(__file__).parents[2]
_CHANGE: Final = (
    "import sys; from safetensors.torch import load_file, save_file;"
    "tensors = load_file(sys.argv[1]); tensors['segmentation_head.0.bias'][2] += float(sys.argv[3]);"
    "save_file(tensors, sys.argv[2])"
)


@dataclass(frozen=True)
class Reloaded:
    """A server with a folder of models, and a client of each scope."""

    server: Server
    folder: Path
    admin: Client
    line: Client

    def changed(self, name: str, bias: float) -> str:
        """Write the shipped checkpoint with another bias into the folder; return its name there."""
        source = fetch(CATALOGUE[MODEL], cache_dir=self.folder, weights_dir=None)
        # PyTorch, which tests of serving need not load.
        command = [sys.executable, "-c", _CHANGE, str(source), str(self.folder / name), str(bias)]
        subprocess.run(command, cwd=_ROOT, check=True)
        return name

    def states(self) -> dict[str, tuple[str, bool]]:
        (model,) = [one for one in self.line.models() if one.name == MODEL]
        return {one.revision: (one.state, one.active) for one in model.revisions}

    def wait_for(self, revision: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while self.states()[revision][0] == "loading":
            assert time.monotonic() < until, self.server.log()
            time.sleep(0.2)
        assert self.states()[revision][0] == "loaded", self.server.log()


def key(file: Path, name: str, scope: str) -> str:
    command = [sys.executable, "-m", "service.keys", "--file", str(file), "add", name, "--scope", scope]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def reloaded(tmp_path: Path) -> Iterator[Reloaded]:
    keys, folder = tmp_path / "keys.json", tmp_path / "models"
    folder.mkdir()
    admin, line = key(keys, "release", "admin"), key(keys, "line-3", "infer")
    with (
        running(
            tmp_path, models=MODEL, models_dir=str(folder), api_keys_file=str(keys), grpc_port=str(free_port())
        ) as server,
        Client(server.address, api_key=admin, retry=NO_RETRY, timeout=PATIENCE_S) as administrator,
        Client(server.address, api_key=line, retry=NO_RETRY, timeout=PATIENCE_S) as caller,
    ):
        yield Reloaded(server, folder, administrator, caller)


def test_a_revision_is_loaded_and_promoted_under_way_and_the_old_one_unloaded(reloaded: Reloaded) -> None:
    frame, answered, stop = render_scene(7).data, [], threading.Event()

    def send() -> None:
        while not stop.is_set():
            answered.append(reloaded.line.inspect(frame, mode="fast").unet.revision)

    sending = threading.Thread(target=send)
    sending.start()
    try:
        loaded = reloaded.admin.load_model(MODEL, reloaded.changed("new.safetensors", 0.4))
        reloaded.wait_for(loaded.revision)
        before = len(answered)
        assert set(answered) == {OLD}
        reloaded.admin.promote_model(MODEL, loaded.revision)
        while len(answered) < before + 3:
            time.sleep(0.05)
        assert reloaded.admin.unload_model(MODEL, OLD) >= 0
    finally:
        stop.set()
        sending.join()
    assert answered[-1] == loaded.revision
    assert set(answered) == {OLD, loaded.revision}
    assert reloaded.states() == {loaded.revision: ("loaded", True)}
    with pytest.raises(errors.ModelNotLoaded):
        reloaded.line.inspect(frame, mode="fast", model=f"{MODEL}@{OLD}")


def test_a_server_that_stops_in_the_middle_of_a_load_ends_it(reloaded: Reloaded) -> None:
    name = reloaded.changed("other.safetensors", time.time() % 1)  # converted nowhere yet
    failed: list[errors.PomonaError] = []

    def load() -> None:
        try:
            reloaded.admin.load_model(MODEL, name)
        except errors.PomonaError as error:
            failed.append(error)

    loading = threading.Thread(target=load)
    loading.start()

    def converting() -> bool:
        return any("models.backends.convert" in " ".join(each.cmdline()) for each in reloaded.server.processes())

    until = time.monotonic() + PATIENCE_S
    while not converting():
        assert time.monotonic() < until
        time.sleep(0.05)
    children = reloaded.server.processes()
    reloaded.server.stop()
    loading.join()
    (error,) = failed
    assert isinstance(error, errors.NotReady), error
    _, alive = psutil.wait_procs(children, 0)
    assert alive == []
