"""What SAM 2 remembers of objects that it follows: a bank of bounded size, however many frames it has seen.

An object's mask on the next frame depends on its memories of the last six frames, on those of the frames on which it
was prompted, and on its pointers (one vector a frame) of the last fifteen and of these. All else is forgotten.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:  # serving without a SAM 2 must not load PyTorch
    from torch import Tensor

MAX_PROMPTED: Final = 8
"""Frames with prompts that are kept of an object, the newest."""


@dataclass(frozen=True, slots=True)
class BankSizes:
    """How much is kept.

    Attributes:
        memories: frames without prompts of which the memory is kept.
        pointers: of which the pointer is kept.
        memory_bytes: of one memory.
        pointer_bytes: of one pointer.
    """

    memories: int
    pointers: int
    memory_bytes: int
    pointer_bytes: int

    @property
    def object_bytes(self) -> int:
        """Most bytes that are kept of an object."""
        memories, pointers = self.memories + MAX_PROMPTED, self.pointers + MAX_PROMPTED
        return memories * self.memory_bytes + pointers * self.pointer_bytes


@dataclass(frozen=True, slots=True)
class Memory:
    """One object on one frame.

    Attributes:
        features: where it was and what it looked like, bfloat16 (h * w, m); of EdgeTAM float32 (latents, m).
        pointer: what it was, float32 (c,).
    """

    features: Tensor
    pointer: Tensor


@dataclass(frozen=True, slots=True)
class Recollection:
    """What is remembered of an object while a frame is looked at.

    Attributes:
        memories: features, and which of the temporal encodings they have: frames ago, 0 for frames with prompts.
        pointers: vectors, and frames ago.
    """

    memories: list[tuple[Tensor, int]]
    pointers: list[tuple[Tensor, int]]

    @property
    def layout(self) -> tuple[int, int]:
        """Objects of equal layout are looked for in one batch."""
        return len(self.memories), len(self.pointers)


class ObjectBank:
    """The memories of one object.

    Args:
        sizes: how much is kept.
    """

    def __init__(self, sizes: BankSizes) -> None:
        self._sizes = sizes
        self._prompted: deque[tuple[int, Memory]] = deque(maxlen=MAX_PROMPTED)
        self._features: deque[tuple[int, Tensor]] = deque(maxlen=sizes.memories)
        self._pointers: deque[tuple[int, Tensor]] = deque(maxlen=sizes.pointers)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        memories, pointers = len(self._prompted) + len(self._features), len(self._prompted) + len(self._pointers)
        return memories * self._sizes.memory_bytes + pointers * self._sizes.pointer_bytes

    def add(self, frame: int, memory: Memory, *, prompted: bool) -> None:
        """Remember the object on a frame, whose number is larger than all before."""
        if prompted:
            self._prompted.append((frame, memory))
        else:
            self._features.append((frame, memory.features))
            self._pointers.append((frame, memory.pointer))

    def recall(self, frame: int) -> Recollection:
        """Return what matters for a new frame."""
        memories = [(memory.features, 0) for _, memory in self._prompted]
        memories += [(kept, frame - at) for at, kept in self._features if frame - at <= self._sizes.memories]
        pointers = [(memory.pointer, frame - at) for at, memory in self._prompted]
        recent = [(kept, frame - at) for at, kept in self._pointers if frame - at <= self._sizes.pointers]
        return Recollection(memories, pointers + recent[::-1])


@dataclass(slots=True)
class TrackState:
    """What is remembered of all objects of one video. For the device's thread.

    Attributes:
        frames: how many were looked at.
        objects: banks by the object's id, in the order in which they were added.
    """

    frames: int = 0
    objects: dict[int, ObjectBank] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(bank.nbytes for bank in self.objects.values())
