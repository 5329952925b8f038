"""Changes the loaded models while the service runs: load a revision beside the old, promote it, unload one.

The new revision is loaded and warmed up beside the old, which answers meanwhile; then the name points to the new one.
A request takes its runners once, when it begins: the switch is between requests, and those in flight end on the
revision that they began with. What fails leaves everything as it was.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from models.catalog import Architecture, CatalogueEntry, Family, LocalFile, read_models_file
from models.errors import BackendError, CatalogueError, DeviceOutOfMemory, PomonaError, UnknownModel, WeightsError
from models.weights.checkpoints import sha256_of
from models.weights.model_folder import file_in
from models.weights.run_folder import RunFolder
from service import heap
from service.api import revisions as api
from service.api.context import RequestContext
from service.api.schema import Revision, RevisionState
from service.errors import (
    LoadingDisabled,
    ModelConflict,
    NoRoomForModel,
    NotReady,
    PermissionDenied,
    UnusableModel,
)
from service.memory import resident_bytes
from service.observability.observer import Observer
from service.pipelines.engine import Engine
from service.pipelines.room import ModelRoom, RoomForModel
from service.pipelines.shadow import Shadows
from service.runners.base import Runner
from service.runners.embedding_cache import EmbeddingCache
from service.runners.load import LoadingCost

_LOG: Final = logging.getLogger("pomona.models")
_LOADABLE: Final[tuple[Family, ...]] = ("sam", "unet", "detector")
"""Families whose models are one file, and of which nothing is remembered between requests but by revision."""

_PATIENCE: Final = 0.8
"""Part of the request timeout after which a load is answered before it has ended."""


class Loader(Protocol):
    """Loads runners; see `service.runners.load.RunnerLoader`."""

    def cost(self, entry: CatalogueEntry) -> LoadingCost:
        """Return what a model will take."""
        ...

    async def load(self, entry: CatalogueEntry) -> Runner:
        """Load a model."""
        ...


@dataclass(slots=True, eq=False)
class LoadedRevision:
    """A revision that was loaded while the service ran, or is being loaded.

    Attributes:
        entry: its catalogue entry.
        file: its path in the folder of models.
        room: its memory.
        state: loading, loaded, or failed.
        error: why it failed.
    """

    entry: CatalogueEntry
    file: str
    room: RoomForModel | None = None
    state: RevisionState = "loading"
    error: str | None = None


@dataclass(slots=True)
class ModelControl:
    """See the module. For one event loop.

    Attributes:
        engine: whose runners are changed.
        cache: embeddings of which those of unloaded revisions are forgotten.
        shadows: which revisions are compared with the active one.
        loader: loads runners; None where none are loaded while the service runs.
        room: memory for them; None before it is known.
        observer: receives what is measured.
        alone: whether this is the only worker of the service.
    """

    engine: Engine
    cache: EmbeddingCache
    shadows: Shadows
    loader: Loader | None = None
    room: ModelRoom | None = None
    observer: Observer = field(default_factory=Observer)
    alone: bool = True
    _known: dict[tuple[str, str], LoadedRevision] = field(default_factory=dict)
    _reserved: str = ""
    _task: asyncio.Task[None] | None = None
    _halted: bool = False

    async def load(self, request: api.LoadModelRequest, context: RequestContext) -> api.LoadModelResponse:
        """Load and warm up a revision, and let it answer where requested.

        A caller that leaves does not stop it; one for whom it takes too long is answered before it has ended.

        Raises:
            LoadingDisabled, PermissionDenied: this service, or this caller, does not load models.
            UnknownModel: no such model is loaded.
            UnusableModel: the file cannot be used, or the model in it cannot be loaded.
            ModelConflict: another load is running, or another revision is loaded already.
            NoRoomForModel: it would take more memory than there is.
            NotReady: the server is shutting down.
        """
        folder, loader, room = self._means(context)
        name = request.model
        active = self._active(name)
        if active.entry.architecture.family not in _LOADABLE:
            raise LoadingDisabled(
                f"{name} is of the family {active.entry.architecture.family}, of which no revisions are loaded while "
                f"the service runs, only of {', '.join(_LOADABLE)}: change the models file, and restart."
            )
        if self._reserved:
            raise ModelConflict(f"{self._reserved} is being loaded: one model is loaded at a time.")
        self.shadows.check(active, request.shadow, promote=request.promote)
        self._reserved = name
        try:
            entry = await self.engine.in_worker(_entry_of, request, active.entry, folder)
            self._audit("load", context, entry, file=request.file, promote=request.promote, shadow=request.shadow)
            known = self._known.get((name, entry.revision))
            if entry.revision == active.entry.revision or (known is not None and known.state == "loaded"):
                self._reserved = ""
                self.shadows.set_share(name, entry.revision, request.shadow)
                if request.promote:
                    self._promote(name, entry.revision)
                return self._loaded(name, entry, context)
            self._check_place(name)
            cost = await self.engine.in_worker(loader.cost, entry)
            revision = LoadedRevision(entry, request.file)
            revision.room = await room.take(cost.loading, f"{name} {entry.revision}")
        except BaseException:
            self._reserved = ""
            raise
        self._known[name, entry.revision] = revision
        self._task = task = asyncio.create_task(self._load(revision, active, loader, cost, request))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieved: its caller may leave
        patience = _PATIENCE * self.engine.settings.request_timeout_s
        if context.deadline is not None:
            patience = min(patience, context.deadline - self.engine.clock())
        done, _ = await asyncio.wait({task}, timeout=max(0.0, patience))
        if done:
            self._raise_failure(task)
        return self._loaded(name, entry, context)

    async def promote(self, request: api.PromoteModelRequest, context: RequestContext) -> api.PromoteModelResponse:
        """Let a loaded revision answer from the next request on; the one before stays loaded.

        Raises:
            LoadingDisabled, PermissionDenied: this service, or this caller, does not change models.
            UnknownModel: no such revision is loaded.
            ModelConflict: it is being loaded.
        """
        self._means(context)
        name, revision = request.model, request.revision
        self._check_loaded(name, revision)
        found = self.engine.loaded(name, revision)
        self._audit("promote", context, found.entry)
        previous = self._promote(name, revision)
        return api.PromoteModelResponse(
            request_id=context.request_id, model=name, revision=self.describe(found.entry), previous=previous
        )

    async def unload(self, request: api.UnloadModelRequest, context: RequestContext) -> api.UnloadModelResponse:
        """Give up a revision, once the requests that may use it have been answered.

        Raises:
            LoadingDisabled, PermissionDenied: this service, or this caller, does not change models.
            UnknownModel: no such revision is loaded.
            ModelConflict: it is the active one, or is being loaded.
        """
        self._means(context)
        name, revision = request.model, request.revision
        self._check_loaded(name, revision)
        runner = self.engine.loaded(name, revision)
        if runner is self.engine.runners[name]:
            raise ModelConflict(
                f"{revision} is the active revision of {name}: promote another one first (POST /v1/models/promote)."
            )
        self._audit("unload", context, runner.entry)
        freed = await self._unload(name, revision)
        return api.UnloadModelResponse(
            request_id=context.request_id, model=name, revision=revision, freed_mib=freed >> 20
        )

    def describe(self, entry: CatalogueEntry) -> Revision:
        """Return a revision as answers show it."""
        known = self._known.get((entry.name, entry.revision))
        active = self.engine.runners.get(entry.name)
        return Revision(
            revision=entry.revision,
            state="loaded" if known is None else known.state,
            active=active is not None and active.entry.revision == entry.revision,
            architecture=entry.architecture,
            file=None if known is None else known.file,
            memory_mib=0 if known is None or known.room is None else known.room.nbytes >> 20,
            shadow=self.shadows.share(entry.name, entry.revision),
            error=None if known is None else known.error,
        )

    def revisions(self, name: str) -> list[Revision]:
        """Return the revisions of a model: the active one first."""
        active = self.engine.runners.get(name)
        if active is None:
            return []
        entries = {active.entry.revision: active.entry}
        entries |= {revision: runner.entry for (model, revision), runner in self.engine.beside.items() if model == name}
        entries |= {revision: known.entry for (model, revision), known in self._known.items() if model == name}
        return [self.describe(entry) for entry in entries.values()]

    def halt(self) -> None:
        """Stop what is being loaded, and load nothing more: the server stops."""
        self._halted = True
        self.shadows.stop()
        if self._task is not None:
            self._task.cancel()

    # What the operations have in common.

    def _means(self, context: RequestContext) -> tuple[Path, Loader, ModelRoom]:
        """Return what loading needs.

        Raises:
            LoadingDisabled: there is no folder of models, or there are several workers.
            PermissionDenied: callers need no key.
            NotReady: the server is shutting down.
        """
        folder = self.engine.settings.models_dir
        if folder is None or self.loader is None or self.room is None:
            raise LoadingDisabled(
                "Models are loaded while the service runs only where POMONA_MODELS_DIR names the folder that they may "
                "be loaded from."
            )
        if not context.caller:
            raise PermissionDenied(
                "Models are changed only by callers with an API key that has the scope admin: set "
                "POMONA_API_KEYS_FILE (python -m service.keys add NAME --scope admin makes a key)."
            )
        if not self.alone:
            raise LoadingDisabled(
                "This service has a process for each of several GPUs, of which a request reaches only one: run one "
                "service per GPU (CUDA_VISIBLE_DEVICES) to load models while they serve."
            )
        if self._halted:
            raise NotReady("The server is shutting down.")
        return folder, self.loader, self.room

    def _active(self, name: str) -> Runner:
        active = self.engine.runners.get(name)
        if active is not None:
            return active
        if name in self.engine.catalogue:
            raise self.engine.not_loaded(name)
        raise UnknownModel(
            f"There is no model {name!r}; loaded: {', '.join(self.engine.runners)}. New revisions of these can be "
            "loaded; POMONA_MODELS_FILE adds models at the next start."
        )

    def _check_loaded(self, name: str, revision: str) -> None:
        """Check that a revision is not being loaded; whether it is loaded is another question."""
        known = self._known.get((name, revision))
        if known is not None and known.state == "loading":
            raise ModelConflict(f"{revision} of {name} is being loaded; GET /v1/models says when it is.")

    def _check_place(self, name: str) -> None:
        """Check that no other revision is beside the active one: each takes memory."""
        others = [revision for model, revision in self.engine.beside if model == name]
        if others:
            raise ModelConflict(
                f"{others[0]} of {name} is loaded beside the active revision: unload it first (POST /v1/models/unload)."
            )
        for key in [key for key, known in self._known.items() if key[0] == name and known.state == "failed"]:
            del self._known[key]

    async def _load(
        self,
        revision: LoadedRevision,
        other: Runner,
        loader: Loader,
        cost: LoadingCost,
        request: api.LoadModelRequest,
    ) -> None:
        entry, started = revision.entry, self.engine.clock()
        runner: Runner | None = None
        try:
            runner = await loader.load(entry)
            if revision.room is not None:
                revision.room.shrink(cost.loaded)
            await runner.warm_up_beside(other)
        except BaseException as error:
            revision.state, revision.error = "failed", _reason(error)
            self.observer.model_load_ended(entry.name, "failed", self.engine.clock() - started)
            expected = isinstance(error, PomonaError | asyncio.CancelledError)
            extra = {**_names(entry), "detail": revision.error}
            _LOG.error("model not loaded", extra=extra, exc_info=None if expected else error)
            await self._give_up(runner, revision.room)
            revision.room = None
            raise
        else:
            self.engine.beside[entry.name, entry.revision] = runner
            revision.state = "loaded"
            seconds = self.engine.clock() - started
            self.observer.model_load_ended(entry.name, "loaded", seconds)
            self.observer.model_loaded(entry, backend=runner.backend_name, device=runner.device, active=False)
            _LOG.info("model loaded", extra={**_names(entry), "file": revision.file, "load_s": round(seconds, 2)})
            self.shadows.set_share(entry.name, entry.revision, request.shadow)
            if request.promote:
                self._promote(entry.name, entry.revision)
        finally:
            self._reserved, self._task = "", None

    def _promote(self, name: str, revision: str) -> str:
        """Let a loaded revision answer; return the one that did."""
        engine = self.engine
        new, old = engine.loaded(name, revision), engine.runners[name]
        if new is old:
            return revision
        self.shadows.end(name)
        del engine.beside[name, revision]
        engine.beside[name, old.entry.revision] = old
        engine.runners[name] = new
        for runner in (old, new):
            self.observer.model_loaded(
                runner.entry, backend=runner.backend_name, device=runner.device, active=runner is new
            )
        _LOG.info("model promoted", extra={**_names(new.entry), "previous": old.entry.revision})
        return old.entry.revision

    async def _unload(self, name: str, revision: str) -> int:
        """Give up a revision beside the active one; return the bytes that requests have again."""
        self.shadows.end(name)
        runner = self.engine.beside.pop((name, revision))
        known = self._known.pop((name, revision), None)
        self.observer.model_unloaded(runner.entry, backend=runner.backend_name, device=runner.device)
        await self.shadows.settle()
        await self.engine.settle()
        self.cache.forget_revision(name, revision)
        room = None if known is None else known.room
        freed = await self._give_up(runner, room)
        _LOG.info("model unloaded", extra={**_names(runner.entry), "freed_mib": freed >> 20})
        return freed

    async def _give_up(self, runner: Runner | None, room: RoomForModel | None) -> int:
        """Free a runner's memory; return the bytes that requests have again."""
        before = resident_bytes()
        if runner is not None:
            runner.discard()
        await asyncio.shield(asyncio.to_thread(_collect))
        if room is not None:
            freed = room.nbytes
            room.release()
            return freed
        if runner is None or self.room is None or self.loader is None:
            return 0
        # It was there before the budget was made: what it took is known by what is free now.
        freed = max(0, min(before - resident_bytes(), self.loader.cost(runner.entry).loaded))
        self.room.add(freed)
        return freed

    def _loaded(self, name: str, entry: CatalogueEntry, context: RequestContext) -> api.LoadModelResponse:
        return api.LoadModelResponse(request_id=context.request_id, model=name, revision=self.describe(entry))

    def _audit(self, action: str, context: RequestContext, entry: CatalogueEntry, **more: Any) -> None:
        """Write who changes what, before it is done."""
        line = {"action": action, "caller": context.caller, "request_id": context.request_id, **_names(entry), **more}
        _LOG.info("admin action", extra=line)
        context.model = entry.name
        context.log["revision"] = entry.revision

    @staticmethod
    def _raise_failure(task: asyncio.Task[None]) -> None:
        """Raise why a load failed, as its caller sees it."""
        if task.cancelled():
            raise NotReady("The server is shutting down.")
        error = task.exception()
        if error is None:
            return
        if isinstance(error, DeviceOutOfMemory):
            raise NoRoomForModel(f"The device has too little memory for the model: {error.detail}") from error
        if isinstance(error, WeightsError | BackendError):
            raise UnusableModel(error.detail) from error
        raise error


