"""What is behind the fruit, by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np

from models.synthetic.fields import Field
from models.synthetic.foliage import paint_foliage
from models.synthetic.lines import belt, cups, rollers
from models.synthetic.options import Background
from models.synthetic.scene import Scene
from models.synthetic.tables import cloth, table
from models.types import Size


def paint_ground(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    """Paint what is behind the fruit, for light of strength 1: float32 (height, width, 3), linear."""
    return _PAINTERS[scene.background](scene, size, rng)


def _white(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    del scene
    return np.full((size.height, size.width, 3), rng.uniform(0.85, 1.0), np.float32)


def _black(scene: Scene, size: Size, rng: np.random.Generator) -> Field:
    del scene
    return np.full((size.height, size.width, 3), max(0.0, rng.uniform(-0.02, 0.02)), np.float32)


_PAINTERS: Final[Mapping[Background, Callable[[Scene, Size, np.random.Generator], Field]]] = MappingProxyType(
    {
        Background.BELT: belt,
        Background.ROLLERS: rollers,
        Background.CUPS: cups,
        Background.TABLE: table,
        Background.CLOTH: cloth,
        Background.FOLIAGE: paint_foliage,
        Background.WHITE: _white,
        Background.BLACK: _black,
    }
)
