"""Every exception that this package raises on purpose.

PomonaError
├── RequestRefused                 the service refused the request; sending it again does not help
│   ├── ImageError                 the image cannot be used
│   │   ├── UnreadableImage        raised here: a file that cannot be read, an array that is not an image
│   │   ├── NotAnImage             not_an_image
│   │   ├── UnsupportedImageFormat unsupported_image_format
│   │   ├── TruncatedImage         truncated_image
│   │   ├── TooManyPixels          too_many_pixels
│   │   ├── ImageTooComplex        image_too_complex
│   │   ├── UploadTooLarge         upload_too_large
│   │   ├── TooMuchMemory          too_much_memory
│   │   ├── NoImage                no_image
│   │   └── UnknownImageId         unknown_image_id
│   ├── PromptError                the prompts cannot be used
│   │   ├── NoPrompt               no_prompt
│   │   ├── MalformedPrompt        malformed_prompt
│   │   ├── PromptOutsideImage     prompt_outside_image
│   │   └── TooManyPrompts         too_many_prompts
│   ├── ModelError                 the model cannot be used
│   │   ├── UnknownModel           unknown_model
│   │   ├── ModelNotLoaded         model_not_loaded
│   │   ├── WrongModelFamily       wrong_model_family
│   │   ├── UnsupportedInput       unsupported_input
│   │   └── UnknownClass           unknown_class
│   ├── SessionError               the session of `track` cannot be used
│   │   ├── UnknownSession         unknown_session
│   │   ├── SessionExpired         session_expired: it had no frame for too long
│   │   ├── FrameSizeChanged       frame_size_changed
│   │   └── TooManyObjects         too_many_objects
│   ├── AccessError                the caller may not do this
│   │   ├── Unauthenticated        unauthenticated: no API key, or none that is valid
│   │   └── PermissionDenied       permission_denied: the API key is for something else
│   └── MalformedRequest           malformed_request
│       ├── MalformedJson          malformed_json
│       ├── UnknownField           unknown_field
│       ├── UnsupportedFormat      unsupported_format
│       ├── NotFound               not_found: not a Pomona at this address, or an older one
│       └── MethodNotAllowed       method_not_allowed
├── TryLater                       nothing is wrong with the request
│   ├── RateLimited                rate_limited: the API key has as many requests as it may have
│   ├── TooManySessions            too_many_sessions
│   ├── Overloaded                 overloaded
│   └── NotReady                   not_ready
├── TooLate                        no answer in time
│   ├── DeadlineUnreachable        deadline_unreachable: refused before any work was done
│   ├── DeadlineExceeded           deadline_exceeded: the deadline passed, in the service or here
│   ├── TimedOut                   timed_out: the service's own limit
│   └── NoAnswer                   a limit of `Timeout` passed here
├── FrameDropped                   a newer frame of the stream was sent instead (`newest_first`)
├── InternalError                  internal_error
├── ConnectionFailed               the service cannot be reached, or the connection broke
│   └── StreamBroken               it broke in the middle of a stream
├── BadAnswer                      a response that Pomona does not send
├── InvalidArgument                an argument that this package cannot use; also a ValueError
├── ClientClosed                   used after it was closed
└── MissingPackage                 an extra of this package that is not installed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final


class PomonaError(Exception):
    """Base class of all errors of this package.

    Attributes:
        code: the service's stable code, for programs; None for errors that were found here.
        detail: what was wrong and what must hold, for people.
        request_id: identifies the request in the service's log; None where it did not get that far.
        retry_after: seconds after which the service said that the same request may succeed, or None.
    """

    default_code: ClassVar[str | None] = None

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        parts = (self.code, self.detail or (None if self.code else type(self).__name__))
        return ": ".join(part for part in parts if part) + (f" (request {self.request_id})" if self.request_id else "")


class RequestRefused(PomonaError):
    """The service refused the request; sending it again does not help."""


class ImageError(RequestRefused):
    """The image cannot be used."""


class UnreadableImage(ImageError):
    """A file that cannot be read, or an array or an object that is not an image; nothing was sent."""


class NotAnImage(ImageError):
    """The bytes are not in an image format."""

    default_code = "not_an_image"


class UnsupportedImageFormat(ImageError):
    """An image in a format that the service does not read."""

    default_code = "unsupported_image_format"


class TruncatedImage(ImageError):
    """An image that ends early or is damaged."""

    default_code = "truncated_image"


class TooManyPixels(ImageError):
    """An image with more pixels than the service accepts."""

    default_code = "too_many_pixels"


class ImageTooComplex(ImageError):
    """An image that would take the service too long to decode, such as a JPEG of hundreds of scans."""

    default_code = "image_too_complex"


class UploadTooLarge(ImageError):
    """More bytes than the service accepts."""

    default_code = "upload_too_large"


class TooMuchMemory(ImageError):
    """An image, with what is asked of it, that needs more memory than the service has for one request."""

    default_code = "too_much_memory"


class NoImage(ImageError):
    """Neither an image nor an image id."""

    default_code = "no_image"


class UnknownImageId(ImageError):
    """The service does not know this image id, or no longer."""

    default_code = "unknown_image_id"


class SessionError(RequestRefused):
    """The session of `track` cannot be used."""


class UnknownSession(SessionError):
    """There is no such session: it was never opened, or it was ended."""

    default_code = "unknown_session"


class SessionExpired(SessionError):
    """The session had no frame for too long, and was closed."""

    default_code = "session_expired"


class FrameSizeChanged(SessionError):
    """The frame has another size than those of its session before it."""

    default_code = "frame_size_changed"


class TooManyObjects(SessionError):
    """The session would follow more objects than the service allows."""

    default_code = "too_many_objects"


class PromptError(RequestRefused):
    """The prompts cannot be used."""


class NoPrompt(PromptError):
    """There is no prompt, or a prompt has neither points nor box nor mask."""

    default_code = "no_prompt"


class MalformedPrompt(PromptError):
    """Values that do not make a point, a box or a mask; found here or by the service."""

    default_code = "malformed_prompt"


class PromptOutsideImage(PromptError):
    """A point or a box outside the image."""

    default_code = "prompt_outside_image"


class TooManyPrompts(PromptError):
    """More prompts or points than the service accepts."""

    default_code = "too_many_prompts"


class ModelError(RequestRefused):
    """The model cannot be used."""


class UnknownModel(ModelError):
    """The catalogue has no model of that name."""

    default_code = "unknown_model"


class ModelNotLoaded(ModelError):
    """The model is in the catalogue but not loaded."""

    default_code = "model_not_loaded"


class WrongModelFamily(ModelError):
    """A U-Net for prompts, or a SAM for classes."""

    default_code = "wrong_model_family"


class UnsupportedInput(ModelError):
    """An input size or a padding that the model does not support."""

    default_code = "unsupported_input"


class UnknownClass(ModelError):
    """The detector has no class of that name; the detail lists those that it has."""

    default_code = "unknown_class"


class AccessError(RequestRefused):
    """The caller may not do this."""


class Unauthenticated(AccessError):
    """There is no API key, or none that is valid: `api_key`, or the variable `POMONA_API_KEY`."""

    default_code = "unauthenticated"


class PermissionDenied(AccessError):
    """The API key is for something else."""

    default_code = "permission_denied"


class MalformedRequest(RequestRefused):
    """Not what the endpoint accepts: often a client and a service of different versions."""

    default_code = "malformed_request"


class MalformedJson(MalformedRequest):
    """The request's JSON cannot be parsed."""

    default_code = "malformed_json"


