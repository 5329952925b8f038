"""The prompts of a request: from the schema to what a decoder takes, counted and checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence

from models.errors import MalformedPrompt, MaskError, NoPrompt, PromptError, TooManyPrompts
from models.letterbox import Letterbox
from models.masks import EncodedLogits, Rle, decode_logits
from models.sam.prompts import check, with_logits
from models.types import FOREGROUND, Box, Logits, Point, Prompt
from service.api import schema
from service.api.video import ObjectPrompt
from service.settings import Settings


def prompts_of(prompts: Sequence[schema.Prompt], settings: Settings) -> list[Prompt]:
    """Convert prompts, of whose masks only logits are decoded: the image's size is not known yet.

    Raises:
        NoPrompt, TooManyPrompts: there are none, or more than allowed.
        MalformedPrompt, MaskError: one is malformed; the error names it.
    """
    if not prompts:
        raise NoPrompt("prompts must contain at least one prompt.")
    check_count(len(prompts), settings)
    return [prompt_of(number, prompt, multimask=prompt.multimask) for number, prompt in enumerate(prompts)]


def check_counts(prompts: Sequence[Prompt], settings: Settings) -> None:
    """Check the numbers of prompts and of their points.

    Raises:
        TooManyPrompts: there are more than allowed.
    """
    check_count(len(prompts), settings)
    for number, prompt in enumerate(prompts):
        check_points(number, prompt, settings)


def check_points(number: int, prompt: Prompt, settings: Settings) -> None:
    """Check the number of points of a prompt.

    Raises:
        TooManyPrompts: there are more than allowed.
    """
    if len(prompt.points) > settings.max_points:
        raise TooManyPrompts(
            f"prompts[{number}].points must have at most {settings.max_points} points, got {len(prompt.points)}."
        )


def check_prompts(prompts: Sequence[Prompt], letterbox: Letterbox) -> None:
    """Check prompts against an image.

    Raises:
        PromptError: one does not fit; the error names it.
    """
    for number, prompt in enumerate(prompts):
        try:
            check(prompt, letterbox)
        except PromptError as error:
            raise type(error)(f"prompts[{number}]: {error.detail}") from error


def read_mask(number: int, prompt: Prompt, letterbox: Letterbox) -> Prompt:
    """Return a prompt whose mask, if it has one, is the logits that the decoder takes.

    Raises:
        MaskError: it is no mask of the image; the error names the prompt by its number.
    """
    try:
        return with_logits(prompt, letterbox)
    except MaskError as error:
        raise MaskError(f"prompts[{number}].mask: {error.detail}") from error


def check_count(count: int, settings: Settings) -> None:
    """Check the number of prompts.

    Raises:
        TooManyPrompts: there are more than allowed.
    """
    if count > settings.max_prompts:
        raise TooManyPrompts(f"A request must have at most {settings.max_prompts} prompts, got {count}.")


def prompt_of(number: int, prompt: schema.Prompt | ObjectPrompt, *, multimask: bool) -> Prompt:
    """Convert a prompt, of whose mask only logits are decoded.

    Raises:
        MalformedPrompt, MaskError: it is malformed; the error names it by its number.
    """
    points = prompt.points or []
    labels = prompt.labels or ([FOREGROUND] * len(points) if prompt.labels is None else [])
    if len(points) != len(labels):
        raise MalformedPrompt(
            f"prompts[{number}] must have one label per point, got {len(points)} points and {len(labels)} labels."
        )
    mask: Rle | Logits | None = None
    try:
        if isinstance(prompt.mask, schema.RleMask):
            mask = Rle(prompt.mask.size, prompt.mask.counts)
        elif prompt.mask is not None:
            mask = decode_logits(EncodedLogits(prompt.mask.shape, prompt.mask.dtype, prompt.mask.data))
    except MaskError as error:
        raise MaskError(f"prompts[{number}].mask: {error.detail}") from error
    return Prompt(
        points=tuple(Point(x, y, label) for (x, y), label in zip(points, labels, strict=True)),
        box=None if prompt.box is None else Box(*prompt.box),
        mask=mask,
        multimask=multimask,
    )
