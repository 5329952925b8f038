"""The service's own errors, and one table from every error to how a caller sees it.

PomonaError                        (models.errors holds the rest of the tree)
└── RequestError                   the request itself is at fault
    ├── MalformedRequest           the parts or values are not those of the operation
    │   ├── MalformedJson
    │   ├── UnknownField
    │   ├── UnsupportedFormat      a mask format that is not supported
    │   └── UnsupportedInput       an input size or padding that the model does not support
    ├── WrongFamily                a model of another family than the operation needs
    ├── UnknownClass               no class of the detector has that name
    ├── NoImage                    neither an image nor an image id
    ├── UnknownImageId             never seen here, expired or evicted
    ├── UnknownSession             no session of that name, or another caller's
    ├── SessionExpired             it was idle for too long
    ├── FrameSizeChanged           a frame of another size than those before it
    ├── TooManyObjects             more objects in a session than allowed
    ├── UploadTooLarge
    ├── Unauthenticated            no API key, or none that is valid
    ├── PermissionDenied           the API key is for something else
    ├── NotFound
    └── MethodNotAllowed
├── ModelNotLoaded                 in the catalogue, but not loaded
├── NotReady                       models are still loading
├── TryLater
│   ├── RateLimited                the API key has as many requests as it may have
│   ├── TooManySessions            as many are open, or remember as much, as allowed
│   └── Overloaded                 refused on arrival: the queue is full
├── DeadlineUnreachable            refused on arrival: by the learned times it would be late
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
    """The parts or values are not those of the operation."""


class MalformedJson(MalformedRequest):
    """The field `request` is not JSON."""


class UnknownField(MalformedRequest):
    """A field or part is unknown."""


class UnsupportedFormat(MalformedRequest):
    """The mask format is not supported."""


class UnsupportedInput(MalformedRequest):
    """The model does not support the input size or the padding."""


class WrongFamily(RequestError):
    """The model is of another family than the operation needs: a U-Net for prompts, or a SAM for classes."""


class UnknownClass(RequestError):
    """No class of the detector has that name."""


class NoImage(RequestError):
    """There is neither an image nor an image id."""


class UnknownImageId(RequestError):
    """The embedding is not cached: never seen, expired or evicted."""


class UnknownSession(RequestError):
    """There is no session of this name, or it is another caller's."""


class SessionExpired(RequestError):
    """The session was idle for too long, and was closed."""


class FrameSizeChanged(RequestError):
    """The frame has another size than those of its session before it."""


class TooManyObjects(RequestError):
    """The session would follow more objects than allowed."""


class UploadTooLarge(RequestError):
    """The body is larger than the limit."""


class Unauthenticated(RequestError):
    """There is no API key, or none that is valid."""


class PermissionDenied(RequestError):
    """The API key is for something else."""


class TooMuchMemory(RequestError):
    """The request needs more memory than the service has for one."""


class NotFound(RequestError):
    """There is no such path."""


class MethodNotAllowed(RequestError):
    """The path does not allow this method."""


class ModelNotLoaded(UnknownModel):
    """The model is in the catalogue, but not loaded."""


class NotReady(PomonaError):
    """Models are still loading."""


class TryLater(PomonaError):
    """Nothing is wrong with the request but the time.

    Attributes:
        retry_after: seconds until there should be room.
    """

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class RateLimited(TryLater):
    """The API key has as many requests at a time, or per second, as it may have."""


class Overloaded(TryLater):
    """The queue is full, or one more request would make another one late."""


class TooManySessions(TryLater):
    """As many sessions are open, or they remember as much, as the service allows."""


class DeadlineUnreachable(PomonaError):
    """By the learned times the answer would be late; nothing was started."""


class DeadlineExceeded(PomonaError):
    """The deadline passed before the answer was ready."""


class PortTaken(PomonaError):
    """A port cannot be listened on."""


class TimedOut(PomonaError):
    """There was no answer within the request timeout."""


GrpcStatus = Literal[
    "INVALID_ARGUMENT",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "NOT_FOUND",
    "RESOURCE_EXHAUSTED",
    "UNIMPLEMENTED",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "INTERNAL",
]


