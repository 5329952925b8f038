"""Results of requests. All are frozen; `pomona._reading` reads them from answers, by the types of their fields."""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pomona import _checks as checks
from pomona import exports
from pomona.errors import InvalidArgument
from pomona.exports import LabelledMask
from pomona.images import EncodedImage, ImageSource, open_image, open_png, save_image
from pomona.masks import Mask, PixelBox, ScoredMask
from pomona.revisions import Revision

if TYPE_CHECKING:
    import supervision

FruitClass: TypeAlias = Literal["healthy", "infected"]

_LONGEST_ID: Final = 128
_LATEST_NS: Final = (1 << 63) - 1
_LARGEST_INDEX: Final = 255


@dataclass(frozen=True)
class ImageInfo:
    """The image of a result, after EXIF orientation.

    Attributes:
        id: hash of the bytes that were sent; `segment` takes this object instead of the image.
        width: pixels.
        height: pixels.
    """

    id: str
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


@dataclass(frozen=True)
class FrameInfo:
    """Identifiers of a camera's frame, returned as they were sent.

    Attributes:
        frame_id: the camera's.
        trigger_id: of the trigger.
        captured_at_ns: nanoseconds on the camera's clock.

    Raises:
        InvalidArgument: an id is not a string of at most 128 characters, or the time not a whole number from 0 to
            2^63 - 1.
    """

    frame_id: str | None = None
    trigger_id: str | None = None
    captured_at_ns: int | None = None

    def __post_init__(self) -> None:
        for name in ("frame_id", "trigger_id"):
            if getattr(self, name) is not None:
                checks.text(getattr(self, name), name, longest=_LONGEST_ID)
        if self.captured_at_ns is not None:
            captured = checks.whole(self.captured_at_ns, "captured_at_ns", low=0, high=_LATEST_NS)
            object.__setattr__(self, "captured_at_ns", captured)

    def to_json(self) -> dict[str, Any]:
        """Return the object of the API."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True)
class ModelUsed:
    """A model that answered.

    Attributes:
        name: in the catalogue.
        revision: first 12 hex digits of the checkpoint's SHA-256.
        input_size: longest side in pixels of a SAM's input, or (width, height) of a U-Net's or a detector's.
        padding: how the image was padded for a SAM's encoder; None for others.
    """

    name: str
    revision: str
    input_size: int | tuple[int, int]
    padding: str | None = None


@dataclass(frozen=True)
class Timings:
    """Milliseconds in the service; 0 for parts that the request did not have."""

    decode: float = 0.0
    queue: float = 0.0
    encode: float = 0.0
    prompt: float = 0.0
    infer: float = 0.0
    postprocess: float = 0.0
    total: float = 0.0


@dataclass(frozen=True)
class Batch:
    """How many items ran together on the device, this request's included; 0 where none of its own ran."""

    encode: int = 0
    prompt: int = 0
    infer: int = 0


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every result about an image has."""

    request_id: str
    image: ImageInfo
    batch: Batch = field(default_factory=Batch)
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, kw_only=True)
class MaskResult(Result, ABC):
    """Results with masks: they can be drawn, exported and saved.

    Attributes:
        overlay_png: the image with the masks as the service drew them, where requested.
    """

    overlay_png: bytes | None = field(default=None, repr=False)

    @abstractmethod
    def labelled_masks(self) -> tuple[LabelledMask, ...]:
        """Return the masks that are drawn and exported."""

    def overlay(self, image: ImageSource | None = None) -> PIL.Image.Image:
        """Return the image with the masks drawn in.

        Args:
            image: that was sent; the masks are drawn here. None for the service's drawing, if `overlay=True` was given.

        Raises:
            InvalidArgument: there is neither, or the image has another size.
            UnreadableImage: the image cannot be read.
        """
        if image is not None:
            return exports.draw(open_image(image), self.labelled_masks())
        if self.overlay_png is None:
            raise InvalidArgument("overlay() needs the image, or a request with overlay=True for the service to draw.")
        return open_png(self.overlay_png).convert("RGB")

    def to_coco(self, *, file_name: str = "", image_number: int = 1) -> dict[str, Any]:
        """Return COCO's instances JSON of this one image.

        Args:
            file_name: of the image.
            image_number: its `id` in the JSON, at least 0; annotations count from `image_number * 10000 + 1`.
        """
        checks.text(file_name, "file_name")
        checks.whole(image_number, "image_number", low=0)
        masks, size = self.labelled_masks(), self.image.size
        return exports.to_coco(masks, size, file_name=file_name, image_number=image_number)

    def to_label_studio(self, *, image: str, from_name: str = "label", to_name: str = "image") -> dict[str, Any]:
        """Return a Label Studio task with the masks as a prediction, in its own encoding of brush masks.

        Args:
            image: where Label Studio finds the image, as in its `data`.
            from_name: of the project's BrushLabels tag.
            to_name: of its Image tag.
        """
        for name, value in (("image", image), ("from_name", from_name), ("to_name", to_name)):
            checks.text(value, name)
        masks, size = self.labelled_masks(), self.image.size
        return exports.to_label_studio(masks, size, image=image, from_name=from_name, to_name=to_name)

    def to_supervision(self) -> supervision.Detections:
        """Return `supervision.Detections` with masks, scores and class ids; labels are in `data["class_name"]`.

        Raises:
            MissingPackage: supervision is not installed.
        """
        return exports.to_supervision(self.labelled_masks())

    def index_map(self) -> NDArray[np.uint16]:
        """Return uint16 (height, width): 0 outside all masks, else the mask's number, from 1 in order."""
        pixels = np.zeros(self.image.size, np.uint16)
        for number, labelled in enumerate(self.labelled_masks(), start=1):
            pixels[labelled.mask.array] = number
        return pixels

    def index_image(self) -> PIL.Image.Image:
        """Return the `index_map` as an image whose palette has a colour for each number, so that viewers show it.

        Its pixels are the numbers (mode P); above 255 masks 16-bit grey, which viewers show nearly black.
        """
        pixels = self.index_map()
        if pixels.max(initial=0) > _LARGEST_INDEX:
            return PIL.Image.fromarray(pixels)
        image = PIL.Image.fromarray(pixels.astype(np.uint8))
        image.putpalette(exports.index_palette())
        return image

    def save(self, path: str | PathLike[str]) -> None:
        """Write COCO's JSON for a name that ends in .json, else the `index_image`.

        Raises:
            InvalidArgument: the name has no known extension, or the file cannot be written.
        """
        target = Path(checks.path(path))
        if target.suffix.lower() != ".json":
            save_image(self.index_image(), target)
            return
        try:
            target.write_text(json.dumps(self.to_coco()), "utf-8")
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{path} cannot be written: {error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the drawing as JSON has it; masks as RLE."""
        plain: dict[str, Any] = _plain(self)
        return plain


@dataclass(frozen=True, kw_only=True)
class Segmentation(MaskResult):
    """Masks for prompts.

    Attributes:
        model: that answered.
        results: for each prompt its masks, best first.
        degraded: `input_size="auto"` took less than the largest size to meet the deadline.
    """

    model: ModelUsed
    results: tuple[tuple[ScoredMask, ...], ...]
    degraded: bool = False

    @property
    def masks(self) -> tuple[ScoredMask, ...]:
        """All masks: those of the first prompt, best first, then those of the next."""
        return tuple(mask for masks in self.results for mask in masks)

    @property
    def best(self) -> tuple[ScoredMask, ...]:
        """The best mask of each prompt."""
        return tuple(masks[0] for masks in self.results)

    def labelled_masks(self) -> tuple[LabelledMask, ...]:
        """Return the best mask of each prompt."""
        return tuple(LabelledMask(best.mask, best.box, best.area, "object", best.score, {}) for best in self.best)


@dataclass(frozen=True)
class Fruit:
    """One fruit.

    Attributes:
        id: from 1, by the centre of the box from left to right.
        box: tight and half-open.
        area: pixels in the mask.
        mask: of the image's size; no pixel is in two masks.
        infected_mask: the infected part.
        infected_fraction: infected pixels / pixels of the fruit, 0 to 1.
        infected_fraction_interval: its least and largest value, 0 to 1, as calibrated on 90 % of the model's validation
            fruits; None where the model was not calibrated.
        fruit_class: healthy or infected, by the service's threshold.
        confidence: mean probability of fruit over the fruit, 0 to 1.
        grade: name of the grade, or `reject`.
        grade_certain: the whole interval has this grade; False without an interval.
        truncated: the mask touches the image's edge.
        refined: a SAM outlined the fruit.
    """

    id: int
    box: PixelBox
    area: int
    mask: Mask
    infected_mask: Mask
    infected_fraction: float
    fruit_class: FruitClass
    confidence: float
    grade: str
    truncated: bool = False
    refined: bool = False
    infected_fraction_interval: tuple[float, float] | None = None
    grade_certain: bool = False

    @property
    def array(self) -> NDArray[np.bool_]:
        """The pixels as bool (height, width) of the image's size, decoded at first use."""
        return self.mask.array

    def save(self, path: str | PathLike[str]) -> None:
        """Write the mask as an image, white inside the fruit; see `Mask.save`."""
        self.mask.save(path)


@dataclass(frozen=True)
class Verdict:
    """One fruit, judged from all frames of a stream that showed it.

    Attributes:
        track_id: from 1; the same in all frames of the stream.
        views: frames that showed it, at least 2.
        infected_fraction: what three in ten of the views that are whole and sure reach, 0 to 1.
        infected_fraction_max: the largest of all views, 0 to 1.
        infected_fraction_mean: of all views, weighted by visible area, 0 to 1.
        grade: by `infected_fraction`.
        first_frame: that showed it first.
        last_frame: that showed it last.
        best_frame: with the largest view that no edge of the image cuts.
        best_box: half-open box of the fruit in `best_frame`.
        left: whether it has left; else it is in view, and more views may follow.
    """

    track_id: int
    views: int
    infected_fraction: float
    infected_fraction_max: float
    infected_fraction_mean: float
    grade: str
    first_frame: FrameInfo
    last_frame: FrameInfo
    best_frame: FrameInfo
    best_box: PixelBox
    left: bool


@dataclass(frozen=True, kw_only=True)
class Inspection(MaskResult):
    """Every fruit of an image.

    Attributes:
        fruits: from left to right.
        unet: that found the fruit.
        sam: that outlined the fruit; None where the U-Net did.
        detector: that found fruit too; None where the U-Net alone did.
        mode: that was used.
        degraded: mode `auto` gave less than without the deadline or the load.
        reason: why, or None.
        dismissed: number of fruits of which the U-Net was unsure and that the SAM did not see; not among `fruits`.
        frame: identifiers of the frame, as they were sent.
        track_ids: of a stream that follows fruit, one per fruit, in their order; 0 for what is not followed.
        verdicts: that this frame of such a stream brings.
    """

    fruits: tuple[Fruit, ...]
    unet: ModelUsed
    mode: Literal["fast", "accurate"]
    sam: ModelUsed | None = None
    detector: ModelUsed | None = None
    degraded: bool = False
    reason: str | None = None
    dismissed: int = 0
    frame: FrameInfo = field(default_factory=FrameInfo)
    track_ids: tuple[int, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    def labelled_masks(self) -> tuple[LabelledMask, ...]:
        """Return each fruit, labelled with its class."""
        return tuple(
            LabelledMask(
                fruit.mask,
                fruit.box,
                fruit.area,
                fruit.fruit_class,
                fruit.confidence,
                {"grade": fruit.grade, "infected_fraction": fruit.infected_fraction},
                fruit.infected_mask,
            )
            for fruit in self.fruits
        )


@dataclass(frozen=True)
class Region:
    """A connected region of fruit; fruits that touch are one region.

    Attributes:
        region_class: healthy or infected.
        box: half-open, to about one cell of the network's input.
        area: pixels, to about one cell of the network's input.
        score: mean probability of fruit in the region, 0 to 1.
    """

    region_class: FruitClass
    box: PixelBox
    area: int
    score: float


@dataclass(frozen=True, kw_only=True)
class SemanticMap(MaskResult):
    """The class of every pixel.

    Attributes:
        model: that answered.
        healthy: pixels of healthy fruit.
        infected: pixels of infected fruit.
        healthy_area: number of pixels.
        infected_area: number of pixels.
        objects: connected regions of fruit.
    """

    model: ModelUsed
    healthy: Mask
    infected: Mask
    healthy_area: int
    infected_area: int
    objects: tuple[Region, ...] = ()

    @cached_property
    def array(self) -> NDArray[np.uint8]:
        """Classes as uint8 (height, width): 0 background, 1 healthy, 2 infected."""
        return self.healthy.array + 2 * self.infected.array.astype(np.uint8)

    def labelled_masks(self) -> tuple[LabelledMask, ...]:
        """Return the classes that have pixels; the score is 1, as a class has none."""
        both = (("healthy", self.healthy, self.healthy_area), ("infected", self.infected, self.infected_area))
        return tuple(LabelledMask(mask, mask.box, area, name, 1.0, {}) for name, mask, area in both if area)

    def index_map(self) -> NDArray[np.uint16]:
        """Return the classes as uint16 (height, width): 0 background, 1 healthy, 2 infected."""
        return self.array.astype(np.uint16)


class FloatBox(NamedTuple):
    """A half-open box that a detector found, in pixels of the image: left, top, right, bottom."""

    x0: float
    y0: float
    x1: float
    y1: float


@dataclass(frozen=True)
class Detection:
    """One object that a detector found.

    Attributes:
        class_name: name of its class.
        class_id: index of its class in the detector's output.
        score: probability of an object times that of its class, 0 to 1.
        box: within the image.
    """

    class_name: str
    class_id: int
    score: float
    box: FloatBox


@dataclass(frozen=True, kw_only=True)
class Detections(Result):
    """Every object of an image.

    Attributes:
        model: that answered.
        detections: best first.
        overlay_png: the image with the boxes as the service drew them, where requested.
    """

    model: ModelUsed
    detections: tuple[Detection, ...]
    overlay_png: bytes | None = field(default=None, repr=False)

    def overlay(self) -> PIL.Image.Image:
        """Return the image with the boxes as the service drew them.

        Raises:
            InvalidArgument: the request was without `overlay=True`.
        """
        if self.overlay_png is None:
            raise InvalidArgument("overlay() needs a request with overlay=True for the service to draw.")
        return open_png(self.overlay_png).convert("RGB")

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the drawing as JSON has it."""
        plain: dict[str, Any] = _plain(self)
        return plain


@dataclass(frozen=True)
class Instance:
    """One object that a detector found, with the mask of a SAM.

    Attributes:
        class_name: name of its class.
        class_id: index of its class in the detector's output.
        score: the detector's, of box and class, 0 to 1.
        detected_box: as the detector found it: the SAM's prompt.
        mask: of the image's size.
        mask_score: predicted IoU of the mask, about 0 to 1.
        stability_score: IoU of the masks at thresholds 1 above and 1 below, 0 to 1.
        box: tight and half-open, of the mask.
        area: pixels in the mask.
    """

    class_name: str
    class_id: int
    score: float
    detected_box: FloatBox
    mask: Mask
    mask_score: float
    stability_score: float
    box: PixelBox
    area: int


@dataclass(frozen=True, kw_only=True)
class Instances(MaskResult):
    """Every object that a detector found, with its mask.

    Attributes:
        instances: by the detector's score, best first.
        detector: that found them.
        sam: that outlined them; None where none was found.
        degraded: `input_size="auto"` took less than the largest size to meet the deadline.
        classes: the classes that a text named; empty for other requests.
    """

    instances: tuple[Instance, ...]
    detector: ModelUsed
    sam: ModelUsed | None = None
    degraded: bool = False
    classes: tuple[str, ...] = ()

    def labelled_masks(self) -> tuple[LabelledMask, ...]:
        """Return each object that has pixels, labelled with its class."""
        return tuple(
            LabelledMask(
                each.mask,
                each.box,
                each.area,
                each.class_name,
                each.score,
                {},
                detector_class=each.class_id,
            )
            for each in self.instances
            if each.area
        )


@dataclass(frozen=True, kw_only=True)
class Embedding(Result):
    """An image that the service has encoded; `segment` takes it instead of the image.

    Attributes:
        model: that encoded it.
        source: the image that was sent, to be sent again if the service no longer knows it.
    """

    model: ModelUsed
    source: EncodedImage | None = None

    def without_source(self) -> Embedding:
        """Return the same without the image's bytes; then `UnknownImageId` is raised if the service forgets it."""
        return dataclasses.replace(self, source=None)


@dataclass(frozen=True)
class Model:
    """A model of the catalogue.

    Attributes:
        name: in the catalogue.
        family: `sam` answers `segment` and `embed`, `unet` answers `semantic`; both answer `inspect`. `sam2` answers
            what `sam` does, and `track`. `detector` answers `detect`, and with a SAM `instances` and `text`;
            `grounding` answers `text` with a SAM, whatever it names.
        revision: first 12 hex digits of the checkpoint's SHA-256.
        licence: of the weights.
        loaded: whether it answers here.
        device: where it runs; None where not loaded.
        backend: what executes it; None where not loaded.
        revisions: the active one first, then those beside it; none where not loaded.
    """

    name: str
    family: str
    revision: str
    licence: str
    loaded: bool
    device: str | None = None
    backend: str | None = None
    revisions: tuple[Revision, ...] = ()


def _plain(value: Any) -> Any:
    if isinstance(value, Mask):
        return {"size": list(value.rle.size), "counts": value.rle.counts}
    if dataclasses.is_dataclass(value):
        names = (each.name for each in fields(value) if each.name not in ("overlay_png", "source"))
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
