"""The service's own errors, and one table from every error to its answer.

PomonaError                        (models.errors holds the rest of the tree)
└── RequestError                   the request itself is at fault
    ├── MalformedRequest           not the parts or values that the endpoint takes
    │   ├── MalformedJson
    │   ├── UnknownField
    │   ├── UnsupportedFormat      a mask format that is not offered
    │   └── UnsupportedInput       an input size or padding that the model does not take
    ├── WrongFamily                a model that cannot do what was asked
    ├── NoImage                    neither an image nor an image id
    ├── UnknownImageId             never seen here, expired or evicted
    ├── UploadTooLarge
    ├── NotFound
    └── MethodNotAllowed
├── ModelNotLoaded                 in the catalogue, but not served here
├── NotReady                       models are still loading
├── Overloaded                     refused at the door: the queue is full
├── DeadlineUnreachable            refused at the door: by the learned times it would be late
├── DeadlineExceeded               admitted, but its deadline passed
└── TimedOut                       no answer within the request timeout
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from models import errors as domain
from models.errors import PomonaError, UnknownModel


class RequestError(PomonaError):
    """The request itself is at fault."""


class MalformedRequest(RequestError):
    """Not the parts or values that the endpoint takes."""


class MalformedJson(MalformedRequest):
    """The field `request` is not JSON."""


class UnknownField(MalformedRequest):
    """A field or part that the endpoint does not know."""


class UnsupportedFormat(MalformedRequest):
    """A mask format that is not offered."""


class UnsupportedInput(MalformedRequest):
    """An input size or a padding that the model does not take."""


class WrongFamily(RequestError):
    """A model that cannot do what was asked: a U-Net for prompts, or a SAM for classes."""


class NoImage(RequestError):
    """Neither an image nor an image id."""


class UnknownImageId(RequestError):
    """The embedding is not here: never seen, expired or evicted."""


class UploadTooLarge(RequestError):
    """The body is larger than the limit."""


class NotFound(RequestError):
    """No such path."""


class MethodNotAllowed(RequestError):
    """The path does not take this method."""


class ModelNotLoaded(UnknownModel):
    """In the catalogue, but not served here."""


class NotReady(PomonaError):
    """Models are still loading."""


class Overloaded(PomonaError):
    """The queue is full, or there is no place that makes nobody late.

    Attributes:
        retry_after: seconds until there should be room.
    """

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class DeadlineUnreachable(PomonaError):
    """By what was learned, the answer would be late; nothing was started."""


class DeadlineExceeded(PomonaError):
    """The deadline passed before the answer was there."""


class TimedOut(PomonaError):
    """No answer within the request timeout."""


GrpcStatus = Literal[
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """How an error is told to a caller.

    Attributes:
        code: stable and machine-readable.
        title: the same for every occurrence.
        status: HTTP status.
        grpc: name of the gRPC status.
        retry_after: seconds after which the same request may succeed, or None.
    """

    code: str
    title: str
    status: int
    grpc: GrpcStatus
    retry_after: int | None = None


PROBLEMS: Final[Mapping[type[PomonaError], Problem]] = {
    domain.NotAnImage: Problem("not_an_image", "The bytes are not an image", 415, "INVALID_ARGUMENT"),
    domain.UnsupportedImageFormat: Problem(
        "unsupported_image_format", "Images of this format are not read here", 415, "INVALID_ARGUMENT"
    ),
    domain.TruncatedImage: Problem("truncated_image", "The image ends early or is damaged", 422, "INVALID_ARGUMENT"),
    domain.TooManyPixels: Problem("too_many_pixels", "The image has too many pixels", 413, "INVALID_ARGUMENT"),
    domain.NoPrompt: Problem("no_prompt", "Nothing to segment was asked for", 422, "INVALID_ARGUMENT"),
    domain.MalformedPrompt: Problem("malformed_prompt", "A prompt is malformed", 422, "INVALID_ARGUMENT"),
    domain.MaskError: Problem("malformed_prompt", "A prompt is malformed", 422, "INVALID_ARGUMENT"),
    domain.PromptOutsideImage: Problem(
        "prompt_outside_image", "A prompt lies outside the image", 422, "INVALID_ARGUMENT"
    ),
    domain.TooManyPrompts: Problem("too_many_prompts", "Too many prompts or points", 422, "INVALID_ARGUMENT"),
    domain.UnknownModel: Problem("unknown_model", "No model of that name", 404, "NOT_FOUND"),
    ModelNotLoaded: Problem("model_not_loaded", "The model is not loaded here", 404, "NOT_FOUND"),
    MalformedRequest: Problem("malformed_request", "The request is malformed", 400, "INVALID_ARGUMENT"),
    MalformedJson: Problem("malformed_json", "The request field is not valid JSON", 400, "INVALID_ARGUMENT"),
    UnknownField: Problem("unknown_field", "A field is not known here", 422, "INVALID_ARGUMENT"),
    UnsupportedFormat: Problem("unsupported_format", "Masks of this format are not offered", 422, "INVALID_ARGUMENT"),
    UnsupportedInput: Problem(
        "unsupported_input", "The model does not take this input size or padding", 422, "INVALID_ARGUMENT"
    ),
    WrongFamily: Problem("wrong_model_family", "The model cannot do what was asked", 422, "INVALID_ARGUMENT"),
    NoImage: Problem("no_image", "Neither an image nor an image id", 422, "INVALID_ARGUMENT"),
    UnknownImageId: Problem("unknown_image_id", "The image is not known here", 404, "NOT_FOUND"),
    UploadTooLarge: Problem("upload_too_large", "The request body is too large", 413, "RESOURCE_EXHAUSTED"),
    NotFound: Problem("not_found", "No such path", 404, "UNIMPLEMENTED"),
    MethodNotAllowed: Problem("method_not_allowed", "The path does not take this method", 405, "UNIMPLEMENTED"),
    NotReady: Problem("not_ready", "Models are still loading", 503, "UNAVAILABLE", retry_after=2),
    Overloaded: Problem(
        "overloaded", "More requests than can be answered in time", 429, "RESOURCE_EXHAUSTED", retry_after=1
    ),
    DeadlineUnreachable: Problem("deadline_unreachable", "The deadline cannot be met", 504, "DEADLINE_EXCEEDED"),
    DeadlineExceeded: Problem("deadline_exceeded", "The deadline has passed", 504, "DEADLINE_EXCEEDED"),
    TimedOut: Problem("timed_out", "No answer within the request timeout", 504, "DEADLINE_EXCEEDED"),
    PomonaError: Problem("internal_error", "Something failed on the server", 500, "INTERNAL"),
}


def problem_of(error: PomonaError) -> Problem:
    """The table's row of the error's class or of its nearest ancestor."""
    return next(PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS)
