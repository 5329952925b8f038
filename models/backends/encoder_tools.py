"""What can be done to a SAM's encoder on a CUDA device: bfloat16 weights, forms of attention, compiled code, graphs."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Final, get_args

import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from models.backends.compiled import Compiler, twin
from models.backends.cuda_graphs import GraphRecorder
from models.backends.tuning import Tools, stopwatch_of
from models.sam.attention import Form, Forms, set_forms

_LOWERED: Final = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)

_PLAIN: Final = Forms(windows="mask", whole="appended")
"""The one that needs least memory, so that the plain encoder takes the largest batches."""


def lower_weights(module: nn.Module) -> None:
    """Keep the weights in bfloat16 that autocast would convert at every run; the answers are the same.

    Normalisations and position embeddings stay in float32. For ViT-H this spares 1.2 GiB of memory, and 3.6 GiB of
    traffic for every batch.

    Args:
        module: to be run with autocast to bfloat16 from now on.
    """
    for layer in module.modules():
        if isinstance(layer, _LOWERED):
            layer.to(torch.bfloat16)


def cuda_tools(encoder: nn.Module, device: torch.device) -> Tools:
    """All forms that may be the fastest on a CUDA device.

    Args:
        encoder: on that device, its weights final.
        device: a CUDA device.
    """
    return Tools(
        variants_of(encoder),
        compile=Compiler(),
        record=GraphRecorder(device),
        stopwatch=stopwatch_of(partial(torch.cuda.synchronize, device)),
    )


def variants_of(encoder: nn.Module) -> dict[str, nn.Module]:
    """A ViT with its biases in all forms, one encoder for each, which share their weights; another encoder as it is."""
    if not isinstance(encoder, ImageEncoderViT):
        return {"plain": encoder}
    set_forms(encoder, _PLAIN)
    variants = {_named(_PLAIN): encoder}
    for windows, whole in itertools.product(get_args(Form), repeat=2):
        forms = Forms(windows, whole)
        if forms != _PLAIN:
            variants[_named(forms)] = twin(encoder)
            set_forms(variants[_named(forms)], forms)
    return variants


def _named(forms: Forms) -> str:
    return f"biases of windows {forms.windows}, of the whole {forms.whole}"
