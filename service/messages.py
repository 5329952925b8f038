"""What doors hand to the pipeline, and what they get back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from models.catalog import CatalogueEntry
from models.inspection import Grade
from models.letterbox import Letterbox, Padding
from models.masks import PixelBox, Rle
from models.types import Mask, PixelClass, Prompt, SemanticMap
from models.unet.letterbox import UNetLetterbox
from models.unet.postprocess import Region
from service.formats import EncodedMask, MaskFormat, Png, Polygons, SemanticFormat
from service.work import DEFAULT_URGENCY


@dataclass(frozen=True, slots=True)
class When:
    """Until when an answer is wanted.

    Attributes:
        within: seconds from the request's arrival until it is too late, or None.
        urgency: RFC 9218, 0 the most urgent to 7 the least.
    """

    within: float | None = None
    urgency: int = DEFAULT_URGENCY


InputSize = Literal[1024, 768, 512, "auto"]


@dataclass(frozen=True, slots=True)
class InputChoice:
    """What the encoder shall see of an image; None for the setting, or what the model can.

    Attributes:
        size: longest side in pixels; `auto` takes the largest whose learned time meets the deadline.
        padding: `square` is the reference, `none` spares the encoder what is only padding.
    """

    size: InputSize | None = None
    padding: Padding | None = None


@dataclass(frozen=True, slots=True)
class SegmentRequest:
    """Prompts on an image.

    Attributes:
        prompts: what to segment.
        data: an encoded image, or None.
        image_id: of an image that was sent before, or None; exactly one of the two.
        model: catalogue name, or None for the default.
        format: of the masks; None leaves them as they are.
        overlay: also draw the masks into the image; needs `data`.
        input: what the encoder shall see.
        when: until when.
    """

    prompts: Sequence[Prompt]
    data: bytes | None = None
    image_id: str | None = None
    model: str | None = None
    format: MaskFormat | None = "rle"
    overlay: bool = False
    input: InputChoice = field(default_factory=InputChoice)
    when: When = field(default_factory=When)


@dataclass(frozen=True, slots=True)
class SemanticRequest:
    """An image of which every pixel is to be told.

    Attributes:
        data: an encoded image.
        model: catalogue name of a U-Net, or None for the default.
        format: a mask per class, or one PNG of all classes; None for neither.
        overlay: also draw the classes into the image.
        when: until when.
    """

    data: bytes
    model: str | None = None
    format: SemanticFormat | None = "rle"
    overlay: bool = False
    when: When = field(default_factory=When)


InspectMode = Literal["fast", "accurate"]


@dataclass(frozen=True, slots=True)
class Capture:
    """What a camera says of a frame; kept only to be told again.

    Attributes:
        frame_id: the camera's.
        trigger_id: of what let the camera expose.
        captured_at_ns: nanoseconds on the camera's clock, at least 0.
    """

    frame_id: str | None = None
    trigger_id: str | None = None
    captured_at_ns: int | None = None


@dataclass(frozen=True, slots=True)
class InspectRequest:
    """An image whose fruits are to be judged.

    Attributes:
        data: an encoded image.
        model: catalogue name of the U-Net that finds fruits, or None for the default.
        sam_model: of the SAM that draws their outlines, or None for the default.
        mode: `fast` is the U-Net alone, `accurate` lets the SAM draw the outlines, `auto` is accurate where that is in
            time.
        format: of the masks.
        grades: rising, or None for the settings'.
        overlay: also draw the fruits into the image.
        capture: told again in the answer.
        when: until when.
    """

    data: bytes
    model: str | None = None
    sam_model: str | None = None
    mode: InspectMode | Literal["auto"] = "auto"
    format: SemanticFormat = "rle"
    grades: tuple[Grade, ...] | None = None
    overlay: bool = False
    capture: Capture = field(default_factory=Capture)
    when: When = field(default_factory=When)


@dataclass(slots=True)
class Timings:
    """Seconds that the parts of a request took, 0 for parts that it did not have.

    The queue is time spent waiting for the device; encode and prompt are a SAM's work on it, infer is a U-Net's.
    """

    decode: float = 0.0
    queue: float = 0.0
    encode: float = 0.0
    prompt: float = 0.0
    infer: float = 0.0
    postprocess: float = 0.0
    total: float = 0.0


@dataclass(slots=True)
class Together:
    """How many items ran in the batches that this request's work was in, its own included; 0 where none of it ran.

    Attributes:
        encode: images in the encoder's batch.
        prompt: prompts in the largest of the mask decoder's batches.
        infer: images in the U-Net's batch.
    """

    encode: int = 0
    prompt: int = 0
    infer: int = 0


@dataclass(frozen=True, slots=True)
class MaskResult:
    """A mask with its figures, and its encoding where one was asked for."""

    mask: Mask
    encoded: EncodedMask | None


@dataclass(frozen=True, slots=True)
class Embedded:
    """The answer to an embed request."""

    image_id: str
    frame: Letterbox
    model: CatalogueEntry
    timings: Timings
    together: Together


@dataclass(frozen=True, slots=True)
class Segmented:
    """The answer to a segment request.

    Attributes:
        image_id: to prompt again.
        frame: how the image lay in the model's square.
        model: that answered.
        results: for each prompt its masks, best first.
        overlay: a PNG, where it was asked for.
        degraded: the input size was left open, and a smaller one than the largest was taken to meet the deadline.
        timings: where the time went.
        together: sizes of the batches.
    """

    image_id: str
    frame: Letterbox
    model: CatalogueEntry
    results: Sequence[Sequence[MaskResult]]
    overlay: bytes | None
    degraded: bool
    timings: Timings
    together: Together


@dataclass(frozen=True, slots=True)
class ClassResult:
    """Where a class is: its mask, where one for each class was asked for, and its pixels' number."""

    pixel_class: PixelClass
    encoded: Rle | Polygons | None
    area: int


