"""Client of Pomona: images and prompts in, masks and graded fruit out.

>>> from pomona import Client, Point
>>> with Client("http://localhost:3000") as pomona:
...     result = pomona.segment("orange.jpg", [Point(500, 375)])

Every exception that is raised on purpose is a `PomonaError`; `pomona.errors` shows the tree.
"""

from pomona._calling import DEFAULT_URL
from pomona._requests import (
    Attempt,
    Automatic,
    Call,
    Detect,
    Edges,
    Embed,
    FindInstances,
    FindText,
    Frame,
    Inspect,
    ListModels,
    Ready,
    Request,
    Segment,
    Semantic,
)
from pomona.async_client import AsyncClient
from pomona.client import Client
from pomona.errors import PomonaError
from pomona.http import AsyncHttpTransport, HttpTransport
from pomona.images import jpeg
from pomona.masks import Mask, PixelBox, ScoredMask
from pomona.prompts import BACKGROUND, FOREGROUND, Box, Point, Prompt
from pomona.proposals import EdgeMap, Progress, Proposals, ProposedMask
from pomona.results import (
    Detection,
    Detections,
    Embedding,
    FloatBox,
    FrameInfo,
    Fruit,
    ImageInfo,
    Inspection,
    Instance,
    Instances,
    Model,
    ModelUsed,
    Segmentation,
    SemanticMap,
    Verdict,
)
from pomona.retries import NO_RETRY, Retry, Timeout
from pomona.streams import FrameAnswer
from pomona.transports import AsyncTransport, Transport
from pomona.video import EndTracking, TrackedFrame, TrackedObject, TrackFrame

__version__ = "0.1.0"

__all__ = [
    "BACKGROUND",
    "DEFAULT_URL",
    "FOREGROUND",
    "NO_RETRY",
    "AsyncClient",
    "AsyncHttpTransport",
    "AsyncTransport",
    "Attempt",
    "Automatic",
    "Box",
    "Call",
    "Client",
    "Detect",
    "Detection",
    "Detections",
    "EdgeMap",
    "Edges",
    "Embed",
    "Embedding",
    "EndTracking",
    "FindInstances",
    "FindText",
    "FloatBox",
    "Frame",
    "FrameAnswer",
    "FrameInfo",
    "Fruit",
    "HttpTransport",
    "ImageInfo",
    "Inspect",
    "Inspection",
    "Instance",
    "Instances",
    "ListModels",
    "Mask",
    "Model",
    "ModelUsed",
    "PixelBox",
    "Point",
    "PomonaError",
    "Progress",
    "Prompt",
    "Proposals",
    "ProposedMask",
    "Ready",
    "Request",
    "Retry",
    "ScoredMask",
    "Segment",
    "Segmentation",
    "Semantic",
    "SemanticMap",
    "Timeout",
    "TrackFrame",
    "TrackedFrame",
    "TrackedObject",
    "Transport",
    "Verdict",
    "jpeg",
]
