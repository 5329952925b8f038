"""Logs: one JSON object per line on standard output, without image content and prompts."""

from __future__ import annotations

import logging
import sys
from typing import Final, TextIO

from pythonjsonlogger.json import JsonFormatter

from service.observability.tracing import current

_OURS: Final = "pomona"
_SERVERS: Final = ("bentoml", "uvicorn.error", "circus")
"""Loggers to which BentoML gives handlers of its own."""


def configure(level: str) -> None:
    """Send all logs to standard output as JSON: those under the logger `pomona` from `level` on.

    BentoML's own lines and those of libraries keep the levels that BentoML sets.
    """
    handler = json_handler(sys.stdout)
    for name in (_OURS, *_SERVERS, None):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
    logging.getLogger(_OURS).setLevel(level)
    logging.captureWarnings(capture=True)


def json_handler(stream: TextIO) -> logging.Handler:
    """Return a handler of JSON lines; those of a request have its `request_id`, and `trace_id` if it is traced."""
    handler = logging.StreamHandler(stream)
    handler.addFilter(_add_request)
    handler.setFormatter(
        JsonFormatter(
            "%(asctime)s %(levelname)s %(name)s %(message)s",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            datefmt="%Y-%m-%dT%H:%M:%S%z",
        )
    )
    return handler


def _add_request(record: logging.LogRecord) -> bool:
    request = current()
    if request is not None:
        if not hasattr(record, "request_id"):
            record.request_id = request.request_id
        if request.trace_id is not None:
            record.trace_id = request.trace_id
    return True
