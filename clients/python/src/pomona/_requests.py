"""Requests: an operation with its options, and the call that sends one with its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, ClassVar, Final, Generic, Literal, TypeAlias, TypeVar, cast, get_args

from pomona import _checks as checks
from pomona._reading import read_models, read_progress, read_result
from pomona.errors import InvalidArgument
from pomona.images import EncodedImage, ImageSource, encode_image
from pomona.prompts import Point, Prompt, Prompts, parse_prompts
from pomona.proposals import EdgeMap, Progress, Proposals
from pomona.results import (
    Detections,
    Embedding,
    FrameInfo,
    ImageInfo,
    Inspection,
    Instances,
    Model,
    Segmentation,
    SemanticMap,
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

InputSize: TypeAlias = Literal[1024, 768, 512, "auto"]
Padding: TypeAlias = Literal["none", "square", "stretch"]
Mode: TypeAlias = Literal["fast", "accurate", "auto"]
Preset: TypeAlias = Literal["full", "fast"]
EdgeDepth: TypeAlias = Literal["8", "16"]
FruitFinder: TypeAlias = Literal["unet", "detector", "both"]
Track: TypeAlias = Literal["leaving", "all"]
ImageLike: TypeAlias = ImageSource | Embedding | ImageInfo
"""An image, or one that the service already knows."""

_MOST_OBJECTS: Final = 300
_MOST_CLASSES: Final = 100
_LONGEST_CLASS: Final = 64
_LONGEST_TEXT: Final = 256
_MOST_GRADES: Final = 16
_LONGEST_GRADE: Final = 32


class Request(Generic[T_co]):
    """An operation with its options, the arguments of the client's method; the type parameter is its result.

    Attributes:
        operation: last part of the path in HTTP, and name of the method in gRPC.
        result_type: the type parameter, for those with an image.
        needs_image: whether an image is sent.
        streams: whether the frames of a camera can be sent over one gRPC stream.
        posts: whether it has fields to send although it has no image.
        by_id: whether the id of an image that the service knows may be sent instead of the image.
        takes_frame: whether identifiers of a camera's frame are fields of the API.
        idempotent: whether it may be answered twice without harm; if not, it is not sent again after its connection
            broke.
    """

    operation: ClassVar[str]
    result_type: ClassVar[Any]
    needs_image: ClassVar[bool] = True
    streams: ClassVar[bool] = False
    posts: ClassVar[bool] = False
    by_id: ClassVar[bool] = False
    takes_frame: ClassVar[bool] = False
    idempotent: ClassVar[bool] = True

    @property
    def needs_pixels(self) -> bool:
        """Whether the service needs the image itself, although it may know its id."""
        return False

    def __post_init__(self) -> None:
        """Check the options that several operations have."""
        for name, value in vars(self).items():
            if name in ("model", "sam_model", "detector") and value is not None:
                checks.text(value, name)
            elif name in ("logits", "overlay", "multimask", "thick"):
                checks.flag(value, name)
            elif name in ("score_threshold", "nms_threshold") and value is not None:
                object.__setattr__(self, name, checks.number(value, name, low=0, high=1))
            elif name in ("max_detections", "max_instances") and value is not None:
                object.__setattr__(self, name, checks.whole(value, name, low=1, high=_MOST_OBJECTS))
            elif name == "classes" and value is not None:
                object.__setattr__(self, name, _check_classes(value))
            elif name in _CHOICES and not (value is None and name in ("input_size", "padding", "track", "finder")):
                checks.one_of(value, name, _CHOICES[name])

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the API, None for the service's default; the default format of masks is RLE."""
        return dict(vars(self))

    def parse(self, body: Mapping[str, Any]) -> T_co:
        """Read the result from the object of the API.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the object does not have the result's fields.
        """
        return cast("T_co", read_result(self.result_type, body))


