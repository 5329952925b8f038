"""Where the pixels of a request come from: an encoded file, raw pixels, or an image that was sent before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from models import images
from models.errors import TooManyPixels
from models.headers.header import Format
from models.headers.read import sniff
from models.images import Stop
from models.letterbox import HasResized, resize
from models.overlay import encode_overlay
from models.types import Pixels, Size
from service.errors import MalformedRequest, NoImage
from service.pipelines import costs

_ENDINGS: Final[Mapping[Format, str]] = {"JPEG": "jpg", "PNG": "png", "WebP": "webp", "BMP": "bmp", "TIFF": "tif"}


class ImageSource(Protocol):
    """An image that came with the request. All methods but `nbytes` and `quick_size` belong in a worker thread."""

    @property
    def nbytes(self) -> int:
        """Bytes as they came."""
        ...

    def content_id(self) -> str:
        """Return the hash of the bytes, hexadecimal."""
        ...

    def quick_size(self, max_pixels: int) -> Size | None:
        """Return the size after EXIF orientation if that takes microseconds, else None.

        Raises:
            ImageError: the image cannot be used.
        """
        ...

    def size(self, max_pixels: int) -> Size:
        """Return the size after EXIF orientation.

        Raises:
            ImageError: the image cannot be used.
        """
        ...

    def decoding(self, size: Size, letterboxes: Sequence[HasResized] = ()) -> int:
        """Return the bytes that decoding takes: scaled towards some letterboxes, or whole."""
        ...

    def pixels(self, max_pixels: int, stop: Stop) -> Pixels:
        """Return the image as uint8 (height, width, 3), RGB.

        Args:
            max_pixels: of the image.
            stop: says when the caller has left.

        Raises:
            ImageError: the image cannot be used.
            DecodingStopped: `stop` said so.
        """
        ...

    def resized(
        self, letterboxes: Sequence[HasResized], max_pixels: int, stop: Stop, *, scaled: bool = False
    ) -> list[Pixels]:
        """Decode the image once, and return it in the sizes that models see, without padding.

        Args:
            letterboxes: how the image fits into what each model sees; at least one.
            max_pixels: of the whole image.
            stop: says when the caller has left.
            scaled: whether a large JPEG may be decoded at a part of its size, see `models.images.decode_to_sizes`.

        Raises:
            ImageError: the image cannot be used.
            DecodingStopped: `stop` said so.
        """
        ...

    def file(self) -> tuple[bytes, str]:
        """Return the image as a file, and the ending of its name without the dot.

        Raises:
            ImageError: it is in no known format.
        """
        ...


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A JPEG, PNG, WebP, BMP or TIFF file; see `ImageSource`."""

    data: bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return len(self.data)

    def content_id(self) -> str:
        """Return the hash of the file."""
        return images.content_id(self.data)

    def quick_size(self, max_pixels: int) -> Size | None:
        """Read the size from the file's header if that is short."""
        return images.read_size_quickly(self.data, max_pixels=max_pixels)

    def size(self, max_pixels: int) -> Size:
        """Read the size from the file's header."""
        return images.read_size(self.data, max_pixels=max_pixels)

    def decoding(self, size: Size, letterboxes: Sequence[HasResized] = ()) -> int:
        """Return the bytes that decoding takes."""
        return costs.decoding(self.data, size, letterboxes)

    def pixels(self, max_pixels: int, stop: Stop) -> Pixels:
        """Decode the file."""
        return images.decode(self.data, max_pixels=max_pixels, stop=stop).pixels

    def resized(
        self, letterboxes: Sequence[HasResized], max_pixels: int, stop: Stop, *, scaled: bool = False
    ) -> list[Pixels]:
        """Decode and resize the file."""
        sizes = [letterbox.resized for letterbox in letterboxes]
        return images.decode_to_sizes(self.data, sizes, max_pixels=max_pixels, scaled=scaled, stop=stop)

    def file(self) -> tuple[bytes, str]:
        """Return the file as it came."""
        return self.data, _ENDINGS[sniff(self.data)]


@dataclass(frozen=True, slots=True, eq=False)
class RawImage:
    """Pixels as they came: uint8 (height, width, 3), RGB; see `ImageSource`."""

    array: Pixels

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels."""
        return self.array.nbytes

    def content_id(self) -> str:
        """Return the hash of shape and pixels."""
        return images.content_id(b"%d %d " % self.array.shape[:2] + self.array.tobytes())

    def quick_size(self, max_pixels: int) -> Size:
        """Return the size."""
        return self.size(max_pixels)

    def size(self, max_pixels: int) -> Size:
        """Return the size."""
        size = Size(*self.array.shape[:2])
        if size.pixels > max_pixels:
            raise TooManyPixels(
                f"The image must have at most {max_pixels} pixels, got {size.width} x {size.height} = {size.pixels}."
            )
        return size

    def decoding(self, size: Size, letterboxes: Sequence[HasResized] = ()) -> int:
        """Return the bytes that resizing takes."""
        return costs.decoding(None, size, letterboxes)

    def pixels(self, max_pixels: int, stop: Stop) -> Pixels:  # noqa: ARG002
        """Return the pixels."""
        self.size(max_pixels)
        return self.array

    def resized(
        self,
        letterboxes: Sequence[HasResized],
        max_pixels: int,
        stop: Stop,
        *,
        scaled: bool = False,  # noqa: ARG002
    ) -> list[Pixels]:
        """Resize the pixels."""
        pixels = self.pixels(max_pixels, stop)
        return [resize(pixels, letterbox) for letterbox in letterboxes]

    def file(self) -> tuple[bytes, str]:
        """Return the pixels as a PNG."""
        return encode_overlay(self.array), "png"


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The image of a request.

    Attributes:
        source: the image itself, or None.
        image_id: of an image that was sent before, or None.
    """

    source: ImageSource | None = None
    image_id: str | None = None

    def required(self) -> ImageSource:
        """Return the image itself.

        Raises:
            NoImage: there is none.
        """
        if self.source is None:
            raise NoImage("The request must contain an image (the part or field image).")
        return self.source

    def check_one(self) -> None:
        """Check that there is either an image or an image id.

        Raises:
            MalformedRequest: there are both.
            NoImage: there is neither.
        """
        if self.source is not None and self.image_id is not None:
            raise MalformedRequest("The request must contain either image or image_id, not both.")
        if self.source is None and self.image_id is None:
            raise NoImage("The request must contain an image, or the image_id of an earlier answer.")


def encoded(data: bytes | None, image_id: str | None = None) -> ImageInput:
    """Return the image of a request from what came over a wire."""
    return ImageInput(None if data is None else EncodedImage(data), image_id)
