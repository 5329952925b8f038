"""A new revision of a model gets into a running service, and nothing in flight is lost."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import logging
import os
import threading
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from models.catalog import Architecture
from models.errors import BackendError, BadCheckpoint, DeviceOutOfMemory
from service.memory import Holding, Kind
from service.proto.generated.pomona.v1 import segmentation_pb2 as pb
from tests.contract.door import MIB, problem
from tests.contract.grpc_door import refused
from tests.contract.messages import to_json
from tests.contract.reload_door import (
    COST,
    FILE,
    NAME,
    NEW,
    NEW_SHA256,
    OLD,
    SAM_NAME,
    SPARE,
    Reloading,
    open_reloading,
    until,
)
from tests.contract.scenes import IMAGE
from tests.fakes import LOADED, NOT_LOADED, WatchedUNetRunner, peel_image

PEEL: Final = peel_image()


@pytest.fixture
async def reloading(tmp_path: Path) -> AsyncIterator[Reloading]:
    async with open_reloading(tmp_path) as made:
        yield made


async def classes(reloading: Reloading, **fields: Any) -> tuple[str, list[str]]:
    """Return the revision that answered, and the classes of the healthy and of the infected fruit."""
    answer = await reloading.inspect(PEEL, **fields)
    return answer.models.unet.revision, [fruit.pixel_class for fruit in answer.fruits]


BEFORE: Final = (OLD, ["healthy", "infected"])
AFTER: Final = (NEW, ["infected", "healthy"])


# Load, promote, unload.


async def test_a_revision_is_loaded_beside_the_old_promoted_and_the_old_unloaded(reloading: Reloading) -> None:
    loaded = await reloading.load(sha256=hashlib.sha256(b"new").hexdigest().upper())
    assert (loaded.revision, loaded.state, loaded.active, loaded.file) == (NEW, "loaded", False, FILE)
    assert await classes(reloading) == BEFORE
    assert await reloading.listed() == {OLD: ("loaded", True), NEW: ("loaded", False)}
    promoted = await reloading.promote()
    assert (promoted.previous, promoted.revision.active) == (OLD, True)
    assert await classes(reloading) == AFTER
    assert await reloading.listed() == {NEW: ("loaded", True), OLD: ("loaded", False)}
    assert (await reloading.unload(OLD)).revision == OLD
    assert await reloading.listed() == {NEW: ("loaded", True)}
    assert await classes(reloading) == AFTER
    assert (reloading.observer.loads, reloading.observer.active) == (["loaded"], {NEW: True})


async def test_a_revision_can_answer_by_its_name_before_it_is_promoted(reloading: Reloading) -> None:
    await reloading.load()
    assert await classes(reloading, model=f"{NAME}@{NEW}") == AFTER
    assert await classes(reloading, model=f"{NAME}@{OLD}") == BEFORE
    answer = await reloading.door.post_inspect(PEEL, reloading.line, model=f"{NAME}@{'0' * 12}")
    assert f"loaded: {OLD}, {NEW}" in problem(answer, "model_not_loaded").detail
    answer = await reloading.door.post_inspect(PEEL, reloading.line, model=f"oranges@{NEW}")
    problem(answer, "unknown_model")


async def test_one_request_can_load_and_promote(reloading: Reloading) -> None:
    assert (await reloading.load("run-7", promote=True)).active
    assert await classes(reloading) == AFTER


async def test_the_old_revision_can_be_promoted_again(reloading: Reloading) -> None:
    await reloading.load(promote=True)
    assert (await reloading.promote(OLD)).previous == NEW
    assert await classes(reloading) == BEFORE
    assert (await reloading.promote(OLD)).previous == OLD


async def test_loading_what_is_loaded_changes_nothing(reloading: Reloading) -> None:
    first = await reloading.load()
    assert await reloading.load() == first
    assert reloading.loader.loads == 1
    assert reloading.room.total == SPARE + reloading.room.least - COST.loaded


async def test_both_doors_do_the_same(reloading: Reloading) -> None:
    metadata = tuple(reloading.admin.items())
    stub = reloading.caller.stub
    loaded = await stub.LoadModel(pb.LoadModelRequest(model=NAME, file=FILE), metadata=metadata)
    assert to_json(loaded.revision) == (await reloading.load()).model_dump()
    promoted = await stub.PromoteModel(pb.PromoteModelRequest(model=NAME, revision=NEW), metadata=metadata)
    assert (promoted.previous, promoted.revision.active) == (OLD, True)
    listed = await stub.ListModels(pb.ListModelsRequest(), metadata=tuple(reloading.line.items()))
    over_http = await reloading.door.client.get("/v1/models", headers=reloading.line)
    assert to_json(listed) == over_http.json()
    assert not (await stub.ReportShadows(pb.ShadowRequest(), metadata=metadata)).shadows
    unloaded = await stub.UnloadModel(pb.UnloadModelRequest(model=NAME, revision=OLD), metadata=metadata)
    assert unloaded.revision == OLD
    again = stub.UnloadModel(pb.UnloadModelRequest(model=NAME, revision=NEW), metadata=metadata)
    await refused(again, "model_conflict")
    late = stub.LoadModel(pb.LoadModelRequest(model=NAME, file=FILE), metadata=tuple(reloading.line.items()))
    await refused(late, "permission_denied")


# In flight.


async def test_requests_in_flight_end_on_the_revision_that_they_began_with(reloading: Reloading) -> None:
    await reloading.load()
    door = reloading.door
    old = door.unet_runner
    door.unet.blocks = gate = threading.Event()
    first = asyncio.create_task(classes(reloading))
    await old.images.reach(1)
    waiting = asyncio.create_task(classes(reloading))
    await old.images.reach(2)
    await reloading.promote()
    later = asyncio.create_task(classes(reloading))
    new = door.unet_runner
    await new.images.reach(1)
    gate.set()
    assert [await each for each in (first, waiting, later)] == [BEFORE, BEFORE, AFTER]


async def test_an_unloaded_model_is_freed(reloading: Reloading) -> None:
    await reloading.load()
    await classes(reloading, model=f"{NAME}@{NEW}")
    backend = weakref.ref(reloading.loader.unets.pop())
    assert backend() is not None
    await reloading.unload(NEW)
    gc.collect()
    assert backend() is None


async def test_unloading_waits_for_the_requests_that_use_the_revision(reloading: Reloading) -> None:
    await reloading.load()
    door = reloading.door
    old = door.unet_runner
    door.unet.blocks = gate = threading.Event()
    using = asyncio.create_task(classes(reloading))
    await old.images.reach(1)
    await reloading.promote()
    unloading = asyncio.create_task(reloading.unload(OLD))
    await until(lambda: (NAME, OLD) not in reloading.control.engine.beside)
    late = await reloading.door.post_inspect(PEEL, reloading.line, model=f"{NAME}@{OLD}")
    problem(late, "model_not_loaded")  # no request begins with it any more
    assert not unloading.done()
    gate.set()
    assert await using == BEFORE
    await unloading
    assert not hasattr(old, "backend")


async def test_images_that_were_encoded_by_another_revision_are_to_be_sent_again(reloading: Reloading) -> None:
    door = reloading.door
    door.client.headers.update(reloading.line)
    image_id = (await door.embed(IMAGE)).image.id
    assert len(door.cache) == 1
    await reloading.load(model=SAM_NAME, promote=True)
    parts = {"image_id": (None, image_id), "request": (None, '{"prompts": [{"points": [[64, 48]]}]}')}
    problem(await door.client.post("/v1/segment", files=parts), "unknown_image_id")
    assert (await door.embed(IMAGE)).model.revision == NEW
    assert len(door.cache) == 2
    await reloading.unload(LOADED.revision, model=SAM_NAME)
    assert len(door.cache) == 1


async def test_the_service_stays_ready_and_answers_while_a_revision_is_loaded(reloading: Reloading) -> None:
    reloading.loader.opened = asyncio.Event()
    loading = asyncio.create_task(reloading.load())
    await reloading.loader.began.wait()
    assert (await reloading.door.client.get("/readyz")).status_code == 200
    assert await classes(reloading) == BEFORE
    assert await reloading.listed() == {OLD: ("loaded", True), NEW: ("loading", False)}
    reloading.loader.opened.set()
    assert (await loading).state == "loaded"


async def test_the_open_inference_protocol_names_the_revision_that_answers(reloading: Reloading) -> None:
    await reloading.load(promote=True)
    answer = await reloading.door.client.get(f"/v2/models/{NAME}", headers=reloading.line)
    assert answer.json()["versions"] == [NEW]
    assert (await reloading.door.client.get(f"/v2/models/{NAME}/versions/{OLD}/ready")).status_code == 401


# What fails leaves everything as it was.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadCheckpoint("The checkpoint does not fit the architecture unet-resnet18: no encoder"), "unusable_model"),
        (BackendError("OpenVINO cannot compile it"), "unusable_model"),
        (DeviceOutOfMemory("the card is full"), "no_room_for_model"),
        (RuntimeError("a bug"), "internal_error"),
    ],
)
@pytest.mark.parametrize("when", ["loading", "warming up"])
async def test_a_revision_that_cannot_be_loaded_leaves_the_old_one(
    reloading: Reloading, error: Exception, code: str, when: str
) -> None:
    if when == "loading":
        reloading.loader.fails = error
    else:
        reloading.loader.breaks = error
    before = reloading.room.total
    detail = problem(await reloading.post("load", model=NAME, file=FILE, promote=True), code).detail
    if code != "internal_error":
        assert str(error) in detail
    assert await reloading.listed() == {OLD: ("loaded", True), NEW: ("failed", False)}
    assert await classes(reloading) == BEFORE
    assert reloading.room.total == before
    assert reloading.observer.loads == ["failed"]
    problem(await reloading.post("promote", model=NAME, revision=NEW), "model_not_loaded")
    reloading.loader.fails = reloading.loader.breaks = None
    assert (await reloading.load(promote=True)).active
    assert await reloading.listed() == {NEW: ("loaded", True), OLD: ("loaded", False)}


async def test_the_reason_of_a_failure_is_listed_until_the_next_load(reloading: Reloading) -> None:
    reloading.loader.fails = BadCheckpoint("The checkpoint has no decoder")
    problem(await reloading.post("load", model=NAME, file=FILE), "unusable_model")
    (failed,) = [one for one in reloading.control.revisions(NAME) if one.state == "failed"]
    assert failed.error == "The checkpoint has no decoder"
    reloading.loader.fails = None
    reloading.write("other.safetensors", b"other")
    await reloading.load("other.safetensors")
    assert "failed" not in {state for state, _ in (await reloading.listed()).values()}


UNUSABLE: Final = [
    ("a parent folder", "../keys.json", "without .."),
    ("a hidden parent", "run-7/../../keys.json", "without .."),
    ("an absolute path", "/etc/passwd", "relative path"),
    ("a URL", "https://example.org/model.safetensors", "never a URL"),
    ("a drive", "C:/model.safetensors", "never a URL"),
    ("backslashes", "run-7\\model.safetensors", "relative path"),
    ("a zero byte", "model\0.safetensors", "relative path"),
    ("blanks", "  ", "relative path"),
    ("nothing there", "nothing.safetensors", "No such file"),
    ("a folder without a model", "empty", "model.safetensors"),
    ("a link that leads out", "out.safetensors", "leads out"),
    ("a folder that leads out", "outside/model.safetensors", "leads out"),
    ("a link to itself", "circle.safetensors", "links"),
    ("a pipe", "pipe.safetensors", "must be a file"),
    ("another kind of file", "notes.txt", "ends in .safetensors"),
]


@pytest.mark.parametrize(("file", "says"), [case[1:] for case in UNUSABLE], ids=[case[0] for case in UNUSABLE])
async def test_only_checkpoints_in_the_folder_are_loaded(reloading: Reloading, file: str, says: str) -> None:
    folder = reloading.folder
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "model.safetensors").write_bytes(b"secret")
    (folder / "outside").symlink_to(outside)
    (folder / "out.safetensors").symlink_to(outside / "model.safetensors")
    (folder / "circle.safetensors").symlink_to("circle.safetensors")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("notes")
    os.mkfifo(folder / "pipe.safetensors")
    assert says in problem(await reloading.post("load", model=NAME, file=file), "unusable_model").detail
    assert reloading.loader.loads == 0


async def test_a_link_within_the_folder_is_followed(reloading: Reloading) -> None:
    (reloading.folder / "latest").symlink_to("run-7")
    assert (await reloading.load("latest")).revision == NEW


async def test_another_file_than_the_hash_says_is_refused(reloading: Reloading) -> None:
    answer = await reloading.post("load", model=NAME, file=FILE, sha256="0" * 64)
    assert "must have the SHA-256 0000" in problem(answer, "unusable_model").detail
    assert reloading.loader.loads == 0


@pytest.mark.parametrize("architecture", ["yolox", "mobile-sam", "resnet"])
async def test_the_architecture_must_be_of_the_models_family(reloading: Reloading, architecture: str) -> None:
    answer = await reloading.post("load", model=NAME, file=FILE, architecture=architecture)
    assert "unet-resnet18, unet-mobilenetv2" in problem(answer, "unusable_model").detail


@pytest.mark.parametrize("architecture", [Architecture.SAM2_TINY, Architecture.GROUNDING_DINO])
async def test_models_of_folders_and_sessions_change_with_a_restart(
    reloading: Reloading, architecture: Architecture
) -> None:
    runner = reloading.control.engine.runners[SAM_NAME]
    runner.entry = replace(runner.entry, architecture=architecture)
    detail = problem(await reloading.post("load", model=SAM_NAME, file=FILE), "loading_disabled").detail
    assert "only of sam, unet, detector: change the models file, and restart" in detail
    assert reloading.loader.loads == 0


async def test_a_revision_may_have_another_network_of_the_family(reloading: Reloading) -> None:
    assert (await reloading.load(architecture="unet-mobilenetv2")).architecture == "unet-mobilenetv2"


@pytest.mark.parametrize(("sha256", "area"), [(NEW_SHA256, 200_704), ("0d" * 32, None)])
async def test_a_unet_sees_as_much_as_the_models_file_of_its_run_says(
    reloading: Reloading, sha256: str, area: int | None
) -> None:
    keys = {
        "architecture": "unet-resnet18",
        "file": "model.safetensors",
        "licence": "MIT",
        "sha256": sha256,
        "input_area": 200_704,
    }
    reloading.write("run-7/models.yaml", json.dumps({"models": {"mine": keys}}).encode())
    await reloading.load(promote=True)
    assert reloading.control.engine.runners[NAME].entry.input_area == area


async def test_a_run_with_a_damaged_models_file_is_not_loaded(reloading: Reloading) -> None:
    reloading.write("run-7/models.yaml", b"models: [")
    detail = problem(await reloading.post("load", model=NAME, file=FILE), "unusable_model").detail
    assert "models file beside 'model.safetensors'" in detail
    assert "must be valid YAML" in detail
    assert reloading.loader.loads == 0


async def test_a_model_that_is_not_loaded_gets_no_revision(reloading: Reloading) -> None:
    problem(await reloading.post("load", model=NOT_LOADED.name, file=FILE), "model_not_loaded")
    problem(await reloading.post("load", model="oranges", file=FILE), "unknown_model")
    problem(await reloading.post("promote", model=NAME, revision=NEW), "model_not_loaded")
    problem(await reloading.post("unload", model=NAME, revision=NEW), "model_not_loaded")
    problem(await reloading.post("promote", model="oranges", revision=NEW), "unknown_model")


async def test_the_active_revision_is_not_unloaded(reloading: Reloading) -> None:
    assert (
        "promote another" in problem(await reloading.post("unload", model=NAME, revision=OLD), "model_conflict").detail
    )
    assert await classes(reloading) == BEFORE


async def test_two_models_are_not_loaded_at_once(reloading: Reloading) -> None:
    reloading.loader.opened = asyncio.Event()
    loading = asyncio.create_task(reloading.load())
    await reloading.loader.began.wait()
    for model in (NAME, SAM_NAME):
        detail = problem(await reloading.post("load", model=model, file=FILE), "model_conflict").detail
        assert "one model is loaded at a time" in detail
    for what in ("promote", "unload"):
        problem(await reloading.post(what, model=NAME, revision=NEW), "model_conflict")
    reloading.loader.opened.set()
    assert (await loading).state == "loaded"


async def test_a_third_revision_waits_until_one_is_unloaded(reloading: Reloading) -> None:
    await reloading.load()
    reloading.write("other.safetensors", b"other")
    answer = await reloading.post("load", model=NAME, file="other.safetensors")
    assert f"{NEW} of {NAME} is loaded beside" in problem(answer, "model_conflict").detail
    await reloading.unload(NEW)
    assert (await reloading.load("other.safetensors")).state == "loaded"


# Memory.


async def test_memory_is_reserved_before_loading_and_requests_get_it_back(reloading: Reloading) -> None:
    room = reloading.room
    before = room.total
    reloading.loader.opened = asyncio.Event()
    loading = asyncio.create_task(reloading.load())
    await reloading.loader.began.wait()
    assert room.total == before - COST.loading
    reloading.loader.opened.set()
    assert (await loading).memory_mib == COST.loaded // MIB
    assert room.total == before - COST.loaded
    assert room.budget.ledger.limits[Kind.WORK] == room.total
    assert (await reloading.unload(NEW)).freed_mib == COST.loaded // MIB
    assert room.total == before


async def test_without_room_a_model_is_refused_before_it_is_loaded(reloading: Reloading) -> None:
    reloading.room.least = reloading.room.total - 100 * MIB
    detail = problem(await reloading.post("load", model=NAME, file=FILE), "no_room_for_model").detail
    assert "takes about 300 MiB, of which there are 100 MiB" in detail
    assert "Give the container more memory" in detail
    assert reloading.loader.loads == 0
    assert await reloading.listed() == {OLD: ("loaded", True)}


async def test_spare_memory_is_taken_before_that_of_requests(reloading: Reloading) -> None:
    reloading.room.spare = 250 * MIB
    before = reloading.room.total
    await reloading.load()
    assert (reloading.room.total, reloading.room.spare) == (before, 50 * MIB)
    await reloading.unload(NEW)
    assert (reloading.room.total, reloading.room.spare) == (before, 250 * MIB)


async def test_a_load_waits_for_the_memory_that_requests_hold(reloading: Reloading) -> None:
    room = reloading.room
    most = room.largest[Kind.WORK]
    held: list[Holding] = []
    while (left := room.total - sum(each.nbytes for each in held) - 100 * MIB) > 0:
        held.append(await room.budget.take(Kind.WORK, min(most, left)))
    loading = asyncio.create_task(reloading.load())
    await until(lambda: room.total < SPARE + room.least)
    assert reloading.loader.loads == 0
    for each in held:
        each.release()
    assert (await loading).state == "loaded"


# Time.


async def test_a_caller_that_leaves_does_not_stop_the_load(reloading: Reloading) -> None:
    reloading.loader.opened = asyncio.Event()
    loading = asyncio.create_task(reloading.load())
    await reloading.loader.began.wait()
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    reloading.loader.opened.set()
    await until(lambda: (NAME, NEW) in reloading.control.engine.beside)
    assert await reloading.listed() == {OLD: ("loaded", True), NEW: ("loaded", False)}


async def test_a_load_that_takes_long_is_answered_before_it_has_ended(tmp_path: Path) -> None:
    async with open_reloading(tmp_path, request_timeout_s=0.2) as reloading:
        reloading.loader.opened = asyncio.Event()
        assert (await reloading.load()).state == "loading"
        reloading.loader.opened.set()


async def test_a_server_that_stops_ends_the_load_and_begins_no_other(reloading: Reloading) -> None:
    reloading.loader.opened = asyncio.Event()
    loading = asyncio.create_task(reloading.post("load", model=NAME, file=FILE))
    await reloading.loader.began.wait()
    reloading.control.halt()
    assert "shutting down" in problem(await loading, "not_ready").detail
    problem(await reloading.post("load", model=NAME, file=FILE), "not_ready")
    assert await classes(reloading) == BEFORE


async def test_warming_up_runs_batches_no_larger_than_those_of_the_old_revision(reloading: Reloading) -> None:
    runner = reloading.door.unet_runner
    await runner.warm_up()
    reloading.door.forget()
    await reloading.load()
    (unet,) = reloading.loader.unets
    assert unet.encodes == [1, 1]
    assert not unet.overlapped
    assert len(unet.threads | reloading.door.unet.threads) == 1
    new = reloading.control.engine.loaded(NAME, NEW)
    assert isinstance(new, WatchedUNetRunner)


# Who may.


async def test_only_administrators_change_models(reloading: Reloading) -> None:
    fields = {"load": {"file": FILE}, "promote": {"revision": NEW}, "unload": {"revision": OLD}}
    for what, more in fields.items():
        problem(await reloading.post(what, {}, model=NAME, **more), "unauthenticated")
        detail = problem(await reloading.post(what, reloading.line, model=NAME, **more), "permission_denied").detail
        assert "scope admin" in detail
    answer = await reloading.door.client.get("/v1/shadow", headers=reloading.line)
    problem(answer, "permission_denied")
    assert reloading.loader.loads == 0


async def test_without_keys_nobody_does(reloading: Reloading) -> None:
    reloading.door.app.handler.access._keys = None
    detail = problem(await reloading.post("load", {}, model=NAME, file=FILE), "permission_denied").detail
    assert "POMONA_API_KEYS_FILE" in detail
    problem(await reloading.post("promote", {}, model=NAME, revision=OLD), "permission_denied")
    problem(await reloading.post("unload", {}, model=NAME, revision=OLD), "permission_denied")
    call = reloading.caller.stub.LoadModel(pb.LoadModelRequest(model=NAME, file=FILE))
    await refused(call, "permission_denied")


async def test_without_a_folder_none_is_loaded(tmp_path: Path) -> None:
    async with open_reloading(tmp_path, models_dir=None) as reloading:
        detail = problem(await reloading.post("load", model=NAME, file=FILE), "loading_disabled").detail
        assert "POMONA_MODELS_DIR" in detail


async def test_one_of_several_workers_loads_none(reloading: Reloading) -> None:
    reloading.control.alone = False
    detail = problem(await reloading.post("load", model=NAME, file=FILE), "loading_disabled").detail
    assert "one service per GPU" in detail


async def test_the_log_says_who_changed_what(reloading: Reloading, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pomona.models"):
        await reloading.load()
        await reloading.promote()
        await reloading.unload(OLD)
    lines = [vars(record) for record in caplog.records if record.message == "admin action"]
    assert [(line["action"], line["caller"], line["model"], line["revision"]) for line in lines] == [
        ("load", "release", NAME, NEW),
        ("promote", "release", NAME, NEW),
        ("unload", "release", NAME, OLD),
    ]
    assert all(line["request_id"] for line in lines)
    assert lines[0]["file"] == FILE


# The request.


@pytest.mark.parametrize(
    ("body", "code", "says"),
    [
        ({"content": b"{}", "headers": {"content-type": "text/plain"}}, "malformed_request", "application/json"),
        ({"content": b"{}"}, "malformed_request", "no content type"),
        ({"json": {}}, "malformed_request", "model: Field required"),
        ({"json": {"model": NAME, "file": FILE, "url": "x"}}, "unknown_field", "url"),
        ({"json": {"model": NAME, "file": FILE, "shadow": 2}}, "malformed_request", "shadow"),
        ({"json": {"model": NAME, "file": FILE, "sha256": "abc"}}, "malformed_request", "sha256"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "malformed_json", "JSON"),
        ({"content": b" " * 70_000, "headers": {"content-type": "application/json"}}, "upload_too_large", "64 KiB"),
    ],
)
async def test_a_request_of_another_form_is_refused(
    reloading: Reloading, body: dict[str, Any], code: str, says: str
) -> None:
    headers = {**body.pop("headers", {}), **reloading.admin}
    answer = await reloading.door.client.post("/v1/models/load", headers=headers, **body)
    assert says in problem(answer, code).detail
    problem(await reloading.door.client.get("/v1/models/load", headers=reloading.admin), "method_not_allowed")
