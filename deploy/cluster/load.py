"""Send requests until a file appears, and count what was lost: `python load.py URL STOP_FILE`, in a pod of the cluster.

Half of the callers keep their connections, the others make one for each request, as cameras and gateways do. It imports
only the standard library, so that any image with Python can run it.
"""

from __future__ import annotations

import collections
import http.client
import json
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Final

_IMAGE: Final = Path(__file__).with_name("oranges.jpg")
_CALLERS: Final = 4
_TIMEOUT_S: Final = 30.0
_PAUSE_S: Final = 0.05
_KEPT: Final = 5
"""Reasons of lost requests that are named."""

REFUSED: Final = 429
"""A refusal that names when to come again is no loss: the service has more than it can do."""


class Caller:
    """One caller.

    Args:
        url: base address of the service.
        keeps: whether it keeps its connection.
        image: body of each request.
    """

    def __init__(self, url: str, *, keeps: bool, image: bytes) -> None:
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._keeps = keeps
        self._image = image
        self._connection: http.client.HTTPConnection | None = None

    def send(self) -> str:
        """Send one request; return "ok", "refused", or why it was lost."""
        connection = self._connection or http.client.HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        self._connection = None
        try:
            connection.request(
                "POST",
                "/v1/inspect?" + urllib.parse.urlencode({"request": json.dumps({"mode": "fast"})}),
                self._image,
                {"Content-Type": "image/jpeg", "Connection": "keep-alive" if self._keeps else "close"},
            )
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            return type(error).__name__
        if self._keeps and not answer.will_close:
            self._connection = connection
        else:
            connection.close()
        if answer.status == REFUSED:
            return "refused"
        return "ok" if answer.status == http.client.OK else f"status {answer.status}"

    def close(self) -> None:
        """Close the connection that is kept, if there is one."""
        if self._connection is not None:
            self._connection.close()


def run(url: str, stopped: Callable[[], bool], *, image: bytes, callers: int = _CALLERS) -> dict[str, object]:
    """Send requests until `stopped` returns true.

    Args:
        url: base address of the service.
        stopped: whether to stop; asked between requests.
        image: body of each request.
        callers: at a time.

    Returns:
        Counts: sent, ok, refused, lost; and the reasons of what was lost.
    """
    seen: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()

    def call(number: int) -> None:
        caller = Caller(url, keeps=number % 2 == 0, image=image)
        while not stopped():
            outcome = caller.send()
            with lock:
                seen[outcome] += 1
            time.sleep(_PAUSE_S)
        caller.close()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reasons = {outcome: count for outcome, count in seen.most_common() if outcome not in ("ok", "refused")}
    return {
        "sent": seen.total(),
        "ok": seen["ok"],
        "refused": seen["refused"],
        "lost": sum(reasons.values()),
        "reasons": dict(list(reasons.items())[:_KEPT]),
    }


def main() -> None:
    """Say that it begins, send until the file is there, and print the counts."""
    url, stop = sys.argv[1], Path(sys.argv[2])
    sys.stdout.write("sending\n")
    sys.stdout.flush()
    sys.stdout.write(json.dumps(run(url, stop.exists, image=_IMAGE.read_bytes())) + "\n")


if __name__ == "__main__":
    main()
