"""What a run uses, as the command line names it; none of it decides what is learned."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from platformdirs import user_cache_path

from models.training.errors import CannotTrain


@dataclass(frozen=True, slots=True)
class Machine:
    """What a run uses; none of it decides what is learned.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        workers: processes that prepare images; 0 for none but the one that trains.
        mixed: 16-bit arithmetic where the device is faster with it.
        cache_dir: where downloads are kept.
        progress: draw bars on a terminal.
    """

    device: str
    workers: int
    cache_dir: Path
    mixed: bool = True
    progress: bool = True


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a run uses; the same for every training."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", help="auto (CUDA where there is any), cpu, cuda or cuda:N")
    group.add_argument("--workers", type=int, default=1, help="processes that prepare images (%(default)s)")
    group.add_argument("--threads", type=int, default=0, help="threads on a CPU, 0 for all cores")
    group.add_argument("--full-precision", action="store_true", help="float32 also where 16 bits are faster")
    group.add_argument("--cache", type=Path, help="folder of downloads (POMONA_CACHE_DIR, or the user's cache)")
    group.add_argument("--quiet", action="store_true", help="no progress bars")


def machine_of(given: argparse.Namespace) -> Machine:
    """Read what `add_machine_arguments` added, and set PyTorch's threads.

    Raises:
        CannotTrain: a number out of range.
    """
    if given.workers < 0 or given.threads < 0:
        raise CannotTrain("--workers and --threads are at least 0.")
    if given.threads:
        torch.set_num_threads(given.threads)
    device = given.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    cache = given.cache or Path(os.environ.get("POMONA_CACHE_DIR") or user_cache_path("pomona"))
    return Machine(
        device=device,
        workers=given.workers,
        cache_dir=cache.expanduser(),
        mixed=not given.full_precision,
        progress=not given.quiet,
    )
