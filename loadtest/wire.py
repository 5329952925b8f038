"""The service's HTTP as the load generator writes and reads it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from typing import Final

_BOUNDARY: Final = uuid.uuid4().hex
CONTENT_TYPE: Final = f"multipart/form-data; boundary={_BOUNDARY}"
"""Of what `multipart` returns."""


def multipart(fields: Mapping[str, str], jpeg: bytes | None, part: str = "image") -> bytes:
    """Build a request body.

    Args:
        fields: values by name.
        jpeg: the part `part`, where there is to be one.
        part: its name.
    """
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if jpeg is not None:
        head = f'Content-Disposition: form-data; name="{part}"; filename="frame.jpg"\r\nContent-Type: image/jpeg'
        parts += [f"--{_BOUNDARY}\r\n{head}\r\n\r\n".encode(), jpeg, b"\r\n"]
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])


def post(path: str, content_type: str, body: bytes, extra: Mapping[str, str] | None = None) -> tuple[bytes, bytes]:
    """A request of HTTP/1.1 on a connection that stays open: its head and its body.

    Args:
        path: with its query.
        content_type: of the body.
        body: as it is.
        extra: further headers.
    """
    headers = {"Host": "127.0.0.1", "Content-Type": content_type, "Content-Length": str(len(body)), **(extra or {})}
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii"), body


def problem_code(body: bytes | None) -> str:
    """The `code` of a problem; empty where the body is none."""
    try:
        problem = json.loads(body or b"")
    except ValueError:
        return ""
    code = problem.get("code") if isinstance(problem, dict) else None
    return code if isinstance(code, str) else ""


def retry_after_s(header: str | None) -> float:
    """Seconds to wait after a refusal or a failure; 1 where the answer does not say it in seconds."""
    try:
        return max(0.0, float(header or ""))
    except ValueError:
        return 1.0
