"""The errors and their table of codes and statuses."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from models import errors as domain
from models.errors import PomonaError
from models.weights import download
from service import access, errors, settings
from service.errors import PROBLEMS, ProblemType, problem_of
from service.observability import tracing
from service.pipelines import costs

ROOT = Path(__file__).parents[2]

STATUS_OF_CODE = {
    "malformed_request": 400,
    "malformed_json": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "unknown_model": 404,
    "model_not_loaded": 404,
    "unknown_image_id": 404,
    "unknown_session": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "session_expired": 410,
    "too_many_pixels": 413,
    "upload_too_large": 413,
    "too_much_memory": 413,
    "not_an_image": 415,
    "unsupported_image_format": 415,
    "truncated_image": 422,
    "image_too_complex": 422,
    "no_prompt": 422,
    "malformed_prompt": 422,
    "prompt_outside_image": 422,
    "too_many_prompts": 422,
    "unknown_field": 422,
    "unsupported_format": 422,
    "unsupported_input": 422,
    "wrong_model_family": 422,
    "unknown_class": 422,
    "no_image": 422,
    "frame_size_changed": 422,
    "too_many_objects": 422,
    "overloaded": 429,
    "rate_limited": 429,
    "too_many_sessions": 429,
    "internal_error": 500,
    "not_ready": 503,
    "deadline_exceeded": 504,
    "deadline_unreachable": 504,
    "timed_out": 504,
}
"""Programs depend on these: a code is never renamed, and its status never changes."""

GRPC_OF_STATUS = {
    400: {"INVALID_ARGUMENT"},
    401: {"UNAUTHENTICATED"},
    403: {"PERMISSION_DENIED"},
    404: {"NOT_FOUND", "UNIMPLEMENTED"},
    405: {"UNIMPLEMENTED"},
    410: {"NOT_FOUND"},
    413: {"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"},
    415: {"INVALID_ARGUMENT"},
    422: {"INVALID_ARGUMENT"},
    429: {"RESOURCE_EXHAUSTED"},
    500: {"INTERNAL"},
    503: {"UNAVAILABLE"},
    504: {"DEADLINE_EXCEEDED"},
}

OF_THE_SERVER = {
    PomonaError,
    errors.RequestError,
    errors.TryLater,
    domain.ImageError,
    domain.PromptError,
    domain.WeightsError,
    domain.NoSource,
    domain.WrongHash,
    domain.DiskFull,
    domain.BadCheckpoint,
    download.SourceError,
    domain.CatalogueError,
    domain.DataError,
    domain.DecodingStopped,  # its caller has left
    domain.BackendError,
    domain.DeviceOutOfMemory,
    domain.DeviceBroken,
    access.KeyFileError,
    settings.SettingsError,
    errors.PortTaken,
    tracing.TracingMisconfigured,
    costs.TooLittleMemory,
}
"""Errors that a caller can do nothing about, and base classes that are never raised themselves."""


_LIST_THE_TREE = """
import service.http.app, service.grpc.server, service.lifecycle
from models.errors import PomonaError

def walk(cls):
    print(cls.__module__, cls.__name__)
    for child in cls.__subclasses__():
        walk(child)

walk(PomonaError)
"""


@pytest.fixture(scope="module")
def tree() -> set[type[PomonaError]]:
    """List every error that the service's own modules define, in a process of its own, where no test adds to them."""
    listed = subprocess.run(
        [sys.executable, "-c", _LIST_THE_TREE], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = {getattr(importlib.import_module(module), name) for module, name in map(str.split, listed)}
    assert len(found) >= len(STATUS_OF_CODE)
    return {cls for cls in found if not cls.__name__.startswith("_")}


def row_of(cls: type[PomonaError]) -> ProblemType:
    return problem_of(cls.__new__(cls))


def test_codes_and_their_statuses_are_stable() -> None:
    assert {problem.code: problem.status for problem in PROBLEMS.values()} == STATUS_OF_CODE


def test_a_grpc_status_means_what_the_http_status_means() -> None:
    for row in PROBLEMS.values():
        assert row.grpc in GRPC_OF_STATUS[row.status], row
        assert row.grpc in grpc.StatusCode.__members__
    # What gRPC itself answers to a message beyond the limit, and to an unknown method.
    assert problem_of(errors.UploadTooLarge("x")).grpc == "RESOURCE_EXHAUSTED"
    assert problem_of(errors.NotFound("x")).grpc == "UNIMPLEMENTED"


def test_every_error_has_a_fitting_row_of_its_own_or_of_an_ancestor(
    tree: set[type[PomonaError]],
) -> None:
    assert {cls for cls in tree if row_of(cls).code == "internal_error"} == OF_THE_SERVER
    assert {row_of(cls).code for cls in tree} == set(STATUS_OF_CODE)


def test_the_nearest_row_wins() -> None:
    assert problem_of(errors.ModelNotLoaded("x")).code == "model_not_loaded"
    assert problem_of(domain.UnknownModel("x")).code == "unknown_model"
    assert problem_of(errors.MalformedJson("x")).code == "malformed_json"
    assert problem_of(errors.UnsupportedInput("x")).code == "unsupported_input"
    assert problem_of(domain.WrongHash("x")).code == "internal_error"
    assert problem_of(domain.DeviceBroken("x")).code == "internal_error"


def test_a_code_has_one_title_and_one_status() -> None:
    rows = {(row.code, row.title, row.status, row.grpc, row.retry_after) for row in PROBLEMS.values()}
    assert len(rows) == len(STATUS_OF_CODE)


def test_only_temporary_problems_say_when_to_retry() -> None:
    assert {row.code for row in PROBLEMS.values() if row.retry_after is not None} == {
        "not_ready",
        "overloaded",
        "rate_limited",
        "too_many_sessions",
    }
