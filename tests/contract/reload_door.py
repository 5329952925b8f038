"""A service into which revisions of tiny models are loaded, with real files, keys and memory budget."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from numpy.typing import NDArray

from models.catalog import CatalogueEntry
from service import keys
from service.access import Access, KeyFile, new_key
from service.api import revisions, schema
from service.memory import MemoryBudget
from service.observability.observer import LoadOutcome, Observer, ShadowOutcome
from service.pipelines.control import ModelControl
from service.pipelines.costs import largest, least
from service.pipelines.room import ModelRoom
from service.runners.base import Runner
from service.runners.load import LoadingCost
from tests.contract.door import MIB, Door, checked
from tests.contract.grpc_door import Caller, open_grpc
from tests.fakes import (
    LOADED,
    LOADED_UNET,
    PATIENCE_S,
    FakePeel,
    FakeSam,
    FakeUNet,
    WatchedRunner,
    WatchedUNetRunner,
    make_settings,
)

NAME: Final = LOADED_UNET.name
OLD: Final = LOADED_UNET.revision
COST: Final = LoadingCost(300 * MIB, 200 * MIB)
SPARE: Final = 1000 * MIB
"""Beyond what requests must keep."""

FILE: Final = "run-7/model.safetensors"
NEW_SHA256: Final = hashlib.sha256(b"new").hexdigest()
NEW: Final = NEW_SHA256[:12]


class RottenUNet(FakeUNet):
    """Takes healthy fruit for infected, and infected for healthy."""

    def infer(self, prepared: Sequence[FakePeel]) -> list[NDArray[np.float32]]:
        return [output[[0, 2, 1, 3, 4]] for output in super().infer(prepared)]


@dataclass
class FakeLoader:
    """Loads tiny models onto the device of the model before.

    Attributes:
        control: whose engine has that.
        fails: raised by loading, where it is set.
        opened: loading waits for it, where it is set.
        began: set when loading begins.
        unets: made, in order.
    """

    control: ModelControl
    fails: Exception | None = None
    opened: asyncio.Event | None = None
    began: asyncio.Event = field(default_factory=asyncio.Event)
    unets: list[FakeUNet] = field(default_factory=list)
    breaks: Exception | None = None
    loads: int = 0

    def cost(self, entry: CatalogueEntry) -> LoadingCost:
        del entry
        return COST

    async def load(self, entry: CatalogueEntry) -> Runner:
        self.loads += 1
        self.began.set()
        if self.opened is not None:
            await self.opened.wait()
        if self.fails is not None:
            raise self.fails
        before = self.control.engine.runners[entry.name]
        if isinstance(before, WatchedRunner):
            return WatchedRunner(entry, replace_sam(before.backend), before.queue)
        assert isinstance(before, WatchedUNetRunner)
        backend = before.backend
        unet = RottenUNet(device=backend.device, clock=backend.clock, card=backend.card, fails=self.breaks)
        self.unets.append(unet)
        return WatchedUNetRunner(entry, unet, before.queue)


def replace_sam(before: FakeSam) -> FakeSam:
    return FakeSam(device=before.device, clock=before.clock, card=before.card)


class Watching(Observer):
    """Notes what metrics get of revisions."""

    def __init__(self) -> None:
        self.loads: list[LoadOutcome] = []
        self.active: dict[str, bool] = {}
        self.shadows: list[ShadowOutcome] = []
        self.batches = 0

    def model_loaded(self, entry: CatalogueEntry, *, backend: str, device: str, active: bool = True) -> None:
        del backend, device
        self.active[entry.revision] = active

    def model_unloaded(self, entry: CatalogueEntry, *, backend: str, device: str) -> None:
        del backend, device
        del self.active[entry.revision]

    def model_load_ended(self, model: str, outcome: LoadOutcome, seconds: float) -> None:
        del model
        assert seconds >= 0
        self.loads.append(outcome)

    def shadow_ended(self, model: str, outcome: ShadowOutcome) -> None:
        del model
        self.shadows.append(outcome)


@dataclass
class Reloading:
    """A service with a folder of models, and two callers: an administrator and a line."""

    caller: Caller
    folder: Path
    loader: FakeLoader
    room: ModelRoom
    observer: Watching
    admin: Mapping[str, str]
    line: Mapping[str, str]

    @property
    def door(self) -> Door:
        return self.caller.door

    @property
    def control(self) -> ModelControl:
        return self.door.pipelines.control

    def write(self, name: str = FILE, content: bytes = b"new") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    async def post(self, what: str, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        headers = self.admin if headers is None else headers
        return await self.door.client.post(f"/v1/models/{what}", json=fields, headers=headers)

    async def load(self, file: str = FILE, model: str = NAME, **fields: Any) -> schema.Revision:
        answer = await self.post("load", model=model, file=file, **fields)
        return checked(answer, revisions.LoadModelResponse).revision

    async def promote(self, revision: str = NEW, model: str = NAME) -> revisions.PromoteModelResponse:
        return checked(await self.post("promote", model=model, revision=revision), revisions.PromoteModelResponse)

    async def unload(self, revision: str, model: str = NAME) -> revisions.UnloadModelResponse:
        return checked(await self.post("unload", model=model, revision=revision), revisions.UnloadModelResponse)

    async def listed(self, model: str = NAME) -> dict[str, tuple[str, bool]]:
        """Return state and activity of the revisions of a model."""
        answer = await self.door.client.get("/v1/models", headers=self.line)
        models = checked(answer, schema.ListModelsResponse).models
        (found,) = [one.revisions for one in models if one.name == model]
        return {one.revision: (one.state, one.active) for one in found}

    async def inspect(self, data: bytes, **fields: Any) -> schema.InspectResponse:
        return await self.door.inspect(data, headers=self.line, mode="fast", **fields)

    async def shadow(self) -> list[revisions.ShadowReport]:
        answer = await self.door.client.get("/v1/shadow", headers=self.admin)
        return checked(answer, revisions.ShadowResponse).shadows


@asynccontextmanager
async def open_reloading(tmp_path: Path, **changes: Any) -> AsyncIterator[Reloading]:
    file, folder, texts = tmp_path / "keys.json", tmp_path / "models", {}
    file.write_text('{"keys": []}')
    folder.mkdir()
    for name, scope in (("release", "admin"), ("line-3", "infer")):
        key, texts[name] = new_key(name, (scope,))  # type: ignore[arg-type]
        keys.add(file, key)
    observer, memory = Watching(), MemoryBudget()
    settings = make_settings()
    options = {"models_dir": folder, "api_keys_file": file, **changes}
    async with open_grpc(observer=observer, access=Access(KeyFile(file)), memory=memory, **options) as caller:
        control = caller.door.pipelines.control
        control.observer = control.shadows.observer = observer
        total = least(settings) + SPARE
        room = ModelRoom(memory, total, largest(settings), least(settings))
        memory.resize(total, largest(settings))
        control.loader = loader = FakeLoader(control)
        control.room = room
        bearer = [{"authorization": f"Bearer {texts[name]}"} for name in ("release", "line-3")]
        made = Reloading(caller, folder, loader, room, observer, *bearer)
        made.write()
        yield made
        control.halt()


SAM_NAME: Final = LOADED.name


async def until(holds: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 (what holds is seen from outside)
            await asyncio.sleep(0)
