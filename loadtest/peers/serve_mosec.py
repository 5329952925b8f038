"""The benchmark's model on mosec: the body is the image, batches of whatever waits, one worker.

python -m loadtest.peers.serve_mosec --port PORT --timeout MS
"""

from __future__ import annotations

from mosec import Server, Worker

from loadtest.peers import ANSWER, BATCH, Work

_SHORTEST_WAIT_MS = 1  # 0 would mean the default of 10


class BenchWorker(Worker):
    """Takes the body as it is."""

    def __init__(self) -> None:
        super().__init__()
        self._work = Work.from_environment()

    def deserialize(self, data: bytes) -> bytes:
        """Return the body unchanged."""
        return data

    def forward(self, data: list[bytes]) -> list[dict[str, list[int]]]:
        """Return an answer for each image."""
        self._work.run(len(data))
        return [ANSWER] * len(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(BenchWorker, max_batch_size=BATCH, max_wait_time=_SHORTEST_WAIT_MS)
    server.run()
