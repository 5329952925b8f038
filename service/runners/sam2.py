"""A SAM 2 on a device: what a SAM does."""

from __future__ import annotations

from typing import ClassVar

from models.catalog import Family
from service.runners.sam import SamRunner


class Sam2Runner(SamRunner):
    """One SAM 2 on one device; see `SamRunner`."""

    family: ClassVar[Family] = "sam2"