def _entry_of(request: api.LoadModelRequest, active: CatalogueEntry, folder: Path) -> CatalogueEntry:
    """Return the entry of a requested revision; hashes the file, so for worker threads.

    Raises:
        UnusableModel: the file cannot be used, or the architecture is none of the model's family.
    """
    try:
        architecture = Architecture(request.architecture or active.architecture)
    except ValueError as error:
        raise UnusableModel(f"architecture must be one of {_choices(active)}, got {request.architecture!r}.") from error
    if architecture.family != active.architecture.family:
        raise UnusableModel(
            f"architecture must be of the family of {active.name}, one of {_choices(active)}, got {architecture}."
        )
    try:
        path = file_in(folder, request.file)
        size, sha256 = path.stat().st_size, sha256_of(path)
    except WeightsError as error:
        raise UnusableModel(error.detail) from error
    except OSError as error:
        raise UnusableModel(f"{request.file!r} cannot be read: {error.strerror}.") from error
    if request.sha256 is not None and request.sha256.lower() != sha256:
        raise UnusableModel(f"{request.file!r} must have the SHA-256 {request.sha256.lower()}, got {sha256}.")
    as_trained = _as_trained(path, sha256, active)
    return replace(
        active,
        architecture=architecture,
        filename=path.name,
        size=size,
        sha256=sha256,
        sources=(LocalFile(path),),
        input_area=as_trained.input_area,
        input_size=as_trained.input_size,
    )


def _as_trained(path: Path, sha256: str, active: CatalogueEntry) -> CatalogueEntry:
    """Return the entry that says what a file was trained for: by the models file of its run, else the active one."""
    models_file = RunFolder(path.parent).models_file
    if not models_file.is_file():
        return active
    try:
        entries = read_models_file(models_file).values()
    except CatalogueError as error:
        raise UnusableModel(f"The models file beside {path.name!r} cannot be used: {error.detail}") from error
    return next((entry for entry in entries if entry.sha256 == sha256), active)


def _choices(active: CatalogueEntry) -> str:
    return ", ".join(each for each in Architecture if each.family == active.architecture.family)


def _names(entry: CatalogueEntry) -> dict[str, str]:
    return {"model": entry.name, "revision": entry.revision}


def _reason(error: BaseException) -> str:
    if isinstance(error, PomonaError):
        return error.detail
    return "the server shut down" if isinstance(error, asyncio.CancelledError) else type(error).__name__


def _collect() -> None:
    gc.collect()
    heap.return_memory()
