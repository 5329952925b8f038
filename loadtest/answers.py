"""How the answers of a server are judged that is ready and has no API keys: each is a success or a problem with a code.

A problem has the status of its code. Of 5xx there may be 504 for deadlines alone, and 503 for what is not loaded.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import grpc
import httpx
from google.rpc import error_details_pb2, status_pb2

from service.errors import PROBLEMS
from service.oip.openapi import CODE_HEADER

PASSED: Final = "passed"
"""Outcome of what was not refused."""

UNPROVOKED: Final = frozenset({"internal_error", "not_ready", "unauthenticated", "permission_denied", "rate_limited"})
"""Codes that no input may lead to on a server that is ready and has no keys."""

_PROBLEMS: Final = {problem.code: problem for problem in PROBLEMS.values() if problem.code not in UNPROVOKED}


class Violation(Exception):
    """Something was answered, or done with an input, that must not be."""


def judged(answer: httpx.Response) -> str:
    """Return `PASSED` or the code of a problem.

    Raises:
        Violation: the answer is neither.
    """
    status, kind = answer.status_code, answer.headers.get("content-type", "")
    if status < 400 or (status == 503 and answer.request.url.path.endswith("/ready")):
        return PASSED
    if answer.request.method == "HEAD" and status in (404, 405):
        return {404: "not_found", 405: "method_not_allowed"}[status]  # without a body that would say it
    code = answer.headers.get(CODE_HEADER)
    with contextlib.suppress(ValueError):
        code = code or (answer.json()["code"] if kind == "application/problem+json" else None)
    problem = _PROBLEMS.get(code or "")
    if problem is None or problem.status != status:
        raise Violation(f"answered with {status}, {kind}, code {code}: {answer.text[:300]}")
    return problem.code


def code_of(error: Any) -> str:
    """Return the code in the details of a call's error.

    Raises:
        Violation: there is none, or not one of its status.
    """
    info = error_details_pb2.ErrorInfo()
    for name, value in error.trailing_metadata() or ():
        if name == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                detail.Unpack(info)
    code = info.metadata.get("code", "")
    problem = _PROBLEMS.get(code)
    if problem is not None and grpc.StatusCode[problem.grpc] is error.code():
        return problem.code
    if not code and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return "upload_too_large"  # by gRPC itself, before our code is reached
    raise Violation(f"ended with {error.code().name}, code {code or 'none'}: {error.details()}")
