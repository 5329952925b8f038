"""Loading, promoting and unloading revisions, and the report of shadows, by both clients over both transports."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from stand_in import ANSWERS, Problem, StandIn, use

from pomona import errors
from pomona.cli.main import pomona as cli

NEW = "63faa6075a0d"
OLD = "6dbb90523a35"


def invoke(service: StandIn, *arguments: str) -> Any:
    return CliRunner().invoke(cli, ["models", *arguments, "--url", service.address, "--no-retry"])


def test_a_revision_is_loaded_promoted_and_unloaded(service: StandIn, kind: str) -> None:
    def load(client: Any) -> Any:
        return client.load_model("mobile-sam", "run-7", sha256="0" * 64, shadow=0.25, request_id="release-7")

    loaded = use(kind, service.address, load)
    assert (loaded.revision, loaded.state, loaded.active, loaded.file, loaded.shadow) == (
        NEW,
        "loaded",
        False,
        "run-7",
        0.25,
    )
    promoted = use(kind, service.address, lambda client: client.promote_model("mobile-sam", NEW))
    assert promoted.active
    assert use(kind, service.address, lambda client: client.unload_model("mobile-sam", OLD)) == 257
    asked = [(received.operation, received.fields) for received in service.received]
    assert asked == [
        ("load", {"model": "mobile-sam", "file": "run-7", "sha256": "0" * 64, "shadow": 0.25}),
        ("promote", {"model": "mobile-sam", "revision": NEW}),
        ("unload", {"model": "mobile-sam", "revision": OLD}),
    ]
    assert service.received[0].headers["x-request-id"] == "release-7"


def test_http_paths_are_those_of_the_api(http: StandIn) -> None:
    use("sync", http.address, lambda client: client.load_model("m", "f"))
    use("sync", http.address, lambda client: client.shadows())
    assert [received.path for received in http.received] == ["/v1/models/load", "/v1/shadow"]


def test_the_report_of_shadows_is_read(service: StandIn, kind: str) -> None:
    (report,) = use(kind, service.address, lambda client: client.shadows())
    assert (report.compared, report.mean_iou, report.grade_changes) == (4, 0.75, 1)
    assert (report.worst[0].frame_id, report.worst[0].iou) == ("cam2-1", 0.5)


def test_models_have_revisions(service: StandIn, kind: str) -> None:
    models = use(kind, service.address, lambda client: client.models())
    assert [[(each.revision, each.active) for each in model.revisions] for model in models] == [
        [(OLD, True), (NEW, False)],
        [],
    ]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("unusable_model", errors.UnusableModel),
        ("model_conflict", errors.ModelConflict),
        ("no_room_for_model", errors.NoRoomForModel),
        ("loading_disabled", errors.LoadingDisabled),
        ("permission_denied", errors.PermissionDenied),
    ],
)
def test_refusals_are_errors_of_their_own(
    service: StandIn, kind: str, code: str, error: type[errors.PomonaError]
) -> None:
    service.always(Problem(code, "no"))
    with pytest.raises(error, match="no"):
        use(kind, service.address, lambda client: client.load_model("m", "f"))


@pytest.mark.parametrize("arguments", [(7, "f"), ("m", 7), ("m", None)])
def test_arguments_must_be_text(http: StandIn, arguments: tuple[Any, Any]) -> None:
    with pytest.raises(errors.InvalidArgument):
        use("sync", http.address, lambda client: client.load_model(*arguments))
    with pytest.raises(errors.InvalidArgument, match="shadow"):
        use("sync", http.address, lambda client: client.load_model("m", "f", shadow=2))
    assert http.received == []


# The command line.


def test_the_command_loads_and_says_what_it_did(http: StandIn) -> None:
    done = invoke(http, "load", "mobile-sam", "run-7", "--shadow", "0.25")
    assert done.stdout == f"mobile-sam {NEW}  beside the active one, answers 0.25 of the frames too\n"
    assert invoke(http, "promote", "mobile-sam", NEW).stdout == f"mobile-sam {NEW}  active\n"
    assert invoke(http, "unload", "mobile-sam", OLD).stdout == f"mobile-sam {OLD} unloaded, 257 MiB freed\n"
    assert f"{NEW}  beside the active one" in invoke(http).stdout


@pytest.mark.parametrize(("state", "exit_code"), [("loaded", 0), ("failed", 1)])
def test_the_command_waits_for_a_load_that_takes_long(
    http: StandIn, monkeypatch: pytest.MonkeyPatch, state: str, exit_code: int
) -> None:
    monkeypatch.setattr("pomona.cli.models._POLL_S", 0)
    load, models = json.loads(json.dumps([ANSWERS["load"], ANSWERS["models"]]))
    load["revision"]["state"] = "loading"
    models["models"][0]["revisions"][1] |= {"state": state, "error": "no decoder" if state == "failed" else None}
    http.answers(load, models)
    done = invoke(http, "load", "mobile-sam", "run-7")
    assert done.exit_code == exit_code
    assert ("no decoder" in done.stderr) == (state == "failed")


def test_the_command_shows_the_report(http: StandIn) -> None:
    lines = invoke(http, "shadow").stdout.splitlines()
    assert lines[0] == f"my-unet {NEW} beside 0f5c1a2b3c4d: 0.25 of the frames"
    assert lines[1] == "  frames: 4 compared, 1 skipped, 0 failed"
    assert lines[-1] == "  cam2-1: IoU 0.500, infected fraction 0.0625, 1 grades"
    assert json.loads(invoke(http, "shadow", "--json").stdout)[0]["worst"][0]["frame_id"] == "cam2-1"


def test_a_refusal_is_an_exit_code(http: StandIn) -> None:
    http.always(Problem("model_conflict", "promote another one first"))
    done = invoke(http, "unload", "mobile-sam", OLD)
    assert (done.exit_code, "promote another one first" in done.stderr) == (1, True)


def test_options_before_the_command_are_not_lost_silently(http: StandIn) -> None:
    done = CliRunner().invoke(cli, ["models", "--url", http.address, "shadow"])
    assert (done.exit_code, "Options go after the command" in done.stderr) == (2, True)
