"""A fine-tuned MobileSAM: from rendered scenes to a checkpoint that is served on PyTorch and on OpenVINO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from models.backends.base import SamBackend
from models.backends.load import ModelStore, load_sam
from models.catalog import CATALOGUE, load_catalogue
from models.letterbox import letterbox_for, resize
from models.sam.prompts import pack
from models.training.__main__ import main
from models.training.sam_data import EmbeddingStore, load_embedding
from models.types import Box, Point, Prompt, Size
from models.weights.checkpoints import load_state_dict
from models.weights.fetch import fetch
from models.weights.run_folder import RunFolder
from tests.tiny_sam import scene, write_scenes

pytestmark = pytest.mark.checkpoint

SIDE = 256
IMAGE = Size(192, 256)
PROMPTS = (Prompt(box=Box(60, 40, 130, 120)), Prompt((Point(128, 96),)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_store: ModelStore) -> RunFolder:
    """Fine-tuned for one epoch on three scenes, one of a kind without fruit."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out") / "run"
    first = write_scenes(data, 4, IMAGE).train[0]
    for part in ("masks", "instances"):
        PIL.Image.new("L", (IMAGE.width, IMAGE.height)).save(data / part / f"{first}.png")
    (data / "meta.json").write_text(json.dumps({first: {"kind": "negative"}}))
    weights = ["--weights", str(model_store.weights_dir)] if model_store.weights_dir else []
    options = ["--size", str(SIDE), "--padding", "none", "--epochs", "1", "--batch", "4", "--name", "scenes"]
    machine = ["--device", "cpu", "--cache", str(model_store.cache_dir), "--backend", "openvino", "--quiet"]
    assert main(["sam", "--data", str(data), "--out", str(out), *options, *machine, *weights]) == 0
    return RunFolder(out)


def test_all_but_the_mask_decoder_is_unchanged_to_the_last_bit(folder: RunFolder, model_store: ModelStore) -> None:
    checkpoint = fetch(CATALOGUE["mobile-sam"], cache_dir=model_store.cache_dir, weights_dir=model_store.weights_dir)
    before, after = load_state_dict(checkpoint), load_state_dict(folder.model)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("mask_decoder.") for name in moved)


def test_the_card_has_the_measures_before_and_after(folder: RunFolder) -> None:
    card = json.loads(folder.card_json.read_text("utf-8"))
    (source,) = card["data"]
    for name in ("box_iou", "point_iou", "score_error", "score_correlation"):
        assert card["validation"].keys() >= {f"{source}/{name}", f"{source}/{name} before"}
    assert card["architecture"] == "mobile-sam"
    assert card["file"] == folder.model.name


def test_it_is_served_alike_on_pytorch_and_on_openvino(
    folder: RunFolder, torch_sam: SamBackend, tmp_path: Path
) -> None:
    entry = load_catalogue(folder.models_file)["scenes"]
    letterbox = letterbox_for(IMAGE, SIDE, "none")
    pixels = resize(scene(9, IMAGE).pixels, letterbox)
    answers = []
    for sam in (*(load_sam(entry, backend, ModelStore(tmp_path)) for backend in ("torch", "openvino")), torch_sam):
        embeddings = sam.encode([sam.prepare(pixels, letterbox)])
        answers.append(sam.decode(embeddings, np.zeros(len(PROMPTS), np.int64), pack(PROMPTS, [letterbox] * 2)))
    (logits, scores), (compiled, compiled_scores), (official, official_scores) = answers
    # Two compilers round differently; 1e-3 of the range is the parity tests' measure.
    assert np.abs(logits - compiled).max() <= 1e-3 * np.abs(logits).max()
    assert np.abs(scores - compiled_scores).max() <= 1e-3
    for row, expected in zip(logits[:, 0] > 0, compiled[:, 0] > 0, strict=True):
        assert np.count_nonzero(row & expected) >= 0.999 * np.count_nonzero(row | expected) > 0
    assert np.abs(logits - official).max() > 10 * np.abs(logits - compiled).max()
    assert not np.allclose(scores, official_scores, atol=1e-3)


def test_a_kept_embedding_gives_the_masks_of_a_fresh_one_of_another_backend(
    torch_sam: SamBackend, openvino_sam: SamBackend, tmp_path: Path
) -> None:
    pixels = scene(9, IMAGE).pixels
    store = EmbeddingStore(tmp_path, revision="r", side=SIDE, padding="none", open_backend=lambda: openvino_sam)
    letterbox, file = store.ensure(pixels)
    kept = load_embedding(file)
    (fresh,) = torch_sam.encode([torch_sam.prepare(resize(pixels, letterbox), letterbox)])
    expected = torch.as_tensor(fresh)
    # float16 keeps 11 bits: its rounding of the largest value, and that of two encoders.
    assert float((kept - expected).abs().max()) <= 2e-3 * float(expected.abs().max())
    packed = pack(PROMPTS, [letterbox] * 2)
    index = np.zeros(len(PROMPTS), np.int64)
    (logits, scores), (exact, exact_scores) = (
        torch_sam.decode([embedding], index, packed) for embedding in (kept, fresh)
    )
    for row, other in zip(logits > 0, exact > 0, strict=True):
        assert np.count_nonzero(row & other) >= 0.995 * np.count_nonzero(row | other)
    assert np.abs(scores - exact_scores).max() <= 5e-3
