"""What an evaluation found, as it is kept in `results.json`; images are not in it.

Names of measures are those of `models.evaluation.summary.summarise`, and four more:

- `prompted_iou_per_fruit`: the mask that a prompt gave against the fruit that the prompt was made from, the mean over
  all fruits; only of subjects whose prompts come from the annotation.
- `fruit_count_right_per_image`: share of the images in which as many fruits are found as are annotated; this and the
  next two only of subjects that find fruits by themselves.
- `touching_fruit_count_right_per_image`: the same of images in which annotated fruits touch.
- `fruit_count_error_per_image`: mean absolute difference of the two numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter, ValidationError

from models.errors import DataError

SCHEMA: Final = 1
"""Version of the JSON; another one is refused."""

Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]
"""A float; NaN, for what was not measured, is null in JSON."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A measure and its bootstrap 95 % interval over images, see `models.evaluation.bootstrap`."""

    value: Number
    low: Number
    high: Number


@dataclass(frozen=True, slots=True)
class Subject:
    """One contender: a model, and for a SAM how it is prompted.

    Attributes:
        name: short and unique, such as "unet-resnet18-citrus" or "mobile-sam-box-unet".
        title: for a table's row.
        family: "unet" or "sam".
        description: in a sentence or two, what it sees and whether it uses the annotation.
        revision: of the weights; of a SAM prompted by a U-Net, of the SAM.
        settings: backend, input size and the like, by name.
        oracle: its choice uses the annotation at inference: no result that one can have.
    """

    name: str
    title: str
    family: Literal["unet", "sam"]
    description: str
    revision: str
    settings: Mapping[str, str]
    oracle: bool = False


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Masks whose score lies from `score_low` to before `score_high`; see `models.evaluation.calibration`."""

    score_low: float
    score_high: float
    mean_score: float
    mean_iou: float
    count: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well a SAM's scores foretell the true IoU of the masks that it chose.

    Attributes:
        bins: those that hold masks, by score.
        count: masks.
        ece: expected calibration error.
        mean_abs_error: of the scores.
        bias: mean score less mean IoU.
        correlation: Pearson's; NaN when all scores or all IoUs are equal.
    """

    bins: tuple[CalibrationBin, ...]
    count: int
    ece: float
    mean_abs_error: float
    bias: float
    correlation: Number


@dataclass(frozen=True, slots=True)
class ImageScore:
    """One image.

    Attributes:
        name: of the image.
        fruit_iou: of fruit against background, 0 to 1; NaN when there is none, neither true nor predicted.
        measures: others by name, without "per_image": `fruit_dice`, `fruit_boundary_f`, `healthy_iou`, `infected_iou`,
            `mean_iou`, `infected_fraction_error` (predicted less true), `object_precision`, `object_recall`,
            `prompted_iou`, `fruits`, `fruits_found`; those that count.
    """

    name: str
    fruit_iou: Number
    measures: Mapping[str, Number]


@dataclass(frozen=True, slots=True)
class Measured:
    """One subject on one group.

    Attributes:
        subject: the contender.
        measures: by name; those that count.
        milliseconds: median over the images, by stage: "decode", "encode", "infer", "prompt", "postprocess" as far as
            the subject has them, and "total", the median of the images' totals.
        per_image: in the group's order.
        score_calibration: of a SAM whose prompts come from the annotation, and that chooses by its scores; else None.
    """

    subject: Subject
    measures: Mapping[str, Interval]
    milliseconds: Mapping[str, Number]
    per_image: tuple[ImageScore, ...]
    score_calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are measured together; different groups are never averaged.

    Attributes:
        name: unique: "rendered", or the data set and its part, such as "fruit-test".
        title: for a heading.
        description: what the images are, and what their annotations tell.
        images: how many.
        fruits: how many are annotated; 0 where fruits are not told apart.
        measured: one for each subject.
    """

    name: str
    title: str
    description: str
    images: int
    fruits: int
    measured: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """All that an evaluation found.

    Attributes:
        groups: in the order of the report.
        machine: processor, threads, backend, versions and the like, by name.
        commit: of the project; "unknown" where that cannot be told, with "-dirty" for changed files.
        made_at: ISO 8601, UTC.
        seed: of jitter and bootstrap.
        options: what the command was told, by name.
        notes: what was left out, and why.
    """

    groups: tuple[Group, ...]
    machine: Mapping[str, str]
    commit: str
    made_at: str
    seed: int
    options: Mapping[str, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """An image for the report, not part of the JSON: side by side the truth's outline and the prediction's.

    Attributes:
        group: name of its group.
        subject: name of the subject.
        name: of the image.
        fruit_iou: of that subject on it.
        kind: whether it is one of the subject's best or worst.
        jpeg: the file, at most 360 pixels high.
    """

    group: str
    subject: str
    name: str
    fruit_iou: float
    kind: Literal["best", "worst"]
    jpeg: bytes = field(repr=False)


_RESULTS: Final = TypeAdapter(Results)


def to_json(results: Results) -> dict[str, Any]:
    """Make an object of plain JSON values.

    Args:
        results: what was found.

    Returns:
        With the key "schema"; NaN is None.
    """
    return {"schema": SCHEMA, **_RESULTS.dump_python(results, mode="json")}


def from_json(content: object) -> Results:
    """Read what `to_json` made.

    Args:
        content: plain JSON values, from anywhere.

    Returns:
        The results.

    Raises:
        DataError: of another schema, or not of the right shape.
    """
    if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
        raise DataError(f"These are no results of an evaluation of schema {SCHEMA}.")
    try:
        return _RESULTS.validate_python({key: value for key, value in content.items() if key != "schema"})
    except ValidationError as error:
        fault = error.errors()[0]
        raise DataError(f"Results: {'.'.join(map(str, fault['loc']))}: {fault['msg']}.") from error


def write_results(results: Results, file: Path) -> None:
    """Write results as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    file.write_text(json.dumps(to_json(results), indent=1, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")


def read_results(file: Path) -> Results:
    """Read what `write_results` wrote.

    Raises:
        DataError: the file cannot be read, or holds no results.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise DataError(f"{file}: is no valid JSON: {error}.") from error
    return from_json(content)
