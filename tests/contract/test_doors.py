"""One contract over all doors: the same questions through each of them, and the answers compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import PIL.Image
import pytest

from models.types import Size
from tests.contract.door import BOX_MASK, IMAGE
from tests.contract.doors import INSPECT, SEGMENT, SEMANTIC, Ask, Send, refused_by, same
from tests.contract.grpc_door import Caller
from tests.contract.refusals import gif
from tests.fakes import (
    HEALTHY_BOX,
    INFECTED_BOX,
    LOADED,
    LOADED_UNET,
    NOT_LOADED,
    OTHER_UNET,
    SECOND,
    UNPADDED,
    encode_image,
    image_bytes,
    peel_image,
    rectangle,
)

POINT: Final = {"points": [[64, 48]]}
BOX: Final = {"box": [32, 16, 64, 48]}
ONE: Final = {"multimask": False}
UNPADDED_SHAPE: Final = (UNPADDED.logits.height, UNPADDED.logits.width)
LOGITS: Final = np.where(rectangle(64, 32, 128, 96, UNPADDED.logits), 4, -4).astype(np.float32)
PEEL: Final = peel_image()
ALL: Final = {"segment": SEGMENT, "semantic": SEMANTIC, "inspect": INSPECT}
GOOD: Final = {"segment": Ask([POINT]), "semantic": Ask(data=PEEL), "inspect": Ask(data=PEEL)}


def turned() -> bytes:
    """An image of 64 x 96 that is to be turned by a quarter to the right before anything is pointed at in it."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return encode_image(np.zeros((96, 64, 3), np.uint8), exif=exif.tobytes())


SEGMENTED: Final[dict[str, Ask]] = {
    "a box": Ask([BOX | ONE]),
    "a point, three masks": Ask([POINT]),
    "several of them": Ask([POINT, {"points": [[20, 30], [90, 90]], "labels": [1, 0]}, {"points": [[1, 1]]}]),
    "points with a box": Ask([BOX | {"points": [[40, 30]], "labels": [1]}]),
    "a mask": Ask([ONE | {"mask": BOX_MASK}]),
    "logits": Ask([ONE | {"mask": LOGITS}]),
    "a box with a mask": Ask([BOX | ONE | {"mask": BOX_MASK}]),
    "fractions of pixels": Ask([{"points": [[63.25, 47.75]]}]),
    "another model": Ask([BOX], fields={"model": SECOND.name}),
    "a smaller input": Ask([BOX], fields={"input_size": 512, "padding": "square"}),
    "whatever input is best": Ask([POINT], fields={"input_size": "auto"}),
    "a deadline far away": Ask([BOX], deadline="3600000"),
    "a JPEG": Ask([BOX], image_bytes(7, file_format="JPEG")),
    "an image that was turned": Ask([{"box": [16, 8, 80, 56]}], turned()),
}


async def everywhere(caller: Caller, ask: Ask, doors: Mapping[str, Send]) -> Any:
    return same({name: await send(caller, ask) for name, send in doors.items()})


@pytest.mark.parametrize("ask", SEGMENTED.values(), ids=SEGMENTED)
async def test_every_door_gives_the_same_masks_and_figures(caller: Caller, ask: Ask) -> None:
    seen = await everywhere(caller, ask, SEGMENT)
    masks = seen.arrays["masks"]
    assert masks.dtype == np.bool_
    assert masks.shape[:2] == (len(ask.prompts), 1 if "multimask" in ask.prompts[0] else 3)
    assert masks.any(axis=(2, 3)).all()
    assert not masks.all(axis=(2, 3)).any()
    assert np.array_equal(masks.sum(axis=(2, 3)), seen.arrays["areas"])
    assert seen.told == {"model": (ask.fields.get("model", LOADED.name), seen.told["model"][1]), "degraded": False}
    if ask is SEGMENTED["a box"]:
        assert np.array_equal(masks[0, 0], BOX_MASK)
    # Whichever door it came through, the image was known to the next.
    assert len(caller.door.sam.encodes + caller.door.second.encodes) == 1


