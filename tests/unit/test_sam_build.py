"""A SAM from the tensors of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.sam.build import ARCHITECTURES, build_sam
from models.weights.checkpoints import load_state_dict


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(ARCHITECTURES["mobile-sam"]().state_dict())


@pytest.mark.parametrize("saved_in", [torch.float16, torch.bfloat16])
def test_a_checkpoint_saved_in_half_precision_is_used_in_float32(
    tensors: dict[str, Tensor], saved_in: torch.dtype, tmp_path: Path
) -> None:
    halved = {name: tensor.to(saved_in) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    torch.save(halved, tmp_path / "half.pt")
    model = build_sam("mobile-sam", load_state_dict(tmp_path / "half.pt"))
    expected = build_sam("mobile-sam", {name: tensor.float() for name, tensor in halved.items()})
    image = torch.randn(1, 3, 64, 128, generator=torch.Generator().manual_seed(1))
    prompt = (torch.zeros(1, dtype=torch.int64), torch.full((1, 1, 2), 0.5), torch.ones(1, 1, dtype=torch.int64))
    with torch.inference_mode():
        embedding = model.encoder(image)
        position = torch.zeros(1, embedding.shape[2] * embedding.shape[3], embedding.shape[1])
        logits, scores = model.decoder(embedding, *prompt, position)
        assert torch.equal(embedding, expected.encoder(image))
        assert torch.equal(logits, expected.decoder(embedding, *prompt, position)[0])
    assert {logits.dtype, scores.dtype} == {torch.float32}
