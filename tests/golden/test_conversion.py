"""A user's own checkpoint of a ViT, from its entry in a models file to masks on OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry

from models.backends.load import ModelStore, load_sam
from models.catalog import load_catalogue
from models.letterbox import letterbox_for
from models.sam.prompts import pack
from models.types import Logits, Point, Prompt, Size


def test_a_users_own_checkpoint_gives_on_openvino_what_it_gives_on_pytorch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(sam_model_registry["vit_b"]().state_dict(), tmp_path / "mine.safetensors")
    models_file = tmp_path / "models.yaml"
    models_file.write_text(
        "models:\n  mine:\n    architecture: sam-vit-b\n    file: mine.safetensors\n    licence: proprietary\n"
    )
    entry = load_catalogue(models_file)["mine"]
    model_store = ModelStore(tmp_path / "cache")
    image = np.random.default_rng(1).integers(0, 256, (600, 1024, 3), np.uint8)
    letterbox = letterbox_for(Size(600, 1024))
    guess: Logits = np.random.default_rng(2).normal(0, 8, (256, 256)).astype(np.float32)
    batches = ([Prompt((Point(500, 375),)), Prompt((Point(10, 20), Point(900, 500, 0)))], [Prompt(mask=guess)])

    outputs = []
    for backend in ("torch", "openvino"):
        sam = load_sam(entry, backend, model_store)
        embeddings = sam.encode([sam.prepare(image, letterbox)])
        for other in (letterbox_for(Size(600, 1024), padding="none"), letterbox_for(Size(300, 512), side=512)):
            with pytest.raises(ValueError, match="require the padded square of 1024 pixels"):
                sam.prepare(np.zeros((other.resized.height, other.resized.width, 3), np.uint8), other)
        for prompts in batches:
            packed = pack(prompts, [letterbox] * len(prompts))
            outputs.append(sam.decode(embeddings, np.zeros(len(prompts), np.int64), packed))

    for (logits, scores), (expected, expected_scores) in zip(outputs[2:], outputs[:2], strict=True):
        # Two compilers round differently over twelve blocks; 1e-3 of the range is the parity tests' measure.
        assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()
        assert np.abs(scores - expected_scores).max() <= 1e-3 * np.abs(expected_scores).max()
