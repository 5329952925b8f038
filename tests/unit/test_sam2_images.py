"""SAM 2 and EdgeTAM on images: equal to `transformers` from pixels to masks, with seeded random weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import EdgeTamConfig, EdgeTamModel, Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor

import models
from models.backends.load import ModelStore, ensure_files, load_sam2
from models.backends.torch_sam2 import Sam2Embedding, TorchSam2
from models.catalog import CATALOGUE, Architecture, OfficialAddress, load_catalogue
from models.errors import BackendError, BadCheckpoint
from models.letterbox import Letterbox, letterbox_for, resize
from models.sam.postprocess import masks_of
from models.sam.prompts import pack
from models.sam2.build import build_sam2, network_of
from models.sam2.names import translate_names
from models.sam2.prompts import with_padding_points
from models.types import Box, Logits, Pixels, Point, Prompt, Size
from tests.tiny_sam2 import (
    KINDS,
    SIDE,
    one_thread,
    published_tensors,
    sample_image,
    tiny_network,
    write_checkpoint,
    write_models_file,
)

WIDE, TALL = Size(90, 160), Size(200, 70)
CLICKS = (Point(40, 30), Point(60, 60, 0))
BOX = Box(12, 10, 60, 70)
MILLIONS = {
    "sam2.1-tiny": 38.9,
    "sam2.1-small": 46,
    "sam2.1-base-plus": 80.8,
    "sam2.1-large": 224.4,
    "edgetam": 13.9,
}
"""Of parameters: from the table in the README of SAM 2's authors; of EdgeTAM from its authors' package."""
GUESS: Logits = np.random.default_rng(0).normal(0, 5, (SIDE // 4, SIDE // 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory, kind: str) -> TorchSam2:
    folder = write_checkpoint(tmp_path_factory.mktemp("tiny"), kind)
    entry = load_catalogue(write_models_file(folder.parent, folder))["tiny-sam2"]
    return load_sam2(entry, "torch", ModelStore(folder.parent / "cache"), device="cpu")


def images_only(kind: str) -> Any:
    """The library's own model for images, of random weights."""
    described = {**tiny_network(kind).config.to_dict(), "model_type": kind}
    if kind == "edgetam":
        return EdgeTamModel(EdgeTamConfig.from_dict(described)).eval()
    return Sam2Model(Sam2Config.from_dict(described)).eval()