@dataclass(frozen=True, slots=True)
class Classified:
    """The answer to a semantic request.

    Attributes:
        image_id: hash of the image's bytes.
        frame: how the image lay in what the network saw.
        model: that answered.
        classes: healthy and infected, also where no pixel is.
        pixels: class of every pixel, uint8 (height, width) of the original image.
        class_map: the same as an indexed PNG of `PixelClass`, where that was asked for.
        objects: connected regions.
        overlay: a PNG, where it was asked for.
        timings: where the time went.
        together: sizes of the batches.
    """

    image_id: str
    frame: UNetLetterbox
    model: CatalogueEntry
    classes: Sequence[ClassResult]
    pixels: SemanticMap
    class_map: bytes | None
    objects: Sequence[Region]
    overlay: bytes | None
    timings: Timings
    together: Together


@dataclass(frozen=True, slots=True)
class FruitResult:
    """One fruit as a caller asked for it; see `models.inspection.Fruit`.

    Attributes:
        id: 1 and up from left to right.
        infected_mask: of the image's size, as `mask` is.
    """

    id: int
    box: PixelBox
    area: int
    mask: Rle | Png | Polygons
    infected_mask: Rle | Png | Polygons
    infected_fraction: float
    pixel_class: PixelClass
    confidence: float
    grade: str
    truncated: bool
    refined: bool


@dataclass(frozen=True, slots=True)
class Drawer:
    """The SAM that drew outlines, and how the image lay in its square."""

    model: CatalogueEntry
    frame: Letterbox


@dataclass(frozen=True, slots=True)
class Inspected:
    """The answer to an inspect request.

    Attributes:
        image_id: hash of the image's bytes.
        frame: how the image lay in what the U-Net saw.
        model: the U-Net that answered.
        sam: who drew the outlines; None where the U-Net did.
        fruits: in the order of their ids.
        degraded: mode `auto` gave less than it would have without the deadline or the load.
        reason: why mode `auto` gave less than the best, or None.
        capture: the caller's.
        overlay: a PNG, where it was asked for.
        timings: where the time went.
        together: sizes of the batches.
    """

    image_id: str
    frame: UNetLetterbox
    model: CatalogueEntry
    sam: Drawer | None
    fruits: Sequence[FruitResult]
    degraded: bool
    reason: str | None
    capture: Capture
    overlay: bytes | None
    timings: Timings
    together: Together

    @property
    def mode(self) -> InspectMode:
        """The mode that was used."""
        return "fast" if self.sam is None else "accurate"
