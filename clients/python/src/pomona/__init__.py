"""Pomona's client: pictures and prompts in, masks and graded fruits out.

>>> from pomona import Client, Point
>>> with Client("http://localhost:3000") as pomona:
...     result = pomona.segment("orange.jpg", [Point(500, 375)])

All that it raises on purpose is a `PomonaError`; the tree is drawn in `pomona.errors`.
"""

from pomona.asks import Ask, Embed, Frame, Inspect, ListModels, Ready, Segment, Semantic
from pomona.async_client import AsyncClient
from pomona.client import DEFAULT_URL, Client
from pomona.errors import PomonaError
from pomona.facts import Capture, ImageInfo, ModelUsed
from pomona.http_transport import AsyncHttpTransport, HttpTransport
from pomona.images import jpeg
from pomona.masks import Mask, PixelBox, ScoredMask
from pomona.results import (
    Embedding,
    Fruit,
    Inspection,
    Model,
    Segmentation,
    SemanticMap,
)
from pomona.retrying import NO_RETRY, Retry, Timeout
from pomona.shapes import BACKGROUND, FOREGROUND, Box, Point, Prompt
from pomona.streams import FrameAnswer
from pomona.transport import AsyncTransport, Transport

__version__ = "0.1.0"

__all__ = [
    "BACKGROUND",
    "DEFAULT_URL",
    "FOREGROUND",
    "NO_RETRY",
    "Ask",
    "AsyncClient",
    "AsyncHttpTransport",
    "AsyncTransport",
    "Box",
    "Capture",
    "Client",
    "Embed",
    "Embedding",
    "Frame",
    "FrameAnswer",
    "Fruit",
    "HttpTransport",
    "ImageInfo",
    "Inspect",
    "Inspection",
    "ListModels",
    "Mask",
    "Model",
    "ModelUsed",
    "PixelBox",
    "Point",
    "PomonaError",
    "Prompt",
    "Ready",
    "Retry",
    "ScoredMask",
    "Segment",
    "Segmentation",
    "Semantic",
    "SemanticMap",
    "Timeout",
    "Transport",
    "jpeg",
]
