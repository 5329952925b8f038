from __future__ import annotations

from collections.abc import Iterator

import pytest

from models import downloads
from models import errors as domain
from models.errors import PomonaError
from service import errors, settings
from service.errors import PROBLEMS, problem_of

STATUS_OF_CODE = {
    "malformed_request": 400,
    "malformed_json": 400,
    "unknown_model": 404,
    "model_not_loaded": 404,
    "unknown_image_id": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_many_pixels": 413,
    "upload_too_large": 413,
    "not_an_image": 415,
    "unsupported_image_format": 415,
    "truncated_image": 422,
    "no_prompt": 422,
    "malformed_prompt": 422,
    "prompt_outside_image": 422,
    "too_many_prompts": 422,
    "unknown_field": 422,
    "unsupported_format": 422,
    "no_image": 422,
    "internal_error": 500,
    "not_ready": 503,
    "timed_out": 504,
}
"""Programs depend on these: a code is never renamed, and never gets another status."""

SERVERS_FAULT = {
    PomonaError,
    errors.RequestError,
    domain.ImageError,
    domain.PromptError,
    domain.WeightsError,
    domain.NoSource,
    domain.WrongHash,
    domain.DiskFull,
    domain.BadCheckpoint,
    downloads.SourceError,
    domain.CatalogueError,
    domain.BackendError,
    settings.SettingsError,
}
"""What a caller can do nothing about, and the bases that are never raised themselves."""


def tree(root: type[PomonaError] = PomonaError) -> Iterator[type[PomonaError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__.startswith(("models.", "service.")) and not child.__name__.startswith("_"):
            yield from tree(child)


def test_codes_and_their_statuses_are_stable() -> None:
    assert {problem.code: problem.status for problem in PROBLEMS.values()} == STATUS_OF_CODE


def test_every_error_of_the_tree_has_a_row_of_its_own_or_of_an_ancestor_that_fits() -> None:
    without_a_code = {cls for cls in tree() if problem_of(cls("something")).code == "internal_error"}
    assert without_a_code == SERVERS_FAULT


@pytest.mark.parametrize("cls", list(dict.fromkeys(tree())), ids=lambda cls: cls.__name__)
def test_an_error_keeps_its_detail_and_answers_with_its_status(cls: type[PomonaError]) -> None:
    error = cls("what was wrong")
    assert error.detail == str(error) == "what was wrong"
    row = problem_of(error)
    assert row.status == STATUS_OF_CODE[row.code]


def test_the_nearest_row_wins() -> None:
    assert problem_of(errors.ModelNotLoaded("x")).code == "model_not_loaded"
    assert problem_of(domain.UnknownModel("x")).code == "unknown_model"
    assert problem_of(errors.MalformedJson("x")).code == "malformed_json"
    assert problem_of(domain.WrongHash("x")).code == "internal_error"


def test_a_code_has_one_title_and_one_status() -> None:
    told = {(row.code, row.title, row.status, row.retry_after) for row in PROBLEMS.values()}
    assert len(told) == len(STATUS_OF_CODE)


def test_only_what_passes_by_itself_says_when_to_come_back() -> None:
    assert {row.code for row in PROBLEMS.values() if row.retry_after is not None} == {"not_ready"}