async def test_a_image_that_was_turned_is_as_high_as_it_was_wide_at_every_door(caller: Caller) -> None:
    seen = await everywhere(caller, SEGMENTED["an image that was turned"], SEGMENT)
    assert seen.arrays["masks"].shape == (1, 3, 64, 96)


CLASSIFIED: Final[dict[str, Ask]] = {
    "two fruits": Ask(data=PEEL),
    "a model by its name": Ask(data=PEEL, fields={"model": LOADED_UNET.name}),
    "a JPEG": Ask(data=peel_image(file_format="JPEG", quality=95)),
    "no fruit": Ask(data=IMAGE),
    "a deadline far away": Ask(data=PEEL, deadline="3600000"),
}


@pytest.mark.parametrize("ask", CLASSIFIED.values(), ids=CLASSIFIED)
async def test_every_door_gives_every_pixel_the_same_class(caller: Caller, ask: Ask) -> None:
    seen = await everywhere(caller, ask, SEMANTIC)
    fruit = ask is not CLASSIFIED["no fruit"]
    assert set(np.unique(seen.arrays["class_map"])) == ({0, 1, 2} if fruit else {0})
    assert len(seen.arrays["object_boxes"]) == (2 if fruit else 0)
    assert seen.told == {"model": (LOADED_UNET.name, LOADED_UNET.revision)}


INSPECTED: Final[dict[str, Ask]] = {
    "fast": Ask(data=PEEL, fields={"mode": "fast"}),
    "accurate": Ask(data=PEEL, fields={"mode": "accurate", "sam_model": LOADED.name}),
    "auto": Ask(data=PEEL),
    "with a SAM of squares": Ask(data=PEEL, fields={"mode": "accurate", "sam_model": SECOND.name}),
    "with grades": Ask(data=PEEL, fields={"grades": [{"grade": "top", "max_infected_fraction": 0.1}]}),
    "what a camera says": Ask(data=PEEL, fields={"frame_id": "7", "trigger_id": "lane 3", "captured_at_ns": 2**63 - 1}),
    "a deadline far away": Ask(data=PEEL, deadline="3600000"),
}


@pytest.mark.parametrize("ask", INSPECTED.values(), ids=INSPECTED)
async def test_every_door_judges_the_same_fruits_alike(caller: Caller, ask: Ask) -> None:
    seen = await everywhere(caller, ask, INSPECT)
    # To about two pixels, for which a cell of either model stands.
    assert np.abs(seen.arrays["box"] - [HEALTHY_BOX, INFECTED_BOX]).max() <= 2
    assert seen.arrays["class"].tolist() == ["healthy", "infected"]
    assert seen.told["mode"] == ("fast" if ask is INSPECTED["fast"] else "accurate")
    assert seen.told["frame"] == {name: ask.fields.get(name) for name in ("frame_id", "trigger_id", "captured_at_ns")}


def bad_images(*prompts: Mapping[str, Any]) -> list[tuple[str, str, Ask]]:
    return [
        ("text", "not_an_image", Ask(prompts, b"an orange")),
        ("a URL", "not_an_image", Ask(prompts, b"http://localhost/orange.png")),
        ("no bytes", "not_an_image", Ask(prompts, b"")),
        ("a cut PNG", "truncated_image", Ask(prompts, IMAGE[:-40])),
        ("a cut JPEG", "truncated_image", Ask(prompts, image_bytes(file_format="JPEG")[:400])),
        ("a GIF", "unsupported_image_format", Ask(prompts, gif())),
        ("pixels", "too_many_pixels", Ask(prompts, image_bytes(size=Size(250, 401)))),
        ("no image", "no_image", Ask(prompts, None)),
        *(
            (f"a deadline of {text}", "malformed_request", Ask(prompts, deadline=text))
            for text in ("soon", "0", "-1", "nan", "3600001")
        ),
    ]


SAME_WORDS: Final = {
    "not_an_image",
    "truncated_image",
    "unsupported_image_format",
    "too_many_pixels",
    "prompt_outside_image",
    "too_many_prompts",
    "model_not_loaded",
    "unsupported_input",
    "wrong_model_family",
}
"""Of these, doors have no parts with names of their own to tell of."""

