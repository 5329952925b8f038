"""The encoders' attention against segment-anything's own layers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn

from models.backends.encoder_tools import lower_weights, variants_of
from models.sam.attention import Form, Forms, RelativeAttention, fuse_attention, set_forms

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


@pytest.mark.parametrize(("windows", "whole"), list(itertools.product(FORMS, FORMS)))
@pytest.mark.parametrize("channels", [64, 80])
def test_an_encoder_agrees_with_the_reference_whatever_the_forms(channels: int, windows: Form, whole: Form) -> None:
    reference = small_vit(channels)
    ours = copy.deepcopy(reference)
    fuse_attention(ours)
    set_forms(ours, Forms(windows, whole))
    expected = reference(images())
    # Four blocks of rounding.
    torch.testing.assert_close(ours(images()), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_the_biases_matter_in_that_comparison() -> None:
    reference = small_vit(64)
    expected = reference(images())
    for block in reference.blocks:
        block.attn.rel_pos_w.zero_()
    assert float((reference(images()) - expected).abs().max()) > 0.01 * float(expected.abs().max())


def test_a_checkpoint_of_the_reference_loads_strictly() -> None:
    reference = small_vit(64)
    ours = copy.deepcopy(reference)
    fuse_attention(ours)
    names = list(reference.state_dict())
    assert list(ours.load_state_dict(reference.state_dict(), strict=True).missing_keys) == []
    assert list(ours.state_dict()) == names


def test_the_forms_of_the_blocks_are_set_by_their_kind() -> None:
    ours = small_vit(64)
    fuse_attention(ours)
    set_forms(ours, Forms(windows="appended", whole="mask"))
    assert [block.attn.form for block in ours.blocks] == ["appended", "mask", "appended", "mask"]


def test_variants_share_their_weights_and_agree() -> None:
    encoder = small_vit(64)
    fuse_attention(encoder)
    plain, *others = variants_of(encoder).values()
    assert plain is encoder
    assert len(others) == 3
    expected = plain(images())
    for variant in others:
        assert all(ours is theirs for ours, theirs in zip(variant.parameters(), plain.parameters(), strict=True))
        torch.testing.assert_close(variant(images()), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_weights_kept_in_bfloat16_answer_as_those_that_autocast_converts() -> None:
    encoder = small_vit(64)
    fuse_attention(encoder)
    with torch.autocast("cpu", torch.bfloat16):
        expected = encoder(images())
        lower_weights(encoder)
        ours = encoder(images())
    assert torch.equal(ours, expected)
    kept = {name for name, tensor in encoder.named_parameters() if tensor.dtype == torch.float32}
    assert all("norm" in name or "pos" in name or name.startswith("neck") for name in kept)
    assert not any(name.endswith(("qkv.weight", "lin1.weight")) for name in kept)


@pytest.mark.parametrize("form", FORMS)
def test_in_bfloat16_the_biases_stay_as_precise_as_the_references(form: Form) -> None:
    reference = small_vit(80)
    ours = copy.deepcopy(reference)
    fuse_attention(ours)
    set_forms(ours, Forms(form, form))
    exact = reference(images())
    with torch.autocast("cpu", torch.bfloat16):
        error, theirs = ((encoder(images()).float() - exact).norm() for encoder in (ours, reference))
    # Both round at about the same places; a bias lost or doubled would be ten times as far away.
    assert float(error) <= 1.5 * float(theirs)
