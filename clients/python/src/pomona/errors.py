"""Everything that this package raises on purpose.

PomonaError
├── RequestRefused                 the service refused the request; the same again will not help
│   ├── ImageError                 the picture cannot be used
│   │   ├── UnreadableImage        here already: a file that cannot be read, an array that is no picture
│   │   ├── NotAnImage             not_an_image
│   │   ├── UnsupportedImageFormat unsupported_image_format
│   │   ├── TruncatedImage         truncated_image
│   │   ├── TooManyPixels          too_many_pixels
│   │   ├── UploadTooLarge         upload_too_large
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
│   │   └── UnsupportedInput       unsupported_input
│   └── MalformedRequest           malformed_request
│       ├── MalformedJson          malformed_json
│       ├── UnknownField           unknown_field
│       ├── UnsupportedFormat      unsupported_format
│       ├── NotFound               not_found: there is no Pomona, or an older one, at this address
│       └── MethodNotAllowed       method_not_allowed
├── TryLater                       nothing is wrong with the request
│   ├── Overloaded                 overloaded
│   └── NotReady                   not_ready
├── TooLate                        no answer in time
│   ├── DeadlineUnreachable        deadline_unreachable: told before anything was started
│   ├── DeadlineExceeded           deadline_exceeded: the deadline passed, there or here
│   ├── TimedOut                   timed_out: the service's own limit
│   └── NoAnswer                   the limits of `Timeout` passed here
├── FrameDropped                   a stream's newer frame took its turn, as `newest_first` asks
├── InternalError                  internal_error
├── ConnectionFailed               the service cannot be reached, or left in the middle
│   └── StreamBroken               it left in the middle of a stream
├── BadAnswer                      an answer that is not what Pomona answers
├── InvalidArgument                this package was called with what it cannot use; also a ValueError
├── ClientClosed                   used after it was closed
└── MissingPackage                 an extra of this package that is not installed
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final


class PomonaError(Exception):
    """Base of all of them.

    Attributes:
        code: the service's, stable and for programs; None for what happened here.
        detail: what was wrong and what would be right, for the person who reads it.
        request_id: names the request in the service's log, or None where it did not get that far.
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
        code = f"{self.code}: " if self.code else ""
        return code + self.detail + (f" (request {self.request_id})" if self.request_id else "")


class RequestRefused(PomonaError):
    """The service refused the request; the same again will not help."""


class ImageError(RequestRefused):
    """The picture cannot be used."""


class UnreadableImage(ImageError):
    """A file that cannot be read, or an array or an object that is no picture; nothing was sent."""


class NotAnImage(ImageError):
    """The bytes are of no picture format."""

    default_code = "not_an_image"


class UnsupportedImageFormat(ImageError):
    """A picture, but of a format that the service does not read."""

    default_code = "unsupported_image_format"


class TruncatedImage(ImageError):
    """A picture that ends early or is damaged."""

    default_code = "truncated_image"


class TooManyPixels(ImageError):
    """A picture of more pixels than the service takes."""

    default_code = "too_many_pixels"


class UploadTooLarge(ImageError):
    """More bytes than the service takes."""

    default_code = "upload_too_large"


class NoImage(ImageError):
    """Neither a picture nor an image id."""

    default_code = "no_image"


class UnknownImageId(ImageError):
    """The service does not know the picture of this id, or no longer."""

    default_code = "unknown_image_id"


class PromptError(RequestRefused):
    """The prompts cannot be used."""


class NoPrompt(PromptError):
    """Nothing to segment was asked for."""

    default_code = "no_prompt"


class MalformedPrompt(PromptError):
    """Numbers that make no point, box or mask; here already or in the service."""

    default_code = "malformed_prompt"


class PromptOutsideImage(PromptError):
    """A point or a box beyond the picture's edge."""

    default_code = "prompt_outside_image"


class TooManyPrompts(PromptError):
    """More prompts or points than the service takes."""

    default_code = "too_many_prompts"


class ModelError(RequestRefused):
    """The model cannot be used."""


class UnknownModel(ModelError):
    """No model of that name."""

    default_code = "unknown_model"


