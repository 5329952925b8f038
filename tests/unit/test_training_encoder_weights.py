from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from models.errors import BadCheckpoint
from models.training.encoder_weights import load_encoder
from models.unet.build import new_unet

# torchvision's first MobileNetV2 had the layers of a block in one list; these are that list's places.
_OLD_FIRST = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}
_OLD = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}


def encoder(seed: int) -> nn.Module:
    return new_unet("unet-mobilenetv2", seed).get_submodule("encoder")


def in_their_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """How the file names an encoder's tensors."""
    named = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[2] == "conv":
            layers = _OLD_FIRST if parts[1] == "1" else _OLD
            parts = [*parts[:3], layers[".".join(parts[3:-1])], parts[-1]]
        named[".".join(parts)] = tensor
    return named


def test_every_tensor_of_the_file_finds_its_place() -> None:
    source, target = encoder(1), encoder(2)
    tensors = {name: torch.rand_like(each) if each.is_floating_point() else each + 7
               for name, each in source.named_parameters()}  # fmt: skip
    tensors |= {name: torch.rand(each.shape) if each.is_floating_point() else each + 7
                for name, each in source.named_buffers()}  # fmt: skip
    renamed = in_their_names(tensors)
    assert len(renamed) == 312
    assert "features.1.conv.3.weight" in renamed
    assert "features.17.conv.7.running_var" in renamed
    load_encoder(target, renamed)
    loaded = dict(target.named_parameters()) | dict(target.named_buffers())
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"features.2.conv.0.weight": None}, id="missing"),
        pytest.param({"classifier.1.weight": torch.zeros(1000, 1280)}, id="left over"),
        pytest.param({"features.2.conv.0.weight": torch.zeros(1)}, id="another shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(change: dict[str, Tensor | None]) -> None:
    source, target = encoder(1), encoder(2)
    tensors = in_their_names(dict(source.named_parameters()) | dict(source.named_buffers()))
    changed = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
    with pytest.raises(BadCheckpoint, match="do not fit the encoder"):
        load_encoder(target, changed)
    assert torch.equal(target.get_parameter("features.0.0.weight"), encoder(2).get_parameter("features.0.0.weight"))
