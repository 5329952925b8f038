"""The default U-Net in bfloat16 beside itself in float32, on rendered scenes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.backends.cpu import has_bf16_instructions
from models.backends.load import ModelStore, load_unet
from models.backends.precision import Agreement, Answer
from models.catalog import CATALOGUE
from models.letterbox import resize
from models.synthetic import render
from models.types import Size
from models.unet.letterbox import unet_letterbox
from service.settings import Settings

SCENES = 16
ENTRY = CATALOGUE["unet-mobilenetv2-citrus"]


@pytest.mark.skipif(not has_bf16_instructions(), reason="bfloat16 is used on processors with instructions for it alone")
def test_in_bfloat16_the_default_network_finds_the_same_fruit_and_lesions(tmp_path: Path) -> None:
    exactly, served = (Agreement.between(answers("fp32", tmp_path), answers(way, tmp_path)) for way in ("fp32", "auto"))
    assert exactly.iou["fruit"] == exactly.iou["infected"] == 1
    # Noise of up to one grey level was measured to move lesions to 0.987 already.
    assert served.iou["fruit"] > 0.995
    assert served.iou["infected"] > 0.95
    assert served != exactly


def answers(precision: str, cache: Path) -> list[Answer]:
    settings = Settings.model_validate({"unet_precision": precision})
    unet = load_unet(ENTRY, "openvino", ModelStore(cache, None, settings.unet_precision))

    def each() -> Iterator[Answer]:
        for seed in range(SCENES):
            pixels = render(seed, SIZE).pixels
            (output,) = unet.infer([unet.prepare(resize(pixels, LETTERBOX), LETTERBOX)])
            yield Answer.of(output, LETTERBOX)

    return list(each())


SIZE = Size(224, 448)
LETTERBOX = unet_letterbox(SIZE)
