"""Labelling configurations: which tags show images, and which take labels.

Label Studio writes them as XML. Only the names and attributes of tags matter here, so they are read as markup by the
standard library's HTML parser, which knows no entities that could be expanded and fetches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Final

from models.data.dataset import ClassMap
from models.data.exports import Control, LabelTags
from models.errors import DataError
from models.types import PixelClass
from service.errors import MalformedRequest

MAX_CONFIG: Final = 1 << 18
"""Characters of a configuration."""

_CONTROLS: Final[dict[str, Control]] = {
    "brushlabels": "brushlabels",
    "polygonlabels": "polygonlabels",
    "rectanglelabels": "rectanglelabels",
}
"""Tags that take what a model finds, the best first."""

_LABELS: Final = "label"
_CLASSES: Final = ClassMap()


@dataclass(frozen=True, slots=True)
class ControlTag:
    """A tag that takes labels.

    Attributes:
        control: type of its regions.
        name: of the tag.
        to_name: of the image's tag.
        labels: that it offers, in order.
    """

    control: Control
    name: str
    to_name: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """What matters of a labelling configuration.

    Attributes:
        images: key of the task's data that each Image tag shows.
        controls: tags that take labels.
    """

    images: dict[str, str]
    controls: tuple[ControlTag, ...]

    @classmethod
    def parse(cls, text: str) -> LabelConfig:
        """Read a configuration.

        Raises:
            MalformedRequest: it is too long, shows no image, or has no tag for a model's regions.
        """
        if len(text) > MAX_CONFIG:
            raise MalformedRequest(f"The labelling configuration must have at most {MAX_CONFIG} characters.")
        tags = _Tags()
        tags.feed(text)
        tags.close()
        controls = tuple(each.finished() for each in tags.controls)
        if not tags.images:
            raise MalformedRequest(
                "The labelling configuration must have an Image tag that shows a key of the task's data, such as "
                '<Image name="image" value="$image"/>.'
            )
        fitting = tuple(each for each in controls if each.to_name in tags.images and each.labels)
        if not fitting:
            raise MalformedRequest(
                "The labelling configuration must have BrushLabels, PolygonLabels or RectangleLabels with labels for "
                f"an image ({', '.join(tags.images)})."
            )
        return cls(tags.images, fitting)

    def image_key(self, to_name: str) -> str:
        """Return the key of the task's data that an Image tag shows.

        Raises:
            MalformedRequest: there is no such tag.
        """
        if to_name not in self.images:
            raise MalformedRequest(
                f"The region is on {to_name!r}, which is no Image tag of the labelling configuration: there are "
                f"{', '.join(self.images)}."
            )
        return self.images[to_name]

    def for_label(self, label: str, to_name: str) -> LabelTags:
        """Return where a mask with a label belongs: brush before polygon.

        Raises:
            MalformedRequest: no tag for masks offers the label.
        """
        for tag in self._masks():
            if tag.to_name == to_name and label in tag.labels:
                return LabelTags(tag.control, tag.name, tag.to_name, {})
        raise MalformedRequest(
            f"No BrushLabels or PolygonLabels of {to_name} offers the label {label!r}: add it to one, so that a mask "
            "can have it."
        )

    def for_fruit(self) -> LabelTags:
        """Return where fruit and its infected parts belong: the best tag with a label for either.

        Raises:
            MalformedRequest: there is none.
        """
        for tag in sorted(self.controls, key=lambda each: list(_CONTROLS.values()).index(each.control)):
            labels = _classes_of(tag.labels)
            if labels:
                return LabelTags(tag.control, tag.name, tag.to_name, labels)
        offered = [label for tag in self.controls for label in tag.labels]
        raise MalformedRequest(
            f"To annotate whole images, a tag must offer the label Healthy or Infected; offered: {', '.join(offered)}."
        )

    def _masks(self) -> list[ControlTag]:
        return [tag for control in ("brushlabels", "polygonlabels") for tag in self.controls if tag.control == control]


@dataclass(slots=True)
class _Control:
    control: Control
    name: str
    to_name: str
    labels: list[str] = field(default_factory=list)

    def finished(self) -> ControlTag:
        return ControlTag(self.control, self.name, self.to_name, tuple(self.labels))


class _Tags(HTMLParser):
    """Collects the tags; the parser gives their names in lower case, and so those of attributes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.images: dict[str, str] = {}
        self.controls: list[_Control] = []
        self._open: _Control | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        name, to_name, value = given.get("name", ""), given.get("toname", ""), given.get("value", "")
        if tag == "image" and name and value.startswith("$"):
            self.images[name] = value[1:]
        elif tag in _CONTROLS and name and to_name:
            self._open = _Control(_CONTROLS[tag], name, to_name)
            self.controls.append(self._open)
        elif tag.endswith("labels"):
            self._open = None
        elif tag == _LABELS and value and self._open is not None:
            self._open.labels.append(value)

    def handle_endtag(self, tag: str) -> None:
        if tag.endswith("labels"):
            self._open = None


def _classes_of(labels: tuple[str, ...]) -> dict[PixelClass, str]:
    """Return the labels that mean healthy or infected, as `models.data` reads them."""
    found: dict[PixelClass, str] = {}
    for label in labels:
        try:
            meaning = _CLASSES.of_name(label)
        except DataError:
            continue
        if meaning in (PixelClass.HEALTHY, PixelClass.INFECTED):
            found.setdefault(meaning, label)
    return found