@dataclass(frozen=True)
class Segment(Request[Segmentation]):
    """Masks for prompts; see `Client.segment`.

    Raises:
        NoPrompt, MalformedPrompt, InvalidArgument: the prompts cannot be used.
    """

    operation = "segment"
    result_type = Segmentation
    streams = True
    by_id = True

    prompts: Prompts
    _: KW_ONLY
    model: str | None = None
    multimask: bool = True
    logits: bool = False
    overlay: bool = False
    input_size: InputSize | None = None
    padding: Padding | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "prompts", parse_prompts(self.prompts, multimask=self.multimask))

    @property
    def needs_pixels(self) -> bool:
        """Whether the service draws."""
        return self.overlay

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the API."""
        return {
            "prompts": [prompt.to_json() for prompt in cast("tuple[Prompt, ...]", self.prompts)],
            "model": self.model,
            "format": "logits" if self.logits else None,
            "overlay": self.overlay,
            "input_size": self.input_size,
            "padding": self.padding,
        }


@dataclass(frozen=True, kw_only=True)
class Semantic(Request[SemanticMap]):
    """The class of every pixel; see `Client.semantic`."""

    operation = "semantic"
    result_type = SemanticMap

    model: str | None = None
    overlay: bool = False


@dataclass(frozen=True, kw_only=True)
class Inspect(Request[Inspection]):
    """Every fruit, how much of it is infected, and its grade; see `Client.inspect`.

    Attributes:
        finder: what finds the fruit; None for both where a detector is loaded, else the U-Net.
        detector: name of a detector in the catalogue; None for the service's default.
        track: for a stream over gRPC: follow fruit from frame to frame, and answer verdicts on fruit that has left
            ("leaving"), or also those so far on fruit in view ("all").

    Raises:
        InvalidArgument: an option is of another type or value.
    """

    operation = "inspect"
    result_type = Inspection
    streams = True
    takes_frame = True

    mode: Mode = "auto"
    model: str | None = None
    sam_model: str | None = None
    grades: Mapping[str, float] | None = None
    overlay: bool = False
    finder: FruitFinder | None = None
    detector: str | None = None
    track: Track | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grades is not None:
            object.__setattr__(self, "grades", _check_grades(self.grades))

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the API."""
        grades = (self.grades or {}).items()
        limits = [{"grade": name, "max_infected_fraction": limit} for name, limit in grades]
        fields = super().to_json() | {"grades": limits or None}
        del fields["track"]  # a setting of the stream
        return fields


@dataclass(frozen=True, kw_only=True)
class Detect(Request[Detections]):
    """Boxes of objects of known classes; see `Client.detect`.

    Raises:
        InvalidArgument: an option is of another type or value.
    """

    operation = "detect"
    result_type = Detections

    classes: Sequence[str] | None = None
    model: str | None = None
    score_threshold: float | None = None
    nms_threshold: float | None = None
    max_detections: int | None = None
    overlay: bool = False


@dataclass(frozen=True, kw_only=True)
class FindInstances(Request[Instances]):
    """Masks of what a detector finds; see `Client.instances`.

    Raises:
        InvalidArgument: an option is of another type or value.
    """

    operation = "instances"
    result_type = Instances

    classes: Sequence[str] | None = None
    model: str | None = None
    sam_model: str | None = None
    score_threshold: float | None = None
    nms_threshold: float | None = None
    max_instances: int | None = None
    overlay: bool = False
    input_size: InputSize | None = None
    padding: Padding | None = None


