"""Whose work it is, and what of it may share a batch on a device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from models.letterbox import Letterbox
from models.sam.constants import INPUT_SIDE
from models.types import Size
from models.unet.letterbox import UNetLetterbox
from service.observability.observer import Stage
from service.scheduler.policy import Limits


@dataclass(frozen=True, slots=True, eq=False)
class Owner:
    """Whose work it is: a model on a device that it may share with others.

    Attributes:
        name: the model's, by which observers hear of its work.
        limits: of a batch, by key.
        run: what the device does with a batch: key and payloads to results in their order.
    """

    name: str
    limits: Callable[[Key], Limits]
    run: Callable[[Key, Sequence[Any]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Key:
    """Work of one owner that may share a batch.

    Attributes:
        owner: whose it is.
        stage: of the owner's work.
        kind: what else must be equal.
    """

    owner: Owner
    stage: Stage
    kind: Hashable

    @property
    def family(self) -> Hashable:
        """Keys of one family differ in cost alone: how long their batches take is learned together."""
        return self.owner, self.stage


def encode_key(owner: Owner, frame: Letterbox) -> Key:
    """Images that an encoder takes in one batch. Their cost is counted in megapixels of what the encoder sees."""
    return Key(owner, "encode", (frame.side, frame.padded))


def decode_key(owner: Owner, frame: Letterbox, *, with_mask: bool) -> Key:
    """Prompts that a decoder takes in one batch. Their cost is counted in prompts on the full square of 1024."""
    return Key(owner, "mask_decode", (frame.side, frame.padded, with_mask))


def infer_key(owner: Owner, frame: UNetLetterbox) -> Key:
    """Images that a U-Net takes in one batch. Their cost is counted in megapixels of what it sees."""
    return Key(owner, "infer", frame.padded)


def share(frame: Letterbox) -> float:
    """Of the cells of the full square."""
    return frame.padded.pixels / INPUT_SIDE**2


def megapixels(size: Size) -> float:
    """Height times width in millions."""
    return size.pixels / 1e6
