"""Models of an open vocabulary, of random weights, against the same networks used through `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import (
    AutoProcessor,
    CLIPSegForImageSegmentation,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
)

from models.backends.base import GroundingBackend
from models.backends.load import ModelStore, load_grounding
from models.catalog import read_models_file
from models.detector.postprocess import Thresholds
from models.errors import BadCheckpoint, CatalogueError, MalformedPrompt
from models.grounding.letterbox import fitted
from models.grounding.postprocess import boxes_of_heat, boxes_of_queries
from models.types import Box, Pixels, Size
from tests.tiny_grounding import write_clipseg, write_grounding_dino

NOUNS: Final = ("oranges", "mouldy leaf", "plums")
ALL: Final = Thresholds(score=0.0, nms=1.0, most=300)


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_grounding_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def clipseg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clipseg(tmp_path_factory.mktemp("clipseg"))


def loaded(folder: Path, architecture: str) -> GroundingBackend:
    """Load a folder as a user does, from a models file."""
    models_file = folder.parent / f"{folder.name}.yaml"
    models_file.write_text(f"models: {{mine: {{architecture: {architecture}, file: {folder}, licence: own}}}}")
    store = ModelStore(folder.parent / "cache", None, "auto")
    return load_grounding(read_models_file(models_file)["mine"], store, device="cpu")


def noise(size: Size) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (size.height, size.width, 3), np.uint8)


def test_boxes_and_scores_are_those_of_grounding_dino(dino: Path) -> None:
    backend = loaded(dino, "grounding-dino")
    size = Size(64, 96)
    pixels, letterbox = noise(size), backend.letterbox(size)
    output = backend.infer(backend.prepare(pixels, letterbox), backend.read(NOUNS))
    assert output.size == backend.output_values(3)

    processor: Any = AutoProcessor.from_pretrained(dino)
    network = GroundingDinoForObjectDetection.from_pretrained(dino).eval()
    inputs = processor(images=PIL.Image.fromarray(pixels), text="oranges. mouldy leaf. plums.", return_tensors="pt")
    with torch.no_grad():
        answer = network(**inputs)
    (expected,) = processor.post_process_grounded_object_detection(
        answer, inputs.input_ids, threshold=0.0, text_threshold=0.0, target_sizes=[(64, 96)]
    )
    corners = np.hstack([output[:, :2] - output[:, 2:4] / 2, output[:, :2] + output[:, 2:4] / 2]) * (96, 64, 96, 64)
    np.testing.assert_allclose(corners, expected["boxes"], atol=1e-3)
    probabilities = answer.logits[0].sigmoid().numpy()
    # [CLS] oranges . mouldy leaf . plum ##s . [SEP]
    tokens = {0: [1], 1: [3, 4], 2: [6, 7]}
    for noun, places in tokens.items():
        np.testing.assert_allclose(output[:, 4 + noun], probabilities[:, places].max(axis=1), atol=1e-5)
    # The library's score also counts full stops, which name nothing.
    assert (expected["scores"].numpy() >= output[:, 4:].max(axis=1) - 1e-5).all()


@pytest.mark.parametrize("size", [Size(64, 96), Size(480, 640), Size(1000, 333), Size(50, 300), Size(97, 101)])
def test_images_are_resized_as_by_the_library(size: Size) -> None:
    processor = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 107})
    expected = processor(images=PIL.Image.fromarray(noise(size)), return_tensors="pt").pixel_values.shape[2:]
    resized = fitted(size, 64, 107).resized
    assert (resized.height, resized.width) == tuple(expected)


def test_heat_maps_are_those_of_clipseg(clipseg: Path) -> None:
    backend = loaded(clipseg, "clipseg")
    size = Size(64, 64)
    pixels, letterbox = noise(size), backend.letterbox(size)
    output = backend.infer(backend.prepare(pixels, letterbox), backend.read(["orange", "leaf"]))
    assert output.size == backend.output_values(2)

    processor: Any = AutoProcessor.from_pretrained(clipseg)
    network = CLIPSegForImageSegmentation.from_pretrained(clipseg).eval()
    for noun, heat in zip(("orange", "leaf"), output, strict=True):
        inputs = processor(text=[noun], images=[PIL.Image.fromarray(pixels)], return_tensors="pt")
        with torch.no_grad():
            expected = network(**inputs).logits.sigmoid().reshape(64, 64)
        np.testing.assert_allclose(heat, expected, atol=1e-5)
    assert np.abs(output[0] - output[1]).max() > 1e-3  # the noun counts


def test_an_image_is_stretched_to_clipsegs_square(clipseg: Path) -> None:
    letterbox = loaded(clipseg, "clipseg").letterbox(Size(100, 300))
    assert letterbox.resized == letterbox.padded == Size(64, 64)


def test_a_text_of_more_tokens_than_the_network_reads_is_refused(dino: Path, clipseg: Path) -> None:
    with pytest.raises(MalformedPrompt, match="at most 48 tokens together, got 51"):
        loaded(dino, "grounding-dino").read(["a fruit"] * 15 + ["plums leaf"])
    with pytest.raises(MalformedPrompt, match="1 to 75 tokens, got 76"):
        loaded(clipseg, "clipseg").read(["z" * 76])


# Boxes.


def test_a_query_is_of_the_noun_that_fits_it_best() -> None:
    output = np.array(
        [
            [0.5, 0.5, 0.2, 0.4, 0.1, 0.9],
            [0.51, 0.5, 0.2, 0.4, 0.2, 0.8],  # the same object
            [0.0, 0.5, 0.2, 0.2, 0.6, 0.2],  # beyond the edge
            [0.2, 0.2, 0.1, 0.1, 0.1, 0.2],
        ],
        np.float32,
    )
    found = boxes_of_queries(output, Size(100, 200), Thresholds(score=0.3))
    assert [each.class_id for each in found] == [1, 0]
    assert [each.score for each in found] == pytest.approx([0.9, 0.6])
    np.testing.assert_allclose([found[0].box.x0, found[0].box.y0, found[0].box.x1, found[0].box.y1], [80, 30, 120, 70])
    np.testing.assert_allclose([found[1].box.x0, found[1].box.x1], [0, 20], atol=1e-5)


def test_regions_of_a_heat_map_become_boxes_of_the_image() -> None:
    heat = np.zeros((2, 32, 32), np.float32)
    heat[0, 4:8, 4:12] = 0.5
    heat[0, 5, 5] = 0.75
    heat[1, 20:24, 20:24] = 0.4
    heat[1, 30, 30] = 0.9  # a speck
    found = boxes_of_heat(heat, Size(64, 320), Thresholds(score=0.3))
    assert [(each.class_id, each.box) for each in found] == [(0, Box(40, 8, 120, 16)), (1, Box(200, 40, 240, 48))]
    assert [each.score for each in found] == pytest.approx([0.75, 0.4])
    assert boxes_of_heat(heat, Size(64, 320), Thresholds(score=0.95)) == []


# Folders.


def test_a_folder_of_another_architecture_is_refused(dino: Path, clipseg: Path) -> None:
    with pytest.raises(BadCheckpoint, match="model_type must be clipseg, got 'grounding-dino'"):
        loaded(dino, "clipseg")
    with pytest.raises(BadCheckpoint, match="model_type must be grounding-dino, got 'clipseg'"):
        loaded(clipseg, "grounding-dino")


def test_a_folder_that_lacks_a_file_or_a_tensor_is_refused(tmp_path: Path) -> None:
    folder = write_clipseg(tmp_path / "clipseg")
    config = json.loads((folder / "config.json").read_text())
    config["reduce_dim"] = 8
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=r"reduce|wrong shape|mismatch|size"):
        loaded(folder, "clipseg")
    (folder / "config.json").write_text("[")
    with pytest.raises(BadCheckpoint, match="that transformers wrote beside the weights"):
        loaded(folder, "clipseg")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CatalogueError, match="does not exist"):
        loaded(folder, "clipseg")


@pytest.mark.parametrize("size", [Size(1, 400), Size(400, 1), Size(3, 5)])
def test_images_of_any_proportions_have_an_answer(dino: Path, clipseg: Path, size: Size) -> None:
    for backend in (loaded(dino, "grounding-dino"), loaded(clipseg, "clipseg")):
        letterbox = backend.letterbox(size)
        output = backend.infer(backend.prepare(noise(letterbox.resized), letterbox), backend.read(["leaf"]))
        for each in backend.boxes(output, letterbox, ALL):
            assert 0 <= each.box.x0 < each.box.x1 <= size.width
            assert 0 <= each.box.y0 < each.box.y1 <= size.height
