"""The results of an evaluation, and how they are kept in `results.json`; images are not part of them.

`models.evaluation.measures` describes every measure by its name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter, ValidationError

from models.errors import DataError

RESULTS_FILE: Final = "results.json"

SCHEMA: Final = 2
"""Version of the JSON; no other version is read."""

TOTAL: Final = "total"
"""Name of the time of all stages together, next to the stages in `CandidateResult.timing_ms`."""

Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]
"""A float; NaN, for what was not measured, is null in JSON."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A measure over all images, and its bootstrap 95 % interval, see `models.evaluation.bootstrap`."""

    value: Number
    low: Number
    high: Number


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model under evaluation and, for a SAM, how it is prompted.

    Attributes:
        name: short and unique, such as "unet-mobilenetv2-citrus" or "mobile-sam-box-unet".
        title: heading of a table row.
        family: "unet" or "sam".
        description: a sentence or two on what it sees and whether it uses the annotation.
        revision: content hash of the weights; of the SAM, where a U-Net prompts a SAM.
        settings: backend, input size and the like, by name.
        oracle: whether it uses the annotation to choose its masks, which shows an upper bound and not a result.
    """

    name: str
    title: str
    family: Literal["unet", "sam"]
    description: str
    revision: str
    settings: Mapping[str, str]
    oracle: bool = False


@dataclass(frozen=True, slots=True)
class ScoreBin:
    """Masks with scores from `low` up to, but not including, `high`.

    Attributes:
        low: lower edge.
        high: upper edge; the outer bins also hold the scores below 0 and above 1.
        count: number of masks.
        mean_score: mean of their scores.
        mean_iou: mean of their IoUs with the annotation.
    """

    low: float
    high: float
    count: int
    mean_score: float
    mean_iou: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """How well scores predict the IoU of their masks, see `models.evaluation.calibration`.

    Attributes:
        count: number of masks.
        mean_absolute_error: of the scores.
        bias: mean score minus mean IoU; above 0 where the scores are too high.
        expected_calibration_error: mean distance of score and IoU over the bins, weighted by their counts.
        correlation: Pearson's, -1 to 1; NaN where all scores or all IoUs are equal.
        bins: those with masks, in ascending order.
    """

    count: int
    mean_absolute_error: float
    bias: float
    expected_calibration_error: float
    correlation: Number
    bins: tuple[ScoreBin, ...]


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The measures of one image.

    Attributes:
        name: of the image.
        fruit_iou: IoU of fruit against background, 0 to 1; NaN where neither annotation nor prediction has fruit.
        measures: others by name, only those that are defined: `fruit_dice`, `fruit_boundary_f`, `background_iou`,
            `healthy_iou`, `infected_iou`, `mean_iou`, `infected_fraction_error` (predicted minus annotated),
            `object_precision`, `object_recall`, `prompted_iou`, `fruits`, `fruits_found`.
    """

    name: str
    fruit_iou: Number
    measures: Mapping[str, Number]


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """The result of one candidate on one group of images.

    Attributes:
        candidate: the model and how it is prompted.
        measures: over all images, by name; only those that are defined.
        timing_ms: median over the images in milliseconds, by stage: "decode", "encode", "infer", "prompt",
            "postprocess", as far as the candidate has them, and `TOTAL`, the median of the images' totals.
        per_image: in the order of the group.
        score_calibration: of a SAM that is prompted from the annotation and chooses its masks by score, and of the
            fruits of a U-Net, see `models.evaluation.fruit_confidence`; else None.
    """

    candidate: Candidate
    measures: Mapping[str, Interval]
    timing_ms: Mapping[str, Number]
    per_image: tuple[ImageScore, ...]
    score_calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Images that are measured together; groups are never averaged.

    Attributes:
        name: unique: "rendered", or the data set and its part, such as "fruit-test".
        title: heading.
        description: what the images show, and what their annotation distinguishes.
        images: number of images.
        fruits: number of annotated fruits; 0 where the annotation does not separate fruits.
        results: one per candidate.
    """

    name: str
    title: str
    description: str
    images: int
    fruits: int
    results: tuple[CandidateResult, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """The results of an evaluation.

    Attributes:
        groups: in the order of the report.
        machine: processor, threads, backend, versions and the like, by name.
        commit: of the project, with "-dirty" where files were changed; "unknown" outside a git checkout.
        created_at: ISO 8601, UTC.
        seed: of box jitter and bootstrap.
        options: of the command line, by name.
        notes: what was left out, and why.
    """

    groups: tuple[Group, ...]
    machine: Mapping[str, str]
    commit: str
    created_at: str
    seed: int
    options: Mapping[str, str]
    notes: tuple[str, ...] = ()


_RESULTS: Final = TypeAdapter(Results)


def to_json(results: Results) -> dict[str, Any]:
    """Return results as plain JSON values with the key "schema"; NaN becomes None."""
    return {"schema": SCHEMA, **_RESULTS.dump_python(results, mode="json")}


def from_json(content: object) -> Results:
    """Read results from plain JSON values, as `to_json` returns them.

    Raises:
        DataError: another schema version, or values that do not fit it.
    """
    if not isinstance(content, Mapping) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, Mapping) else None
        raise DataError(f"results must be a JSON object with schema {SCHEMA}, got schema {found!r}")
    try:
        return _RESULTS.validate_python({key: value for key, value in content.items() if key != "schema"})
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"results.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def write_results(results: Results, file: Path) -> None:
    """Write results as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    file.write_text(json.dumps(to_json(results), indent=1, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")


def read_results(file: Path) -> Results:
    """Read results that `write_results` wrote.

    Raises:
        DataError: the file cannot be read, or does not hold results.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    return from_json(content)
