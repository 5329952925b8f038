"""The benchmark's model on LitServe: a multipart form with a file, batches of whatever waits, one worker.

python -m loadtest.peers.serve_litserve PORT
"""

import sys
from collections.abc import Sequence
from typing import Any

import litserve
from starlette.requests import Request

from loadtest.peers import ANSWER, BATCH, Work


class BenchApi(litserve.LitAPI):
    """Reads the image and answers nothing about it."""

    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe's)
        """Read the work of this worker."""
        self._work = Work.from_environment()

    def decode_request(self, request: Request) -> bytes:
        """Return the image's bytes; LitServe passes the parsed form whatever the annotation says."""
        form: Any = request
        data: bytes = form["image"].file.read()
        return data

    def batch(self, inputs: Sequence[bytes]) -> Sequence[bytes]:
        """Return the inputs unchanged."""
        return inputs

    def predict(self, x: Sequence[bytes]) -> list[dict[str, list[int]]]:
        """Return an answer for each image."""
        self._work.run(len(x))
        return [ANSWER] * len(x)

    def unbatch(self, output: Sequence[object]) -> Sequence[object]:
        """Return the outputs unchanged."""
        return output

    def encode_response(self, output: object) -> object:
        """Return the output unchanged."""
        return output


def main() -> None:
    """Serve on the port given as the first argument."""
    timeout_ms = Work.from_environment().timeout_ms
    server = litserve.LitServer(
        BenchApi(max_batch_size=BATCH),
        accelerator="cpu",
        timeout=30 if timeout_ms is None else timeout_ms / 1000,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False, generate_client_file=False
    )


if __name__ == "__main__":
    main()