class UnknownField(MalformedRequest):
    """A field that the service does not know."""

    default_code = "unknown_field"


class UnsupportedFormat(MalformedRequest):
    """A mask format that the endpoint does not offer."""

    default_code = "unsupported_format"


class NotFound(MalformedRequest):
    """No such path: not a Pomona at this address, or an older one."""

    default_code = "not_found"


class MethodNotAllowed(MalformedRequest):
    """The path does not accept this HTTP method."""

    default_code = "method_not_allowed"


class TryLater(PomonaError):
    """Nothing is wrong with the request; `retry_after` says when to send it again."""


class RateLimited(TryLater):
    """The API key has as many requests, at a time or per second, as it may have."""

    default_code = "rate_limited"


class TooManySessions(TryLater):
    """As many sessions are open, or they remember as much, as the service allows."""

    default_code = "too_many_sessions"


class Overloaded(TryLater):
    """More requests than can be answered in time."""

    default_code = "overloaded"


class NotReady(TryLater):
    """Models are still loading, or the service is stopping."""

    default_code = "not_ready"


class TooLate(PomonaError):
    """No answer in time. On a sorting line: reject the fruit."""


class DeadlineUnreachable(TooLate):
    """The service saw at once that the answer would be late; no work was done."""

    default_code = "deadline_unreachable"


class DeadlineExceeded(TooLate):
    """The deadline passed before the answer was ready."""

    default_code = "deadline_exceeded"


class TimedOut(TooLate):
    """The service gave up at its own limit."""

    default_code = "timed_out"


class NoAnswer(TooLate):
    """A limit of `Timeout` passed before the answer arrived."""


class FrameDropped(PomonaError):
    """A newer frame of the stream was sent instead (`newest_first`). On a sorting line: reject the fruit."""


class InternalError(PomonaError):
    """Something failed in the service; its log has the request id."""

    default_code = "internal_error"


class ConnectionFailed(PomonaError):
    """The service cannot be reached, or the connection broke.

    Attributes:
        connected: whether a connection was made, and broke before the answer; something listens at the address then.
    """

    connected = False


class StreamBroken(ConnectionFailed):
    """The connection broke in the middle of a stream.

    Attributes:
        answered: number of frames that were answered before.
        unanswered: ids of the frames that were sent and not answered, in the order of the camera.
    """

    def __init__(self, detail: str, *, answered: int, unanswered: Sequence[str]) -> None:
        super().__init__(detail)
        self.answered = answered
        self.unanswered = tuple(unanswered)


class BadAnswer(PomonaError):
    """A response that Pomona does not send: something else at the address, or a newer service."""


class InvalidArgument(PomonaError, ValueError):
    """An argument that this package cannot use."""


class ClientClosed(PomonaError):
    """The client was closed before."""


class MissingPackage(PomonaError):
    """An extra of this package is not installed; the detail says how to install it."""


def _subclasses(cls: type[PomonaError]) -> Iterator[type[PomonaError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _subclasses(child)


BY_CODE: Final[Mapping[str, type[PomonaError]]] = {
    cls.default_code: cls for cls in _subclasses(PomonaError) if cls.default_code is not None
}
"""The class of every code of the service."""


def error_for(
    code: str | None,
    detail: str,
    *,
    refused: bool,
    request_id: str | None = None,
    retry_after: float | None = None,
) -> PomonaError:
    """Return the error for a code of the service, on any transport.

    Args:
        code: as the service sent it; a newer service may have codes that are not known here.
        detail: as the service sent it.
        refused: for unknown codes, whether the request is at fault rather than the service.
        request_id: of the request, where known.
        retry_after: seconds, where the service sent them.
    """
    cls = BY_CODE.get(code or "", RequestRefused if refused else InternalError)
    return cls(detail, code=code, request_id=request_id, retry_after=retry_after)
