"""Objects followed over the frames of a video, which come one by one: requests and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pomona import _checks as checks
from pomona._requests import Request
from pomona.errors import InvalidArgument, MalformedPrompt
from pomona.exports import LabelledMask
from pomona.masks import Mask, PixelBox
from pomona.prompts import Prompt, Prompts, parse_prompts
from pomona.results import FrameInfo, MaskResult, ModelUsed


@dataclass(frozen=True)
class TrackedObject:
    """An object on a frame of a session.

    Attributes:
        object_id: as in the prompt that began it.
        visible: whether it is in view; else its mask is empty.
        presence: how sure it is that the object is in view, 0 to 1.
        mask: of the frame's size.
        score: predicted IoU, 0 to 1.
        stability_score: IoU of the masks at thresholds 1 above and 1 below, 0 to 1.
        box: tight and half-open; all 0 for an empty mask.
        area: pixels in the mask.
    """

    object_id: int
    visible: bool
    presence: float
    mask: Mask
    score: float
    stability_score: float
    box: PixelBox
    area: int

    @property
    def array(self) -> NDArray[np.bool_]:
        """The pixels as bool (height, width) of the frame's size, decoded at first use."""
        return self.mask.array


@dataclass(frozen=True, kw_only=True)
class TrackedFrame(MaskResult):
    """The objects of a session on one frame.

    Attributes:
        model: that answered.
        session: to be sent with the next frame.
        frame_index: of the session, from 0.
        objects: all that are followed, in the order in which they were added.
        frame: what the camera said about the frame, as sent.
    """

    model: ModelUsed
    session: str
    frame_index: int
    objects: tuple[TrackedObject, ...]
    frame: FrameInfo = field(default_factory=FrameInfo)

    def labelled_masks(self) -> tuple[LabelledMask, ...]:
        """Return the masks of the objects in view."""
        return tuple(
            LabelledMask(each.mask, each.box, each.area, str(each.object_id), each.score, {})
            for each in self.objects
            if each.visible
        )

    def index_map(self) -> NDArray[np.uint16]:
        """Return uint16 (height, width): 0 outside all masks, else the object's id, the same on every frame.

        Raises:
            InvalidArgument: an id is above 65,535.
        """
        pixels = np.zeros(self.image.size, np.uint16)
        for each in self.objects:
            if each.visible:
                checks.whole(each.object_id, "an object's id in a map", low=1, high=(1 << 16) - 1)
                pixels[each.array] = each.object_id
        return pixels


@dataclass(frozen=True, kw_only=True)
class TrackFrame(Request[TrackedFrame]):
    """Objects on the next frame of a session; see `Client.track`.

    Raises:
        NoPrompt, MalformedPrompt, InvalidArgument: a prompt or an option cannot be used.
    """

    operation = "track"
    result_type = TrackedFrame
    takes_frame = True
    idempotent = False  # the service would take it for the frame after itself

    prompts: Mapping[int, Prompts] = field(default_factory=dict)
    session: str | None = None
    remove: Sequence[int] = ()
    model: str | None = None
    logits: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.session is not None:
            checks.text(self.session, "session")
        if not isinstance(self.prompts, Mapping):
            raise InvalidArgument(f"prompts must be prompts by object id, as {{1: Point(9, 9)}}, got {self.prompts!r}.")
        parsed = {_object_id(each): parse_prompts(prompt) for each, prompt in self.prompts.items()}
        for each, prompts in parsed.items():
            if len(prompts) != 1:
                raise MalformedPrompt(f"Object {each} must have one prompt on a frame, got {len(prompts)}.")
        object.__setattr__(self, "prompts", parsed)
        object.__setattr__(self, "remove", tuple(_object_id(each) for each in self.remove))

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the API."""
        prompts = [
            {"object_id": each, **{name: value for name, value in prompt.to_json().items() if name != "multimask"}}
            for each, (prompt,) in cast("dict[int, tuple[Prompt]]", self.prompts).items()
        ]
        return {
            "prompts": prompts or None,
            "session": self.session,
            "remove": list(self.remove) or None,
            "model": self.model,
            "format": "logits" if self.logits else None,
        }


@dataclass(frozen=True)
class EndTracking(Request[int]):
    """Close a session; see `Client.end_tracking`. The result is how many frames were answered."""

    operation = "track/end"
    needs_image = False
    posts = True
    idempotent = False  # the session would be unknown then

    session: str

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.text(self.session, "session")

    def parse(self, body: Mapping[str, Any]) -> int:
        """Read the result."""
        return int(body["frames"])


def _object_id(value: object) -> int:
    return checks.whole(value, "an object's id", low=1, high=(1 << 31) - 1)