NAN, INF = float("nan"), float("inf")
REFUSED: Final[list[tuple[str, str, str, Ask]]] = [
    *(("segment", *case) for case in bad_images(POINT)),
    ("segment", "no prompt", "no_prompt", Ask()),
    ("segment", "an unknown label", "malformed_prompt", Ask([{"points": [[1, 1]], "labels": [7]}])),
    ("segment", "an empty box", "malformed_prompt", Ask([{"box": [8, 8, 8, 16]}])),
    ("segment", "not a number", "malformed_prompt", Ask([{"points": [[NAN, 1]]}])),
    ("segment", "an endless box", "malformed_prompt", Ask([{"box": [0, 0, INF, 1]}])),
    ("segment", "a mask of another size", "malformed_prompt", Ask([{"mask": rectangle(0, 0, 4, 4, Size(96, 127))}])),
    ("segment", "logits of a square", "malformed_prompt", Ask([{"mask": np.zeros((256, 256), np.float32)}])),
    ("segment", "endless logits", "malformed_prompt", Ask([{"mask": np.full(UNPADDED_SHAPE, INF, np.float32)}])),
    ("segment", "a point outside", "prompt_outside_image", Ask([{"points": [[128, 48]]}])),
    ("segment", "a point above", "prompt_outside_image", Ask([POINT, {"points": [[64, -0.5]]}])),
    ("segment", "a box that reaches out", "prompt_outside_image", Ask([{"box": [0, 0, 128, 97]}])),
    ("segment", "prompts", "too_many_prompts", Ask([POINT] * 4)),
    ("segment", "points", "too_many_prompts", Ask([{"points": [[1, 1]] * 5}])),
    ("segment", "a model of nobody", "unknown_model", Ask([POINT], fields={"model": "plum-sam"})),
    ("segment", "a model not loaded", "model_not_loaded", Ask([POINT], fields={"model": NOT_LOADED.name})),
    ("segment", "an input size", "unsupported_input", Ask([POINT], fields={"model": SECOND.name, "input_size": 512})),
    ("segment", "a padding", "unsupported_input", Ask([POINT], fields={"model": SECOND.name, "padding": "none"})),
    *(("semantic", *case) for case in bad_images()),
    ("semantic", "a model of nobody", "unknown_model", Ask(fields={"model": "plum-unet"})),
    ("semantic", "a model not loaded", "model_not_loaded", Ask(fields={"model": OTHER_UNET.name})),
    *(("inspect", *case) for case in bad_images()),
    ("inspect", "a model of nobody", "unknown_model", Ask(fields={"model": "plum-unet"})),
    ("inspect", "a model not loaded", "model_not_loaded", Ask(fields={"model": OTHER_UNET.name})),
    ("inspect", "a SAM of nobody", "unknown_model", Ask(fields={"sam_model": "plum-sam"})),
    ("inspect", "a SAM to find fruit", "wrong_model_family", Ask(fields={"model": LOADED.name})),
    ("inspect", "a U-Net to draw", "wrong_model_family", Ask(fields={"sam_model": LOADED_UNET.name})),
    (
        "inspect",
        "grades that fall",
        "malformed_request",
        Ask(
            fields={"grades": [{"grade": name, "max_infected_fraction": most} for name, most in (("A", 0.2), ("B", 0))]}
        ),
    ),
    ("inspect", "a long frame id", "malformed_request", Ask(fields={"frame_id": "7" * 129})),
    ("inspect", "a time before all times", "malformed_request", Ask(fields={"captured_at_ns": -1})),
]


@pytest.mark.parametrize(
    ("task", "code", "ask"),
    [(task, code, ask) for task, _, code, ask in REFUSED],
    ids=[f"{task}: {name}" for task, name, _, _ in REFUSED],
)
async def test_every_door_refuses_the_same_with_the_same_code(caller: Caller, task: str, code: str, ask: Ask) -> None:
    details = {}
    for name, send in ALL[task].items():
        refused = await refused_by(send, caller, ask)
        assert refused.code == code, name
        details[name] = refused.detail
    if code in SAME_WORDS:
        assert len(set(details.values())) == 1, details
    door = caller.door
    assert door.sam.encodes == door.second.encodes == door.unet.encodes == []
    # Nobody else notices.
    same({name: await send(caller, GOOD[task]) for name, send in ALL[task].items()})
