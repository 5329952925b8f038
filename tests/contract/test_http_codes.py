from __future__ import annotations

from typing import Final

from service.errors import PROBLEMS
from tests.contract import test_http_deadlines as deadlines
from tests.contract import test_http_refusals as refused
from tests.contract.refusals import REFUSALS

EXERCISED_BY_TESTS_OF_THEIR_OWN: Final = {
    "not_ready": refused.test_before_the_models_are_loaded_the_answer_is_to_come_back_later,
    "timed_out": refused.test_a_request_that_takes_too_long_is_told_so_and_the_next_is_answered,
    "internal_error": refused.test_a_failure_of_the_server_leaks_nothing_and_is_logged,
    "upload_too_large": refused.test_a_body_without_a_length_is_read_no_further_than_the_limit,
    "overloaded": deadlines.test_a_request_beyond_a_full_queue_is_refused_and_told_when_to_come_back,
    "deadline_exceeded": deadlines.test_a_deadline_that_passes_in_the_queue_is_answered_at_once_and_nothing_is_run,
    "deadline_unreachable": deadlines.test_a_deadline_that_cannot_be_met_is_refused_before_anything_is_run,
}


def test_every_code_of_the_table_is_exercised() -> None:
    exercised = {refusal.code for refusal in REFUSALS} | set(EXERCISED_BY_TESTS_OF_THEIR_OWN)
    assert exercised == {row.code for row in PROBLEMS.values()}
