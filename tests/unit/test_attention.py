"""The encoders' attention against segment-anything's own layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn

from models.backends.torch_backend import convert_weights_to_bf16
from models.sam.attention import Form, RelativeAttention, bound_attention_memory, fuse_attention

FORMS: list[Form] = ["mask", "appended"]
IMAGES = 2


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """So little work is done sooner by one thread, above all where other processes keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomised(module: nn.Module) -> nn.Module:
    """Seeded weights throughout: fresh position embeddings and biases are zero, and would not be seen."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.named_parameters():
        scale = 1.0 if "pos" in name else 0.1
        nn.init.normal_(tensor, 0, scale, generator=generator)
    return module.eval().requires_grad_(requires_grad=False)


def small_vit(channels: int) -> ImageEncoderViT:
    """8 x 8 tokens, windows of 3 x 3 that do not divide them, two blocks of each kind."""
    encoder = ImageEncoderViT(
        img_size=128,
        embed_dim=2 * channels,
        depth=4,
        num_heads=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1, 3),
    )
    return randomised(encoder)


def images() -> Tensor:
    return torch.randn(IMAGES, 3, 128, 128, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [64, 80], ids=["ViT-B and L", "ViT-H"])
@pytest.mark.parametrize("side", [14, 64])
def test_a_head_of_the_real_sizes_agrees_with_the_reference(channels: int, side: int, form: Form) -> None:
    reference = randomised(Attention(channels, num_heads=1, use_rel_pos=True, input_size=(side, side)))
    ours = RelativeAttention(copy.deepcopy(reference))
    ours.form = form
    tokens = torch.randn(1, side, side, channels, generator=torch.Generator().manual_seed(1))
    expected = reference(tokens)
    # The same sums in another order: float32 rounds each by 6e-8 of its size.
    torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def in_form(form: Form, channels: int) -> tuple[ImageEncoderViT, ImageEncoderViT]:
    """The reference's encoder, and the same with fused attention in one form in all blocks."""
    reference = small_vit(channels)
    ours = copy.deepcopy(reference)
    fuse_attention(ours)
    for block in ours.blocks:
        block.attn.form = form
    return reference, ours


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("channels", [64, 80])
def test_an_encoder_agrees_with_the_reference(channels: int, form: Form) -> None:
    reference, ours = in_form(form, channels)
    expected = reference(images())
    largest = float(expected.abs().max())
    # Four blocks of rounding.
    torch.testing.assert_close(ours(images()), expected, rtol=0, atol=1e-4 * largest)
    for block in ours.blocks:
        block.attn.rel_pos_w.zero_()
    assert float((ours(images()) - expected).abs().max()) > 0.01 * largest, "the biases must matter"


@pytest.mark.parametrize("form", FORMS)
def test_biases_in_bfloat16_are_as_precise_as_the_references(form: Form) -> None:
    reference, ours = in_form(form, 80)
    exact = reference(images())
    with torch.autocast("cpu", torch.bfloat16):
        error, theirs = ((encoder(images()).float() - exact).norm() for encoder in (ours, reference))
    # Both round at about the same places; a bias lost or doubled would be ten times as far away.
    assert float(error) <= 1.5 * float(theirs)


def test_only_attention_to_the_whole_image_changes_its_form_to_bound_memory() -> None:
    _, ours = in_form("mask", 64)
    bound_attention_memory(ours)
    assert [block.attn.form for block in ours.blocks] == ["mask", "appended", "mask", "appended"]


def test_a_checkpoint_of_the_reference_loads_strictly() -> None:
    reference = small_vit(64)
    ours = copy.deepcopy(reference)
    fuse_attention(ours)
    names = list(reference.state_dict())
    assert list(ours.load_state_dict(reference.state_dict(), strict=True).missing_keys) == []
    assert list(ours.state_dict()) == names


def test_weights_stored_in_bfloat16_give_the_results_of_autocast() -> None:
    encoder = small_vit(64)
    fuse_attention(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        expected = encoder(images())
        convert_weights_to_bf16(encoder)
        ours = encoder(images())
    assert torch.equal(ours, expected)
    kept = {name for name, tensor in encoder.named_parameters() if tensor.dtype == torch.float32}
    assert all("norm" in name or "pos" in name or name.startswith("neck") for name in kept)
    assert not any(name.endswith(("qkv.weight", "lin1.weight")) for name in kept)
