"""Our encoder and decoder against segment-anything's own, on seeded random weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor, nn

from models.errors import BadCheckpoint
from models.letterbox import letterbox_for
from models.sam.build import SamModel, build_sam
from models.sam.prompts import pack, position_grid
from models.types import Box, Logits, Point, Prompt, Size

BLOCKS = {"vit_b": 12, "vit_l": 6, "vit_h": 8}
"""Blocks of each encoder that are run, up to the first of those whose attention is global, or all.

All 32 of ViT-H take minutes, and are of the same two kinds.
"""

LETTERBOX = letterbox_for(Size(1024, 1024))
GUESS: Logits = np.random.default_rng(5).normal(0, 8, (256, 256)).astype(np.float32)


@dataclass(frozen=True)
class Pair:
    ours: SamModel
    reference: Sam


@pytest.fixture(scope="module", params=BLOCKS)
def pair(request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(0)
    reference = sam_model_registry[request.param]().eval()
    # Fresh position embeddings and biases are zero: random ones are seen in the output.
    with torch.no_grad():
        for name, tensor in reference.named_parameters():
            if "pos" in name or name.endswith("bias"):
                tensor.normal_(0, 0.02)
    name = request.param.replace("_", "-")
    ours = build_sam(f"sam-{name}", reference.state_dict())
    windows = []
    for encoder in (ours.encoder, reference.image_encoder):
        blocks = encoder.get_submodule("blocks")
        assert isinstance(blocks, nn.ModuleList)
        windows.append([block.window_size for block in blocks])
        encoder.blocks = blocks[: BLOCKS[request.param]]
    assert windows[0] == windows[1]
    assert 0 in windows[0][: BLOCKS[request.param]]
    return Pair(ours, reference)


def relative_error(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


def test_the_encoder_agrees_with_the_reference(pair: Pair) -> None:
    torch.manual_seed(1)
    image = torch.randn(1, 3, 1024, 1024)
    with torch.inference_mode():
        ours = pair.ours.encoder(image)
        reference = pair.reference.image_encoder(image)
    assert relative_error(ours, reference) <= 1e-3


def test_the_position_grid_agrees_with_the_reference_and_a_smaller_one_is_its_corner(pair: Pair) -> None:
    matrix = pair.ours.decoder.position_matrix.numpy()
    reference = pair.reference.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2).numpy()
    whole = position_grid(matrix, 1024, Size(64, 64))
    np.testing.assert_allclose(whole, reference, atol=1e-4)
    corner = position_grid(matrix, 1024, Size(44, 28))
    np.testing.assert_array_equal(corner[0].reshape(44, 28, 256), whole[0].reshape(64, 64, 256)[:44, :28])


def test_the_position_embeddings_of_a_vit_take_no_other_letterbox(pair: Pair) -> None:
    assert not pair.ours.flexible


PROMPTS = {
    "a point": Prompt((Point(500, 375),)),
    "points": Prompt((Point(500, 375), Point(80.5, 900.25, 0), Point(700, 700))),
    "a box": Prompt(box=Box(100, 150, 800, 700)),
    "points with a box": Prompt((Point(500, 375), Point(110, 160, 0)), box=Box(100, 150, 800, 700)),
    "a mask": Prompt(mask=GUESS),
    "a point with a mask": Prompt((Point(500, 375),), mask=GUESS),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_the_decoder_agrees_with_the_reference(pair: Pair, name: str) -> None:
    prompt = PROMPTS[name]
    torch.manual_seed(2)
    embedding = torch.randn(1, 256, 64, 64)
    packed = pack([prompt], [LETTERBOX])
    with torch.inference_mode():
        logits, scores = pair.ours.decoder(
            embedding,
            torch.zeros(1, dtype=torch.int64),
            torch.from_numpy(packed.points),
            torch.from_numpy(packed.labels),
            torch.from_numpy(position_grid(pair.ours.decoder.position_matrix.numpy(), packed.side, packed.cells)),
            None if packed.mask_inputs is None else torch.from_numpy(packed.mask_inputs),
        )
        expected, expected_scores = reference_decode(pair.reference, embedding, prompt)
    assert relative_error(logits, expected) <= 1e-3
    assert relative_error(scores, expected_scores) <= 1e-3


def reference_decode(sam: Sam, embedding: Tensor, prompt: Prompt) -> tuple[Tensor, Tensor]:
    """All four masks and scores, by segment-anything's modules."""
    points = box = mask = None
    if prompt.points:
        coords = torch.tensor([[[point.x, point.y] for point in prompt.points]])
        points = (coords, torch.tensor([[point.label for point in prompt.points]]))
    if prompt.box is not None:
        box = torch.tensor([[prompt.box.x0, prompt.box.y0, prompt.box.x1, prompt.box.y1]])
    if prompt.mask is not None:
        mask = torch.from_numpy(np.asarray(prompt.mask, np.float32))[None, None]
    sparse, dense = sam.prompt_encoder(points=points, boxes=box, masks=mask)
    logits, scores = sam.mask_decoder.predict_masks(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    return logits, scores


def test_a_checkpoint_of_another_architecture_is_rejected_by_name() -> None:
    with pytest.raises(BadCheckpoint, match=r"does not fit the architecture mobile-sam: .*image_encoder"):
        build_sam("mobile-sam", {"image_encoder.pos_embed": torch.zeros(1)})


def test_a_checkpoint_in_half_precision_is_used_in_single_precision() -> None:
    torch.manual_seed(0)
    half = {name: tensor.half() for name, tensor in sam_model_registry["vit_b"]().state_dict().items()}
    model = build_sam("sam-vit-b", half)
    used = {*model.encoder.parameters(), *model.decoder.parameters(), *model.decoder.buffers()}
    assert {each.dtype for each in used if each.is_floating_point()} == {torch.float32}
    weight = "image_encoder.patch_embed.proj.weight"
    assert torch.equal(model.encoder.state_dict()[weight.removeprefix("image_encoder.")], half[weight].float())
