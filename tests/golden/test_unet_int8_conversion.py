"""A conversion that tries int8, from a catalogue entry to the model that is served."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from models.backends.converted_models import PRECISION, converted_folder
from models.backends.cpu import has_int8_instructions
from models.backends.load import ModelStore, load_unet
from models.catalog import load_catalogue
from models.types import Size
from models.unet.build import new_unet
from models.unet.letterbox import unet_letterbox

ENTRY = "models: {blind: {architecture: unet-mobilenetv2, licence: CC0-1.0, file: blind.safetensors}}\n"
BLIND = np.array([1, 0, 0, 0, 0], np.float32)


@pytest.mark.skipif(not has_int8_instructions(), reason="int8 is tried on processors with instructions for it alone")
def test_a_network_that_finds_no_fruit_is_served_in_float32_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = new_unet("unet-mobilenetv2", 0).state_dict()
    tensors["segmentation_head.0.weight"].zero_()
    tensors["segmentation_head.0.bias"].copy_(torch.from_numpy(BLIND))
    safetensors.torch.save_file(tensors, tmp_path / "blind.safetensors")
    (tmp_path / "models.yaml").write_text(ENTRY)
    entry = load_catalogue(tmp_path / "models.yaml")["blind"]
    model_store = ModelStore(tmp_path / "cache", unet_precision="int8")

    with caplog.at_level(logging.INFO, "pomona.openvino"):
        unet = load_unet(entry, "openvino", model_store)

    letterbox = unet_letterbox(Size(64, 96), 64 * 96)
    (output,) = unet.infer([unet.prepare(np.zeros((64, 96, 3), np.uint8), letterbox)])
    np.testing.assert_array_equal(output, np.broadcast_to(BLIND[:, None, None], (5, 64, 96)))
    folder = converted_folder(entry, model_store.cache_dir, "int8")
    assert json.loads((folder / PRECISION).read_text())["precision"] == "fp32"
    assert "blind: served in float32: no fruit and no infected pixel was found to compare" in caplog.messages
    assert not converted_folder(entry, model_store.cache_dir, "fp32").exists()
