"""What can be asked, whatever way it travels: an `Ask` says what, a `Call` adds the picture.

Transports turn calls into messages and messages into the results of `pomona.results`; nothing here knows HTTP or gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

from pomona.facts import Capture
from pomona.images import ImageSource, Picture
from pomona.shapes import Prompt, Prompts, prompts_of

if TYPE_CHECKING:
    from pomona.results import Embedding, Inspection, Model, Segmentation, SemanticMap  # noqa: F401 (in quotes below)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MaskFormat: TypeAlias = Literal["rle", "png", "polygons", "logits"]
OutlineFormat: TypeAlias = Literal["rle", "png", "polygons"]
InputSize: TypeAlias = Literal[1024, 768, 512, "auto"]
Padding: TypeAlias = Literal["none", "square"]
Mode: TypeAlias = Literal["fast", "accurate", "auto"]


class Ask(Generic[T_co]):
    """What is asked; the parameter is what is answered."""


@dataclass(frozen=True)
class Segment(Ask["Segmentation"]):
    """Masks for prompts.

    Attributes:
        prompts: a shape, a list of shapes that mean one thing, or a list with an entry for each thing.
        model: catalogue name of a SAM, or None for the default.
        multimask: three masks or one, for what is no `Prompt` yet.
        format: how masks travel.
        overlay: also let the service draw the masks into the picture.
        input_size: what the encoder sees, longest side in pixels; `auto` by the deadline; None for the service's.
        padding: how the picture is padded for the encoder, None for the service's choice.
        things: the prompts, read.

    Raises:
        NoPrompt, MalformedPrompt, InvalidArgument: by what is wrong with the prompts.
    """

    prompts: Prompts
    _: KW_ONLY
    model: str | None = None
    multimask: bool = True
    format: MaskFormat = "rle"
    overlay: bool = False
    input_size: InputSize | None = None
    padding: Padding | None = None
    things: tuple[Prompt, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "things", prompts_of(self.prompts, multimask=self.multimask))


@dataclass(frozen=True, kw_only=True)
class Semantic(Ask["SemanticMap"]):
    """Which pixels are healthy fruit, which infected.

    Attributes:
        model: catalogue name of a U-Net, or None for the default.
        format: a mask per class, or with `png` one picture of all classes.
        overlay: also let the service draw the classes into the picture.
    """

    model: str | None = None
    format: OutlineFormat = "rle"
    overlay: bool = False


@dataclass(frozen=True, kw_only=True)
class Inspect(Ask["Inspection"]):
    """Every fruit, how much of it is infected, and its grade.

    Attributes:
        mode: `fast` is the U-Net alone, `accurate` lets a SAM draw the outlines, `auto` is accurate where that is in
            time.
        model: catalogue name of the U-Net, or None for the default.
        sam_model: catalogue name of the SAM, or None for the default.
        grades: the most that may be infected for each grade, from the best to the worst, rising; None for the
            service's.
        format: how masks travel.
        overlay: also let the service draw the fruits into the picture.
    """

    mode: Mode = "auto"
    model: str | None = None
    sam_model: str | None = None
    grades: Mapping[str, float] | None = None
    format: OutlineFormat = "rle"
    overlay: bool = False


@dataclass(frozen=True, kw_only=True)
class Embed(Ask["Embedding"]):
    """Encode a picture once, to prompt it often.

    Attributes:
        model: catalogue name of a SAM, or None for the default.
        input_size: as in `Segment`.
        padding: as in `Segment`.
    """

    model: str | None = None
    input_size: InputSize | None = None
    padding: Padding | None = None


@dataclass(frozen=True)
class ListModels(Ask["tuple[Model, ...]"]):
    """What is loaded, and what could be."""


@dataclass(frozen=True)
class Ready(Ask[bool]):
    """Whether models are loaded and warmed up."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """An image of a camera, with what the camera says of it.

    Attributes:
        image: the picture.
        frame_id: the camera's, at most 128 characters; a stream counts frames that have none.
        trigger_id: of what let the camera expose, at most 128 characters.
        captured_at_ns: nanoseconds on the camera's clock, at least 0.
    """

    image: ImageSource
    frame_id: str | None = None
    trigger_id: str | None = None
    captured_at_ns: int | None = None


@dataclass(frozen=True, kw_only=True)
class Call(Generic[T_co]):
    """One question in full.

    Attributes:
        ask: what is asked.
        picture: to send, or None.
        image_id: of a picture that the service knows, or None; where both are here, the id is sent and the picture
            only if the service has forgotten it.
        capture: what the camera says, for `Inspect`.
    """

    ask: Ask[T_co]
    picture: Picture | None = None
    image_id: str | None = None
    capture: Capture = field(default_factory=Capture)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """How a call is sent this time.

    Attributes:
        seconds: until its answer must be here.
        connect: seconds in which a connection must be made.
        deadline: seconds from now after which the answer is too late for the caller, or None; the service is told.
        urgency: RFC 9218, 0 the most urgent to 7 the least, or None.
        request_id: the same for every attempt of a call.
    """

    seconds: float
    connect: float
    deadline: float | None = None
    urgency: int | None = None
    request_id: str = ""
