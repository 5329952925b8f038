"""What answers about a picture have in common: drawing, exporting, saving."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from pomona import exports
from pomona.drawing import draw
from pomona.errors import InvalidArgument
from pomona.facts import Batch, ImageInfo, Labelled, Timings
from pomona.images import ImageSource, open_image
from pomona.masks import Mask, open_png, save_picture

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What all answers about a picture have."""

    request_id: str
    image: ImageInfo
    batch: Batch = field(default_factory=Batch)
    timings: Timings = field(default_factory=Timings)


@dataclass(frozen=True, kw_only=True)
class Drawn(Answer):
    """Answers that show something in the picture.

    Attributes:
        overlay_png: the picture with it drawn in by the service, where that was asked for.
    """

    overlay_png: bytes | None = field(default=None, repr=False)

    def labelled(self) -> tuple[Labelled, ...]:
        """The masks that go into other tools' formats."""
        raise NotImplementedError

    def overlay(self, image: ImageSource | None = None) -> PIL.Image.Image:
        """The picture with what was found drawn in.

        Args:
            image: that was asked about; it is drawn in here. None for what the service drew, where `overlay=True` was
                asked.

        Raises:
            InvalidArgument: neither; or a picture of another size.
            UnreadableImage: the picture cannot be read.
        """
        if image is not None:
            return draw(open_image(image), self.labelled())
        if self.overlay_png is None:
            raise InvalidArgument("Give overlay() the picture, or ask with overlay=True for the service to draw it.")
        return open_png(self.overlay_png).convert("RGB")

    def to_coco(self, *, file_name: str = "", image_number: int = 1) -> dict[str, Any]:
        """COCO's instances JSON of this one picture.

        Args:
            file_name: of the picture.
            image_number: its `id` in the JSON; annotations count from `image_number * 10000 + 1`.
        """
        return exports.coco(self.image, self.labelled(), file_name=file_name, image_number=image_number)

    def to_label_studio(self, *, image: str, from_name: str = "label", to_name: str = "image") -> dict[str, Any]:
        """A Label Studio task with the masks as a prediction, brush masks in Label Studio's own encoding.

        Args:
            image: where Label Studio finds the picture, as in its `data`.
            from_name: of the project's BrushLabels tag.
            to_name: of its Image tag.
        """
        return exports.label_studio(self.image, self.labelled(), image=image, from_name=from_name, to_name=to_name)

    def to_supervision(self) -> supervision.Detections:
        """`supervision.Detections` with masks, scores and class ids; the labels are in `data["class_name"]`.

        Raises:
            MissingPackage: supervision is not installed.
        """
        return exports.to_supervision(self.labelled())

    def index_map(self) -> NDArray[np.uint16]:
        """Pixels as uint16 (height, width): 0 where nothing is, else the number of what is there, from 1 in order."""
        pixels = np.zeros((self.image.height, self.image.width), np.uint16)
        for number, labelled in enumerate(self.labelled(), start=1):
            pixels[labelled.mask.array] = number
        return pixels

    def save(self, path: str | PathLike[str]) -> None:
        """Write what was found: COCO's JSON for a name that ends in .json, else the `index_map` as a picture.

        Raises:
            InvalidArgument: a name of no known format, or a place that cannot be written to.
        """
        if Path(path).suffix.lower() != ".json":
            pixels = self.index_map()
            small = pixels.max(initial=0) < 256
            save_picture(PIL.Image.fromarray(pixels.astype(np.uint8) if small else pixels), path)
            return
        try:
            Path(path).write_text(json.dumps(self.to_coco()), "utf-8")
        except OSError as error:
            raise InvalidArgument(f"{path} cannot be written: {error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Everything but the drawing, in what JSON has; masks as RLE."""
        plain: dict[str, Any] = _plain(self)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Mask):
        return {"size": list(value.rle.size), "counts": value.rle.counts}
    if dataclasses.is_dataclass(value):
        names = (each.name for each in dataclasses.fields(value) if each.name not in ("overlay_png", "picture"))
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
