"""What may share a batch on a device."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from models.sam.constants import INPUT_SIDE
from models.transforms import Frame
from models.types import Size
from service.observability.observer import Stage


@dataclass(frozen=True, slots=True)
class EncodeKey:
    """Pictures that the encoder takes in one batch. Their cost is counted in megapixels of what the encoder sees."""

    side: int
    padded: Size


@dataclass(frozen=True, slots=True)
class DecodeKey:
    """Prompts that the decoder takes in one batch. Their cost is counted in prompts on the full square of 1024."""

    side: int
    padded: Size
    with_mask: bool


@dataclass(frozen=True, slots=True)
class InferKey:
    """Pictures that a U-Net takes in one batch. Their cost is counted in megapixels of what it sees."""

    padded: Size


def stage(key: Hashable) -> Stage:
    """The part of the work that a key stands for."""
    if isinstance(key, InferKey):
        return "infer"
    return "encode" if isinstance(key, EncodeKey) else "decode"


def encode_key(frame: Frame) -> EncodeKey:
    """The key of pictures in this frame."""
    return EncodeKey(frame.side, frame.padded)


def decode_key(frame: Frame, *, with_mask: bool) -> DecodeKey:
    """The key of prompts on pictures in this frame."""
    return DecodeKey(frame.side, frame.padded, with_mask)


def share(frame: Frame) -> float:
    """Of the cells of the full square."""
    return frame.padded.pixels / INPUT_SIDE**2


def megapixels(size: Size) -> float:
    """Height times width in millions."""
    return size.pixels / 1e6