@dataclass(frozen=True)
class FindText(Request[Instances]):
    """Masks of what a text names; see `Client.text`.

    Raises:
        MalformedPrompt, InvalidArgument: the points cannot be used, or an option is of another type or value.
    """

    operation = "text"
    result_type = Instances

    text: str
    _: KW_ONLY
    points: Sequence[Point] = ()
    model: str | None = None
    sam_model: str | None = None
    score_threshold: float | None = None
    nms_threshold: float | None = None
    max_instances: int | None = None
    overlay: bool = False
    input_size: InputSize | None = None
    padding: Padding | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.text(self.text, "text", longest=_LONGEST_TEXT)
        points = tuple(self.points)
        if not all(isinstance(point, Point) for point in points):
            raise InvalidArgument(f"points must be of Point(x, y, label), got {checks.shown(self.points)}.")
        object.__setattr__(self, "points", points)

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the API."""
        points = [[point.x, point.y] for point in self.points]
        labels = [point.label for point in self.points]
        return super().to_json() | {"points": points or None, "labels": labels or None}


@dataclass(frozen=True, kw_only=True)
class Embed(Request[Embedding]):
    """Encode an image once, to prompt it often; see `Client.embed`."""

    operation = "embed"
    result_type = Embedding

    model: str | None = None
    input_size: InputSize | None = None
    padding: Padding | None = None


@dataclass(frozen=True, kw_only=True)
class Automatic(Request[Proposals]):
    """Masks of everything in an image; see `Client.automatic`.

    Raises:
        InvalidArgument: an option is of another type or out of range.
    """

    operation = "automatic"
    result_type = Proposals
    by_id = True

    preset: Preset = "full"
    points_per_side: int | None = None
    crop_layers: int = 0
    pred_iou_threshold: float | None = None
    stability_score_threshold: float | None = None
    box_nms_threshold: float | None = None
    mask_nms_threshold: float | None = None
    min_area: int = 0
    max_area: int | None = None
    min_side: int = 0
    max_side: int | None = None
    max_masks: int | None = None
    model: str | None = None
    overlay: bool = False
    input_size: InputSize | None = None
    padding: Padding | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (low, high) in _WHOLE.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, checks.whole(value, name, low=low, high=high))
        for name in _SHARES:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, checks.number(value, name, low=0, high=1))

    @property
    def needs_pixels(self) -> bool:
        """Whether the service draws, or encodes parts of the image."""
        return self.overlay or self.crop_layers > 0

    def parse_progress(self, body: Mapping[str, Any], size: tuple[int, int]) -> Progress:
        """Read what has changed; see `parse`."""
        return read_progress(body, size)


@dataclass(frozen=True, kw_only=True)
class Edges(Request[EdgeMap]):
    """Edges of everything in an image; see `Client.edges`.

    Raises:
        InvalidArgument: an option is of another type or out of range.
    """

    operation = "edges"
    result_type = EdgeMap
    by_id = True

    points_per_side: int | None = None
    box_nms_threshold: float | None = None
    thick: bool = False
    depth: EdgeDepth = "8"
    model: str | None = None
    input_size: InputSize | None = None
    padding: Padding | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points_per_side is not None:
            checks.whole(self.points_per_side, "points_per_side", low=1, high=_MOST_PER_SIDE)
        if self.box_nms_threshold is not None:
            checks.number(self.box_nms_threshold, "box_nms_threshold", low=0, high=1)


@dataclass(frozen=True)
class ListModels(Request["tuple[Model, ...]"]):
    """The models of the catalogue, loaded ones first."""

    operation = "models"
    needs_image = False

    def parse(self, body: Mapping[str, Any]) -> tuple[Model, ...]:
        """Read the result."""
        return read_models(body)


@dataclass(frozen=True)
class Ready(Request[bool]):
    """Whether models are loaded and warmed up; the transports answer this by status, not by a body."""

    operation = "ready"
    needs_image = False


def _check_classes(classes: Any) -> tuple[str, ...]:
    if isinstance(classes, str) or not isinstance(classes, Sequence) or len(classes) > _MOST_CLASSES:
        raise InvalidArgument(
            f'classes must be at most {_MOST_CLASSES} names, as ["orange", "apple"], got {checks.shown(classes)}.'
        )
    return tuple(checks.text(each, "a class", longest=_LONGEST_CLASS) for each in classes)


def _check_grades(grades: Any) -> dict[str, float]:
    if not isinstance(grades, Mapping) or len(grades) > _MOST_GRADES:
        raise InvalidArgument(
            f'grades must map at most {_MOST_GRADES} names to infected fractions, as {{"A": 0.01, "B": 0.05}}, '
            f"got {checks.shown(grades)}."
        )
    return {
        checks.text(name, "a grade's name", longest=_LONGEST_GRADE): checks.number(
            limit, f"the infected fraction of grade {checks.shown(name)}", low=0, high=1
        )
        for name, limit in grades.items()
    }


_MOST_PER_SIDE: Final = 128
_MOST_PIXELS: Final = (1 << 31) - 1
_WHOLE: Final[Mapping[str, tuple[int, int]]] = {
    "points_per_side": (1, _MOST_PER_SIDE),
    "crop_layers": (0, 2),
    "min_area": (0, _MOST_PIXELS),
    "max_area": (0, _MOST_PIXELS),
    "min_side": (0, _MOST_PIXELS),
    "max_side": (0, _MOST_PIXELS),
    "max_masks": (1, 1000),
}
"""Least and largest values of `Automatic`'s options."""

_SHARES: Final = ("pred_iou_threshold", "stability_score_threshold", "box_nms_threshold", "mask_nms_threshold")

