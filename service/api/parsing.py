"""From JSON, or from what a codec makes of a message, to a request of the schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from models.errors import MalformedPrompt, NoPrompt, PomonaError, TooManyPrompts
from service.api.schema import Schema
from service.errors import MalformedJson, MalformedRequest, UnknownField, UnsupportedFormat

S = TypeVar("S", bound=Schema)


def parse_json(raw: bytes | None, model: type[S], max_values: int) -> S:
    """Parse the field `request`.

    Args:
        raw: JSON; None is as `{}`.
        model: its schema.
        max_values: most values in it: an empty object of three bytes becomes one of several hundred.

    Raises:
        TooManyPrompts: it has more values.
        MalformedJson, UnknownField, UnsupportedFormat, NoPrompt, MalformedPrompt, MalformedRequest: by what is wrong
            first; the detail names the place.
    """
    raw = b"{}" if raw is None else raw
    # Neither is among the characters of RLE and base64.
    if (values := raw.count(b",") + raw.count(b"{")) > max_values:
        raise TooManyPrompts(f"The field request must have at most {max_values} values, got about {values}.")
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(error) from error


def parse_fields(fields: Mapping[str, Any], model: type[S]) -> S:
    """Parse a request whose fields are Python values already; see `parse_json`."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error) from error


def place_of(location: tuple[int | str, ...]) -> str:
    """Return a location as `prompts[0].labels`."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")


def _refusal(error: ValidationError) -> PomonaError:
    # An unknown field often is a misspelt known one: it tells more than what is then missing.
    first = min(error.errors(include_url=False), key=lambda item: item["type"] != "extra_forbidden")
    location, kind, text = first["loc"], first["type"], first["msg"].removeprefix("Value error, ")
    place = place_of(location)
    if kind == "json_invalid":
        return MalformedJson(f"The field request is not valid JSON: {text}.")
    if kind == "extra_forbidden":
        return UnknownField(f"There is no field {place} in the request.")
    if location == ("format",):
        return UnsupportedFormat(f"format: {text}.")
    if location == ("prompts",) and kind == "missing":
        return NoPrompt("prompts must contain at least one prompt.")
    if location[:1] == ("prompts",):
        return MalformedPrompt(f"{place}: {text}.")
    return MalformedRequest(f"{place or 'request'}: {text}.")