@dataclass(frozen=True, slots=True)
class ProblemType:
    """How an error looks to a caller.

    Attributes:
        code: stable, for programs.
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


PROBLEMS: Final[Mapping[type[PomonaError], ProblemType]] = {
    domain.NotAnImage: ProblemType("not_an_image", "The bytes are not an image", 415, "INVALID_ARGUMENT"),
    domain.UnsupportedImageFormat: ProblemType(
        "unsupported_image_format", "Images of this format are not supported", 415, "INVALID_ARGUMENT"
    ),
    domain.TruncatedImage: ProblemType("truncated_image", "The image is truncated or damaged", 422, "INVALID_ARGUMENT"),
    domain.TooManyPixels: ProblemType("too_many_pixels", "The image has too many pixels", 413, "INVALID_ARGUMENT"),
    domain.ImageTooComplex: ProblemType(
        "image_too_complex", "The image would take too long to decode", 422, "INVALID_ARGUMENT"
    ),
    domain.NoPrompt: ProblemType("no_prompt", "The request has no prompts", 422, "INVALID_ARGUMENT"),
    domain.MalformedPrompt: ProblemType("malformed_prompt", "A prompt is malformed", 422, "INVALID_ARGUMENT"),
    domain.MaskError: ProblemType("malformed_prompt", "A prompt is malformed", 422, "INVALID_ARGUMENT"),
    domain.PromptOutsideImage: ProblemType(
        "prompt_outside_image", "A prompt lies outside the image", 422, "INVALID_ARGUMENT"
    ),
    domain.TooManyPrompts: ProblemType("too_many_prompts", "Too many prompts or points", 422, "INVALID_ARGUMENT"),
    domain.UnknownModel: ProblemType("unknown_model", "There is no such model", 404, "NOT_FOUND"),
    ModelNotLoaded: ProblemType("model_not_loaded", "The model is not loaded", 404, "NOT_FOUND"),
    MalformedRequest: ProblemType("malformed_request", "The request is malformed", 400, "INVALID_ARGUMENT"),
    MalformedJson: ProblemType("malformed_json", "The request field is not valid JSON", 400, "INVALID_ARGUMENT"),
    UnknownField: ProblemType("unknown_field", "A field is unknown", 422, "INVALID_ARGUMENT"),
    UnsupportedFormat: ProblemType("unsupported_format", "The mask format is not supported", 422, "INVALID_ARGUMENT"),
    UnsupportedInput: ProblemType(
        "unsupported_input", "The model does not support this input size or padding", 422, "INVALID_ARGUMENT"
    ),
    WrongFamily: ProblemType("wrong_model_family", "The model cannot do this operation", 422, "INVALID_ARGUMENT"),
    UnknownClass: ProblemType("unknown_class", "The detector knows no such class", 422, "INVALID_ARGUMENT"),
    NoImage: ProblemType("no_image", "The request has no image", 422, "INVALID_ARGUMENT"),
    UnknownImageId: ProblemType("unknown_image_id", "The image id is unknown", 404, "NOT_FOUND"),
    UnknownSession: ProblemType("unknown_session", "There is no such session", 404, "NOT_FOUND"),
    SessionExpired: ProblemType("session_expired", "The session has expired", 410, "NOT_FOUND"),
    FrameSizeChanged: ProblemType("frame_size_changed", "The frame has another size", 422, "INVALID_ARGUMENT"),
    TooManyObjects: ProblemType("too_many_objects", "The session follows too many objects", 422, "INVALID_ARGUMENT"),
    UploadTooLarge: ProblemType("upload_too_large", "The request body is too large", 413, "RESOURCE_EXHAUSTED"),
    Unauthenticated: ProblemType("unauthenticated", "A valid API key is needed", 401, "UNAUTHENTICATED"),
    PermissionDenied: ProblemType("permission_denied", "The API key does not permit this", 403, "PERMISSION_DENIED"),
    TooMuchMemory: ProblemType("too_much_memory", "The request needs too much memory", 413, "RESOURCE_EXHAUSTED"),
    NotFound: ProblemType("not_found", "There is no such path", 404, "UNIMPLEMENTED"),
    MethodNotAllowed: ProblemType("method_not_allowed", "The path does not allow this method", 405, "UNIMPLEMENTED"),
    NotReady: ProblemType("not_ready", "Models are still loading", 503, "UNAVAILABLE", retry_after=2),
    RateLimited: ProblemType(
        "rate_limited", "The API key has as many requests as it may have", 429, "RESOURCE_EXHAUSTED", retry_after=1
    ),
    Overloaded: ProblemType(
        "overloaded", "There are more requests than can be answered in time", 429, "RESOURCE_EXHAUSTED", retry_after=1
    ),
    TooManySessions: ProblemType(
        "too_many_sessions", "There are as many sessions as allowed", 429, "RESOURCE_EXHAUSTED", retry_after=5
    ),
    DeadlineUnreachable: ProblemType("deadline_unreachable", "The deadline cannot be met", 504, "DEADLINE_EXCEEDED"),
    DeadlineExceeded: ProblemType("deadline_exceeded", "The deadline has passed", 504, "DEADLINE_EXCEEDED"),
    TimedOut: ProblemType("timed_out", "There was no answer within the request timeout", 504, "DEADLINE_EXCEEDED"),
    PomonaError: ProblemType("internal_error", "Something failed on the server", 500, "INTERNAL"),
}


def problem_of(error: PomonaError) -> ProblemType:
    """Return the row of the error's class or of its nearest ancestor."""
    return next(PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS)