_CHOICES: Final[Mapping[str, tuple[object, ...]]] = {
    "preset": get_args(Preset),
    "depth": get_args(EdgeDepth),
    "mode": get_args(Mode),
    "input_size": get_args(InputSize),
    "padding": get_args(Padding),
    "track": get_args(Track),
    "finder": get_args(FruitFinder),
}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """An image from a camera, with its identifiers.

    Attributes:
        image: as for `Client.inspect`.
        frame_id: the camera's, at most 128 characters; a stream numbers frames that have none.
        trigger_id: of the trigger, at most 128 characters.
        captured_at_ns: nanoseconds on the camera's clock, at least 0; if that clock is Unix time in step with this
            machine's (PTP, NTP), or the stream is given the camera's clock, deadlines count from this time.
    """

    image: ImageSource
    frame_id: str | None = None
    trigger_id: str | None = None
    captured_at_ns: int | None = None

    @property
    def info(self) -> FrameInfo:
        """The identifiers.

        Raises:
            InvalidArgument: an id is not a string of at most 128 characters, or the time not a whole number from 0.
        """
        return FrameInfo(self.frame_id, self.trigger_id, self.captured_at_ns)


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T_co]):
    """A request with its image.

    Attributes:
        request: the operation and its options.
        image: to send, or None.
        image_id: of an image that the service knows, or None. Where both are given the id is sent, and the image only
            after the service has said that it does not know the id.
        frame: identifiers of a camera's frame, for requests that take them.
    """

    request: Request[T_co]
    image: EncodedImage | None = None
    image_id: str | None = None
    frame: FrameInfo = field(default_factory=FrameInfo)

    @classmethod
    def of(cls, request: Request[T], image: ImageLike | None, frame: FrameInfo | None = None) -> Call[T]:
        """Make the call for a request.

        Args:
            request: the operation and its options.
            image: the image; or an `Embedding`, or the `ImageInfo` of an earlier result, for one that was sent before.
            frame: identifiers of a camera's frame.

        Raises:
            UnreadableImage: the image cannot be read.
            InvalidArgument: there is no image where one is needed, or only its id where the pixels are needed.
        """
        if not isinstance(request, Request):
            raise InvalidArgument(f"request must be an object as Inspect() or Segment(…), got {checks.shown(request)}.")
        if frame is not None and not isinstance(frame, FrameInfo):
            raise InvalidArgument(f"frame must be a FrameInfo, got {checks.shown(frame)}.")
        if not request.needs_image:
            return Call(request=request)
        name, frame = type(request).__name__, frame or FrameInfo()
        if image is None:
            raise InvalidArgument(f"{name} needs an image.")
        if not isinstance(image, (Embedding, ImageInfo)):
            return Call(request=request, image=encode_image(image), frame=frame)
        known, source = (image.image, image.source) if isinstance(image, Embedding) else (image, None)
        # An overlay needs the pixels, which the service does not keep.
        if request.by_id and not (request.needs_pixels and source):
            return Call(request=request, image=source, image_id=known.id, frame=frame)
        if source is None:
            raise InvalidArgument(f"{name} needs the image itself, not only its id.")
        return Call(request=request, image=source, frame=frame)

    def to_json(self) -> dict[str, Any]:
        """Return the fields of the API without the image, and without those that the service is to choose.

        Left out, they cannot be unknown to an older service.
        """
        fields = self.request.to_json()
        if self.request.takes_frame:
            fields |= self.frame.to_json()
        return {name: value for name, value in fields.items() if value is not None and value is not False}

    def image_field(self) -> tuple[str, bytes | str]:
        """Return name and value of the field that holds the image.

        Raises:
            InvalidArgument: there is neither an image nor an id.
        """
        if self.image_id is not None:
            return "image_id", self.image_id
        if self.image is None:
            raise InvalidArgument(f"{type(self.request).__name__} needs an image or the id of one.")
        return "image", self.image.data

    def finish(self, result: T) -> T:
        """Return the result; an `Embedding` keeps its image, to be sent again if the service forgets it."""
        return replace(result, source=self.image) if isinstance(result, Embedding) else result


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How a call is sent this time.

    Attributes:
        timeout: seconds until the answer must have arrived.
        connect: seconds in which a connection must be made.
        deadline: seconds from now after which the answer is too late for the caller, or None; sent to the service.
        urgency: RFC 9218, 0 the most urgent to 7 the least, or None.
        request_id: the same for every attempt of a call.
    """

    timeout: float
    connect: float
    deadline: float | None = None
    urgency: int | None = None
    request_id: str = ""

    def headers(self) -> dict[str, str]:
        """Return what the service is sent beside the request, in HTTP as headers and in gRPC as metadata."""
        headers = {"x-request-id": self.request_id} if self.request_id else {}
        if self.deadline is not None:
            headers["x-deadline-ms"] = f"{self.deadline * 1000:.3f}"
        if self.urgency is not None:
            headers["priority"] = f"u={self.urgency}"
        return headers