@pytest.fixture(scope="module")
def library(kind: str) -> tuple[Any, Any]:
    """The library's own model for images, with the same weights, and its processor."""
    network, model = tiny_network(kind), images_only(kind)
    model.load_state_dict(network.state_dict(), strict=False)
    model.requires_grad_(requires_grad=False)
    images = Sam2ImageProcessor(
        size={"height": SIDE, "width": SIDE}, mask_size={"height": SIDE // 4, "width": SIDE // 4}
    )
    return model, Sam2Processor(images, target_size=SIDE)


def stretched(size: Size) -> Letterbox:
    return letterbox_for(size, SIDE, "stretch")


def embed(backend: TorchSam2, pixels: Pixels) -> Any:
    letterbox = stretched(Size(*pixels.shape[:2]))
    (embedding,) = backend.encode([backend.prepare(resize(pixels, letterbox), letterbox)])
    return embedding


def asked(prompt: Prompt, size: Size, processor: Any) -> dict[str, Any]:
    """The prompt as the library's model takes it."""
    points = [[[[point.x, point.y] for point in prompt.points]]] if prompt.points else None
    labels = [[[point.label for point in prompt.points]]] if prompt.points else None
    box = prompt.box
    boxes = None if box is None else [[[box.x0, box.y0, box.x1, box.y1]]]
    inputs: dict[str, Any] = {}
    if points or boxes:
        inputs = dict(
            processor(
                input_points=points,
                input_labels=labels,
                input_boxes=boxes,
                original_sizes=torch.tensor([[size.height, size.width]]),
                return_tensors="pt",
            )
        )
        inputs.pop("original_sizes", None)
    if prompt.mask is not None:
        inputs["input_masks"] = torch.from_numpy(np.asarray(prompt.mask))[None, None]
    return {**inputs, "multimask_output": prompt.multimask}


PROMPTS = {
    "points": Prompt(CLICKS),
    "points, one mask": Prompt(CLICKS, multimask=False),
    "box": Prompt(box=BOX),
    "box, one mask": Prompt(box=BOX, multimask=False),
    "points and box": Prompt(CLICKS, box=BOX),
    "mask": Prompt(mask=GUESS),
    "points and mask": Prompt(CLICKS, mask=GUESS),
    "mask, one mask": Prompt(mask=GUESS, multimask=False),
}


@pytest.mark.parametrize("size", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_logits_and_scores_are_the_librarys(
    backend: TorchSam2, library: tuple[Any, Any], prompt: Prompt, size: Size
) -> None:
    model, processor = library
    pixels = sample_image(1, size)
    letterbox = stretched(size)
    prepared = backend.prepare(resize(pixels, letterbox), letterbox)
    seen = prepared.pixels.movedim(-1, 0)[None]
    values = processor.image_processor(images=seen, do_resize=False, return_tensors="pt")["pixel_values"]
    theirs = model(pixel_values=values, **asked(prompt, size, processor))

    logits, scores = backend.decode(backend.encode([prepared]), np.zeros(1, np.int64), pack([prompt], [letterbox]))
    answered = slice(1, 4) if prompt.multimask else slice(0, 1)
    np.testing.assert_allclose(logits[0, answered], theirs.pred_masks[0, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(scores[0, answered], theirs.iou_scores[0, 0].numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [WIDE, TALL], ids=["wide", "tall"])
def test_masks_of_an_image_are_the_librarys(backend: TorchSam2, library: tuple[Any, Any], size: Size) -> None:
    model, processor = library
    pixels = sample_image(2, size)
    inputs = processor(images=pixels, return_tensors="pt")
    theirs = model(pixel_values=inputs["pixel_values"], **asked(Prompt(CLICKS), size, processor))
    best = theirs.iou_scores[0, 0].argsort(descending=True)
    (wanted,) = processor.post_process_masks(theirs.pred_masks, [[size.height, size.width]])

    prompts = pack([Prompt(CLICKS)], [stretched(size)])
    logits, scores = backend.decode([embed(backend, pixels)], np.zeros(1, np.int64), prompts)
    masks = masks_of(logits[0], scores[0], stretched(size), multimask=True)
    expected = wanted[0][best].numpy()
    # The library resizes in steps of its own: a colour in a hundred is one level brighter or darker.
    assert all(np.mean(mask.pixels == one) > 0.99 for mask, one in zip(masks, expected, strict=True))
    assert any(0.01 < one.mean() < 0.99 for one in expected)


@pytest.mark.parametrize("size", [WIDE, TALL, Size(31, 40)], ids=["wide", "tall", "smaller"])
def test_upsampled_logits_are_the_librarys(library: tuple[Any, Any], size: Size) -> None:
    _, processor = library
    logits = np.random.default_rng(1).normal(0, 3, (4, SIDE // 4, SIDE // 4)).astype(np.float32)
    (wanted,) = processor.post_process_masks(torch.from_numpy(logits)[None, None], [[size.height, size.width]])
    masks = masks_of(logits, np.array([0.1, 0.9, 0.8, 0.7], np.float32), stretched(size), multimask=True)
    for mask, expected in zip(masks, wanted[0, 1:].numpy(), strict=True):
        assert np.array_equal(mask.pixels, expected)


def test_a_prompt_is_answered_the_same_alone_and_among_others_on_other_images(backend: TorchSam2) -> None:
    images = [embed(backend, sample_image(seed, WIDE)) for seed in (3, 4)]
    many = [Prompt(CLICKS), Prompt(box=BOX), Prompt((Point(1, 2),))]
    index = np.array([0, 1, 1])
    together, scores = backend.decode(images, index, pack(many, [stretched(WIDE)] * 3))
    for row, (prompt, image) in enumerate(zip(many, index, strict=True)):
        alone, score = backend.decode([images[image]], np.zeros(1, np.int64), pack([prompt], [stretched(WIDE)]))
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)
        np.testing.assert_allclose(scores[row], score[0], atol=1e-5)


def test_images_are_encoded_the_same_alone_and_in_a_batch(backend: TorchSam2) -> None:
    letterboxes = [stretched(WIDE), stretched(TALL)]
    pixels = [resize(sample_image(5, WIDE), letterboxes[0]), resize(sample_image(6, TALL), letterboxes[1])]
    prepared = [backend.prepare(image, letterbox) for image, letterbox in zip(pixels, letterboxes, strict=True)]
    for together, image in zip(backend.encode(prepared), prepared, strict=True):
        (alone,) = backend.encode([image])
        assert isinstance(together, Sam2Embedding)
        assert isinstance(alone, Sam2Embedding)
        for scale in ("fine", "middle", "coarse"):
            torch.testing.assert_close(getattr(together, scale), getattr(alone, scale), atol=1e-5, rtol=1e-5)


def test_an_embedding_counts_the_bytes_of_all_scales(backend: TorchSam2) -> None:
    cells = (SIDE // 16) ** 2
    assert embed(backend, sample_image(7, WIDE)).nbytes == 4 * cells * (16 * 16 + 4 * 32 + 128)


def test_padding_points_follow_points_and_boxes_and_stand_alone_with_masks() -> None:
    prompts = [Prompt(CLICKS), Prompt(CLICKS, box=BOX), Prompt(box=BOX)]
    packed = with_padding_points(pack(prompts, [stretched(WIDE)] * 3))
    rows: NDArray[np.int64] = packed.labels
    assert [[label for label in row if label != -2] for row in rows.tolist()] == [
        [1, 0, -1],
        [1, 0, 2, 3, -1],
        [2, 3, -1],
    ]
    (alone,) = with_padding_points(pack([Prompt(mask=GUESS)], [stretched(WIDE)])).labels.tolist()
    assert [label for label in alone if label != -2] == [-1, -1]


def test_published_names_are_translated(kind: str) -> None:
    wanted = tiny_network(kind).state_dict()
    translated = translate_names(published_tensors(wanted))
    assert translated.keys() == wanted.keys()
    assert all(torch.equal(translated[name], wanted[name]) for name in wanted)
    assert translate_names(wanted) == dict(wanted)


def test_image_weights_alone_do_not_track(kind: str, tmp_path: Path) -> None:
    image = images_only(kind)
    image.save_pretrained(tmp_path)
    parts = build_sam2("sam2", image.state_dict(), tmp_path / "config.json")
    assert (parts.side, parts.tracks) == (SIDE, False)
    everything = write_checkpoint(tmp_path / "all", kind) / "config.json"
    assert build_sam2("sam2", tiny_network(kind).state_dict(), everything).tracks


def test_weights_that_do_not_fit_are_refused_with_what_to_do(tmp_path: Path) -> None:
    config = write_checkpoint(tmp_path) / "config.json"
    tensors = tiny_network().state_dict()
    with pytest.raises(BadCheckpoint, match=r"does not fit the architecture sam2\.1-tiny"):
        build_sam2("sam2.1-tiny", tensors)
    config.write_text('{"model_type": "bert"}')
    with pytest.raises(BadCheckpoint, match="must be one of sam2, sam2_video, edgetam, edgetam_video, got 'bert'"):
        build_sam2("sam2", tensors, config)
    config.unlink()
    with pytest.raises(BadCheckpoint, match="must be the configuration that transformers wrote"):
        build_sam2("sam2", tensors, config)


def test_only_images_stretched_to_its_square_are_prepared(backend: TorchSam2) -> None:
    with pytest.raises(ValueError, match="stretched to the square of 128"):
        backend.prepare(sample_image(0, Size(72, 128)), letterbox_for(WIDE, SIDE))
    with pytest.raises(ValueError, match=r"must have the shape \(128, 128, 3\)"):
        backend.prepare(sample_image(0, WIDE), stretched(WIDE))


def test_published_models_have_two_official_addresses() -> None:
    entries = [entry for entry in CATALOGUE.values() if entry.architecture.family == "sam2"]
    assert [entry.name for entry in entries] == [*MILLIONS]
    assert all(len([s for s in entry.sources if isinstance(s, OfficialAddress)]) == 2 for entry in entries)
    (first, second) = CATALOGUE["sam2.1-base-plus"].sources
    assert str(first) == "https://dl.fbaipublicfiles.com/segment_anything_2/092824/sam2.1_hiera_base_plus.pt"
    assert str(second) == (
        "https://huggingface.co/facebook/sam2.1-hiera-base-plus/resolve/main/sam2.1_hiera_base_plus.pt"
    )
    assert str(CATALOGUE["edgetam"].sources[1]) == "https://huggingface.co/facebook/EdgeTAM/resolve/main/edgetam.pt"


@pytest.mark.parametrize("architecture", MILLIONS)
def test_a_published_architecture_has_the_published_number_of_parameters(architecture: str) -> None:
    with torch.device("meta"):
        network = network_of(Architecture(architecture))
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(MILLIONS[architecture], rel=0.005)


def test_no_weights_are_downloaded_to_build_an_edgetam(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", connect)
    assert network_of(Architecture.EDGETAM).config.vision_config.backbone_config.architecture == "repvit_m1"


@pytest.mark.parametrize(("model", "package"), [("sam2.1-tiny", "transformers"), ("edgetam", "timm")])
def test_without_its_packages_a_sam_2_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, package: str
) -> None:
    monkeypatch.setattr("models.backends.load.find_spec", lambda name: None if name == package else name)
    with pytest.raises(BackendError, match=f"needs {package}, which the environment has not: make sam2"):
        ensure_files(CATALOGUE[model], "torch", ModelStore(tmp_path))


def test_serving_without_a_sam_2_imports_no_transformers() -> None:
    code = "import sys, service.lifecycle, models.backends.torch_backend; sys.exit('transformers' in sys.modules)"
    root = Path(models.__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
