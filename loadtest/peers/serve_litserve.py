"""The benchmark's model on LitServe: a multipart form with a file, batches of what waits, one worker.

python -m loadtest.peers.serve_litserve PORT
"""

import sys
from collections.abc import Sequence
from typing import Any

import litserve
from starlette.requests import Request

from loadtest.peers.model import ANSWER, BATCH, Work


class BenchApi(litserve.LitAPI):
    """Reads the image and answers nothing about it."""

    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe's)
        """Once per worker."""
        self._work = Work.told()

    def decode_request(self, request: Request) -> bytes:
        """The image's bytes; what comes is the form, whatever the annotation that asks for it says."""
        form: Any = request
        data: bytes = form["image"].file.read()
        return data

    def batch(self, inputs: Sequence[bytes]) -> Sequence[bytes]:
        """As they are."""
        return inputs

    def predict(self, x: Sequence[bytes]) -> list[dict[str, list[int]]]:
        """One answer for each."""
        self._work.run(len(x))
        return [ANSWER] * len(x)

    def unbatch(self, output: Sequence[object]) -> Sequence[object]:
        """As they are."""
        return output

    def encode_response(self, output: object) -> object:
        """As it is."""
        return output


def main() -> None:
    """Serve on the port that the first argument says."""
    timeout_ms = Work.told().timeout_ms
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
