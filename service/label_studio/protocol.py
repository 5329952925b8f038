"""What Label Studio sends; what else it sends is ignored."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from service.api.parsing import place_of
from service.errors import MalformedJson, MalformedRequest

MAX_TASKS: Final = 250
MAX_REGIONS: Final = 256
"""Most clicks and boxes in one request."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class RegionValue(_Part):
    """Where a click or a box is, in percent of the image."""

    x: FiniteFloat
    y: FiniteFloat
    width: FiniteFloat = 0.0
    height: FiniteFloat = 0.0
    rotation: FiniteFloat = 0.0
    keypointlabels: list[str] = Field(default_factory=list)
    rectanglelabels: list[str] = Field(default_factory=list)


class PromptRegion(_Part):
    """A click or a box of an annotator; `value` is read where the type is one of these."""

    type: str
    to_name: str
    value: dict[str, Any]
    is_positive: bool = True


class PredictContext(_Part):
    """What an annotator drew with a smart tool."""

    result: Annotated[list[PromptRegion], Field(max_length=MAX_REGIONS)] = Field(default_factory=list)


class PredictParams(_Part):
    """Parameters of a prediction; with a context, an annotator waits for it."""

    context: PredictContext | None = None


class Task(_Part):
    """A task: its data names the images."""

    id: int | str = ""
    data: dict[str, Any]


class PredictBody(_Part):
    """The body of `predict`."""

    tasks: Annotated[list[Task], Field(min_length=1, max_length=MAX_TASKS)]
    label_config: str
    params: PredictParams = PredictParams()


class SetupBody(_Part):
    """The body of `setup`; the token in it, which is a user's, is neither read nor kept."""

    label_config: str = Field(alias="schema")


B = TypeVar("B", bound=BaseModel)


def parse(raw: bytes, model: type[B]) -> B:
    """Parse a body; a long one belongs in a worker thread.

    Raises:
        MalformedJson: it is not JSON.
        MalformedRequest: it is not of the protocol.
    """
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(error) from error


def parse_value(value: dict[str, Any]) -> RegionValue:
    """Read where a click or a box is.

    Raises:
        MalformedRequest: it is nowhere.
    """
    try:
        return RegionValue.model_validate(value)
    except ValidationError as error:
        raise _refusal(error) from error


def _refusal(error: ValidationError) -> MalformedRequest:
    problem = error.errors(include_input=False)[0]
    if problem["type"] == "json_invalid":
        return MalformedJson(f"The body is not valid JSON: {problem['msg']}.")
    return MalformedRequest(f"{place_of(problem['loc']) or 'The body'}: {problem['msg']}.")