class ModelNotLoaded(ModelError):
    """The service knows the model but has not loaded it."""

    default_code = "model_not_loaded"


class WrongModelFamily(ModelError):
    """A U-Net for prompts, or a SAM for classes."""

    default_code = "wrong_model_family"


class UnsupportedInput(ModelError):
    """An input size or a padding that the model does not take."""

    default_code = "unsupported_input"


class MalformedRequest(RequestRefused):
    """Not what the endpoint takes: often a client and a service of different versions."""

    default_code = "malformed_request"


class MalformedJson(MalformedRequest):
    """The request's JSON is damaged."""

    default_code = "malformed_json"


class UnknownField(MalformedRequest):
    """A field that the service does not know."""

    default_code = "unknown_field"


class UnsupportedFormat(MalformedRequest):
    """A mask format that is not offered."""

    default_code = "unsupported_format"


class NotFound(MalformedRequest):
    """No such path: not the address of a Pomona, or of an older one."""

    default_code = "not_found"


class MethodNotAllowed(MalformedRequest):
    """The path does not take this method."""

    default_code = "method_not_allowed"


class TryLater(PomonaError):
    """Nothing is wrong with the request; `retry_after` tells when to come back."""


class Overloaded(TryLater):
    """More requests than can be answered in time."""

    default_code = "overloaded"


class NotReady(TryLater):
    """Models are still loading, or the service is about to stop."""

    default_code = "not_ready"


class TooLate(PomonaError):
    """No answer in time. On a sorting line: reject the fruit."""


class DeadlineUnreachable(TooLate):
    """The service told at once that it would be late; nothing was started."""

    default_code = "deadline_unreachable"


class DeadlineExceeded(TooLate):
    """The deadline passed before the answer was there."""

    default_code = "deadline_exceeded"


class TimedOut(TooLate):
    """The service gave up at its own limit."""

    default_code = "timed_out"


class NoAnswer(TooLate):
    """A limit of `Timeout` passed before the answer was here."""


class FrameDropped(PomonaError):
    """A newer frame of the stream took its turn, as `newest_first` asks. On a sorting line: reject the fruit."""


class InternalError(PomonaError):
    """Something failed in the service; its log has the request id."""

    default_code = "internal_error"


class ConnectionFailed(PomonaError):
    """The service cannot be reached, or the connection broke."""


class StreamBroken(ConnectionFailed):
    """The service left in the middle of a stream.

    Attributes:
        answered: how many frames were answered before.
        unanswered: ids of the frames that were sent and not answered, in the order in which they were taken.
    """

    def __init__(self, detail: str, *, answered: int, unanswered: Sequence[str]) -> None:
        super().__init__(detail)
        self.answered = answered
        self.unanswered = tuple(unanswered)


class BadAnswer(PomonaError):
    """An answer that is not what Pomona answers: something else at the address, or a newer service."""


class InvalidArgument(PomonaError, ValueError):
    """This package was called with what it cannot use."""


class ClientClosed(PomonaError):
    """The client was closed before."""


class MissingPackage(PomonaError):
    """An extra of this package is not installed; the detail says how to get it."""


def _offspring(cls: type[PomonaError]) -> Iterator[type[PomonaError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from _offspring(child)


BY_CODE: Final[Mapping[str, type[PomonaError]]] = {
    cls.default_code: cls for cls in _offspring(PomonaError) if cls.default_code is not None
}
"""The class of every code that the service answers with."""


def error_of(
    code: str | None,
    detail: str,
    *,
    refused: bool,
    request_id: str | None = None,
    retry_after: float | None = None,
) -> PomonaError:
    """The error that the service tells of, whatever way it came.

    Args:
        code: the service's; of a newer service it may be one that is not known here.
        detail: the service's words.
        refused: whether the request is at fault rather than the service, for codes that are not known here.
        request_id: of the request, where it is known.
        retry_after: seconds, where the service told.
    """
    cls = BY_CODE.get(code or "", RequestRefused if refused else InternalError)
    return cls(detail, code=code, request_id=request_id, retry_after=retry_after)
