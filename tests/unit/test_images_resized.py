"""`decode_resized`: straight to what a model sees."""

import io

import numpy as np
import PIL.Image
import pytest
from PIL import ExifTags

from models import images
from models.errors import TooManyPixels, TruncatedImage
from models.letterbox import letterbox_for, resize
from models.types import Size

LIMIT = 10_000_000


def scene(height: int, width: int) -> PIL.Image.Image:
    """Smooth colours with some grain, as a photograph has."""
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack((rows * 255 / height, columns * 255 / width, np.hypot(rows, columns) % 200), axis=-1)
    grain = np.random.default_rng(0).normal(0, 4, (height, width, 1))
    return PIL.Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def encoded(image: PIL.Image.Image, kind: str, orientation: int = 1) -> bytes:
    exif = PIL.Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_it_gives_what_resizing_the_decoded_image_gives(mode: str, orientation: int) -> None:
    image = scene(120, 170).convert("L").convert(mode) if mode == "I;16" else scene(120, 170).convert(mode)
    data = encoded(image, "PNG", orientation)
    decoded = images.decode(data, max_pixels=LIMIT)
    frame = letterbox_for(decoded.size, 64)
    straight = images.decode_resized(data, frame.resized, max_pixels=LIMIT)
    assert np.array_equal(straight, resize(decoded.pixels, frame))


def test_a_scaled_jpeg_is_nearly_what_the_whole_one_gives() -> None:
    data = encoded(scene(900, 2080), "JPEG")
    wanted = letterbox_for(Size(900, 2080), 512).resized
    exact = images.decode_resized(data, wanted, max_pixels=LIMIT).astype(int)
    scaled = images.decode_resized(data, wanted, max_pixels=LIMIT, scaled=True).astype(int)
    assert not np.array_equal(exact, scaled)  # else nothing was scaled
    # Half of the coefficients are left out, of which the filter would keep next to nothing.
    assert np.abs(exact - scaled).mean() < 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_scaled_jpeg_is_turned_upright(orientation: int) -> None:
    data = encoded(scene(400, 1000), "JPEG", orientation)
    wanted = Size(80, 200) if orientation == 1 else Size(200, 80)
    exact = images.decode_resized(data, wanted, max_pixels=LIMIT).astype(int)
    scaled = images.decode_resized(data, wanted, max_pixels=LIMIT, scaled=True).astype(int)
    assert scaled.shape == (*(wanted.height, wanted.width), 3)
    assert np.abs(exact - scaled).mean() < 2


def test_less_than_four_times_the_size_is_decoded_whole() -> None:
    data = encoded(scene(300, 300), "JPEG")
    exact, scaled = (
        images.decode_resized(data, Size(76, 76), max_pixels=LIMIT, scaled=scaled) for scaled in (False, True)
    )
    assert np.array_equal(exact, scaled)


def test_a_grey_jpeg_is_decoded_whole() -> None:
    data = encoded(scene(400, 400).convert("L"), "JPEG")
    exact, scaled = (
        images.decode_resized(data, Size(40, 40), max_pixels=LIMIT, scaled=scaled) for scaled in (False, True)
    )
    assert np.array_equal(exact, scaled)


def test_it_refuses_what_decode_refuses() -> None:
    data = encoded(scene(400, 400), "JPEG")
    with pytest.raises(TooManyPixels):
        images.decode_resized(data, Size(40, 40), max_pixels=400 * 400 - 1, scaled=True)
    with pytest.raises(TruncatedImage):
        images.decode_resized(data[: len(data) // 2], Size(40, 40), max_pixels=LIMIT, scaled=True)
