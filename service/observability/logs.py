"""Logs: one JSON object per line on standard output, without image content and prompts.

What libraries in C print to standard error becomes lines of the log too.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, TextIO

from pythonjsonlogger.json import JsonFormatter

from service.observability.tracing import current

_OURS: Final = "pomona"
_SERVERS: Final = ("bentoml", "uvicorn.error", "circus")
"""Loggers to which BentoML gives handlers of its own."""

_PRINTED: Final = logging.getLogger("pomona.printed")
_STDERR: Final = 2
_MAX_PRINTED: Final = 300
"""Characters of a line that was printed; the rest of it is left out."""
_MAX_PRINTED_PER_S: Final = 20


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


def log_printed_lines(clock: Callable[[], float] = time.monotonic) -> Callable[[], None]:
    """Write what this process prints to standard error as lines of the log, at most twenty a second.

    Args:
        clock: seconds, monotonic.

    Returns:
        What gives standard error back.
    """
    reading, writing = os.pipe()
    # A library may print while it holds the interpreter's lock, so that no thread reads: what does not fit is lost.
    os.set_blocking(writing, False)
    before = os.dup(_STDERR)
    os.dup2(writing, _STDERR)
    os.close(writing)

    def copy() -> None:
        began, written = clock(), 0
        with os.fdopen(reading, errors="replace") as lines:
            while line := lines.readline(_MAX_PRINTED):
                if clock() - began >= 1:
                    began, written = clock(), 0
                written += 1
                if written <= _MAX_PRINTED_PER_S and (text := line.strip()):
                    _PRINTED.warning(text)

    thread = threading.Thread(target=copy, name="printed", daemon=True)
    thread.start()

    def give_back() -> None:
        os.dup2(before, _STDERR)  # closes the end that is written to, so that reading ends
        os.close(before)
        thread.join(1)

    return give_back


def _add_request(record: logging.LogRecord) -> bool:
    request = current()
    if request is not None:
        if not hasattr(record, "request_id"):
            record.request_id = request.request_id
        if request.trace_id is not None:
            record.trace_id = request.trace_id
    return True
