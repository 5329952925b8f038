"""`torch.compile` for encoders, block by block.

All blocks of a kind share their compiled code: ViT-H's 32 cost no more to compile than two, which is seconds instead of
minutes for every batch size. What lies between the blocks stays as it is.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Final

from segment_anything.modeling.image_encoder import Block
from timm.models.tiny_vit import MBConv, TinyVitBlock
from torch import Tensor, nn

_BLOCKS: Final = (Block, TinyVitBlock, MBConv)

_SHAPES: Final = 256
"""Kinds of blocks times batch sizes, over all models of a process; beyond it PyTorch silently stops compiling."""


def twin(module: nn.Module) -> nn.Module:
    """A copy that shares parameters and buffers, so that what is done to its modules is not done to the original's."""
    return copy.deepcopy(
        module, {id(tensor): tensor for tensor in itertools.chain(module.parameters(), module.buffers())}
    )


class Compiler:
    """Compiles each encoder once, and its code once for each shape.

    Args:
        backend: of `torch.compile`.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self._backend = backend
        self._compiled: dict[nn.Module, nn.Module] = {}

    def __call__(self, encoder: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        """Compile `encoder` for batches of the example's shape; takes seconds to minutes.

        Raises:
            Exception: whatever a compiler fails with; there may be no C compiler, say.
        """
        compiled = self._compiled.get(encoder)
        if compiled is None:
            compiled = self._compiled[encoder] = twin(encoder)
            blocks = [module for module in compiled.modules() if isinstance(module, _BLOCKS)]
            for block in blocks or [compiled]:
                block.compile(backend=self._backend, dynamic=False, recompile_limit=_SHAPES)
        compiled(example)
        return compiled
