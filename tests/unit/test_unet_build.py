from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.catalog import Architecture
from models.errors import BadCheckpoint
from models.unet.build import ENCODERS, PixelsToLogits, build_unet, new_unet
from models.weights.checkpoints import load_state_dict
from tests.untrained import write_untrained_unet

ARCHITECTURES = sorted(ENCODERS)


def test_every_unet_of_the_catalogue_can_be_built() -> None:
    assert {architecture for architecture in Architecture if architecture.family == "unet"} == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_network_gives_three_logits_and_two_votes_for_every_pixel(architecture: str) -> None:
    with torch.inference_mode():
        logits = new_unet(architecture, 0).eval()(torch.zeros(2, 3, 64, 96))
    assert logits.shape == (2, 5, 64, 96)
    assert logits.dtype == torch.float32


def test_the_seed_alone_decides_the_weights_and_the_callers_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (new_unet("unet-mobilenetv2", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    name = "segmentation_head.0.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_stored_in_float16_load_as_float32(architecture: str, tmp_path: Path) -> None:
    path = tmp_path / "untrained.safetensors"
    write_untrained_unet(path, architecture, 3)
    original = new_unet(architecture, 3)
    assert path.stat().st_size < 2.1 * sum(parameter.numel() for parameter in original.parameters())
    loaded = build_unet(architecture, load_state_dict(path))
    assert not loaded.training
    for (name, tensor), (_, expected) in zip(loaded.state_dict().items(), original.state_dict().items(), strict=True):
        assert tensor.dtype == expected.dtype, name
        if tensor.is_floating_point():
            # float16 keeps 11 bits; below 6e-5 it loses them one by one, to steps of 6e-8.
            torch.testing.assert_close(tensor, expected, rtol=2**-11, atol=3e-8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"encoder.conv1.weight": None}, r"Missing key.*encoder\.conv1\.weight", id="missing"),
        pytest.param({"extra": torch.zeros(1)}, r"Unexpected key.*extra", id="unexpected"),
        pytest.param(
            {"segmentation_head.0.bias": torch.zeros(4)}, r"size mismatch.*5 output channels", id="four classes"
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_rejected(change: dict[str, torch.Tensor | None], words: str) -> None:
    tensors = {**new_unet("unet-resnet18", 0).state_dict(), **change}
    with pytest.raises(BadCheckpoint, match=rf"does not fit the architecture unet-resnet18: .*{words}"):
        build_unet("unet-resnet18", {name: tensor for name, tensor in tensors.items() if tensor is not None})


def test_a_checkpoint_of_the_other_architecture_is_rejected() -> None:
    with pytest.raises(BadCheckpoint, match="Name the architecture that it was trained with"):
        build_unet("unet-resnet18", new_unet("unet-mobilenetv2", 0).state_dict())


def test_pixels_are_normalised_by_the_mean_and_deviation_that_torchvision_names_for_its_imagenet_weights() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 64, 3), np.uint8)
    normalised = PixelsToLogits(torch.nn.Identity())(torch.from_numpy(pixels)).numpy()
    expected = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    # Float32 numbers up to 2.7.
    np.testing.assert_allclose(normalised, expected.transpose(0, 3, 1, 2), atol=1e-6)
