"""What `/v1/inspect` may be asked, and how it answers, for the OpenAPI description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

INSPECT: Final[Mapping[str, Any]] = {
    "mode": "auto",
    "format": "rle",
    "grades": [{"grade": "A", "max_infected_fraction": 0.01}, {"grade": "B", "max_infected_fraction": 0.1}],
    "overlay": False,
    "frame_id": "cam2-004711",
    "trigger_id": "lane3-000815",
    "captured_at_ns": 1767225600000000000,
}

INSPECTED: Final[Mapping[str, Any]] = {
    "request_id": "5b6c1d0f5d5c4f0e9d0c6f1f2a3b4c5d",
    "image": {"id": "6ae3139a394ffc39eca2210a4d76677f", "width": 16, "height": 8},
    "models": {
        "unet": {"name": "my-unet", "revision": "0f5c1a2b3c4d", "input_width": 448, "input_height": 224},
        "sam": {"name": "mobile-sam", "revision": "6dbb90523a35", "input_size": 1024, "padding": "none"},
    },
    "fruits": [
        {
            "id": 1,
            "box": [2, 1, 6, 6],
            "area": 20,
            "mask": {"size": [8, 16], "counts": "a05300000_2"},
            "infected_mask": {"size": [8, 16], "counts": "k0170e2"},
            "infected_fraction": 0.1,
            "class": "infected",
            "confidence": 0.98,
            "grade": "B",
            "truncated": False,
            "refined": True,
        }
    ],
    "mode": "accurate",
    "degraded": False,
    "reason": None,
    "frame": {
        "frame_id": "cam2-004711",
        "trigger_id": "lane3-000815",
        "captured_at_ns": 1767225600000000000,
    },
    "overlay": None,
    "batch": {"infer": 1, "encode": 1, "prompt": 1},
    "timing_ms": {
        "decode": 14.2,
        "queue": 1.1,
        "infer": 18.4,
        "encode": 431.0,
        "prompt": 29.7,
        "postprocess": 2.9,
        "total": 499.8,
    },
}
"""Of an image of 16 x 8 pixels: its masks are those that the other fields tell of."""
