"""What `make evaluate` finds out about the service's operations: one table of measures for each protocol."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from pydantic import TypeAdapter, ValidationError

from models.errors import DataError
from models.evaluation.results import Interval

OPERATIONS_FILE: Final = "operations.json"
OPERATIONS_SCHEMA: Final = 1
"""Version of the JSON; no other version is read."""

Protocol: TypeAlias = Literal["rounds", "proposals", "edges", "detection", "tracking"]


@dataclass(frozen=True, slots=True)
class Description:
    """A protocol, as reports show it.

    Attributes:
        title: heading.
        text: what is measured and how.
        objects: what is counted.
    """

    title: str
    text: str
    objects: str = "objects"


PROTOCOLS: Final[Mapping[Protocol, Description]] = {
    "rounds": Description(
        "Clicks (segment)",
        "A simulated user clicks on the centre of the largest error, first on an empty mask, with a positive click "
        "where the object was missed and a negative one where the mask is too large (RITM). The first click's mask is "
        "the best scored of three; later prompts have all clicks so far and the logits before. IoU@k: mean IoU over "
        "all objects after k clicks; IoU@1 is that of a single point, and 'best of three' what the annotation would "
        "choose of its three masks, an upper bound. NoC@85, NoC@90: mean number of clicks until an IoU of 0.85 and "
        "0.90, the largest number where it is not reached; unreached: the share of such objects.",
    ),
    "proposals": Description(
        "Masks of everything (automatic)",
        "Average recall of the best 10, 100 and 1000 masks of an image over thresholds of IoU from 0.5 to 0.95, as "
        "COCO measures object proposals; small: below 32 x 32 pixels, large: above 96 x 96.",
    ),
    "edges": Description(
        "Edges",
        "The protocol of the Berkeley Segmentation Data Set, with the boundaries of annotated objects as edges. ODS: "
        "F-measure at the one threshold that is best for the set; OIS: with the best threshold of each image; AP: area "
        "under precision over recall; R50: recall at a precision of 0.5. Edges of what is not annotated count as "
        "wrong.",
    ),
    "detection": Description(
        "Boxes of fruit (detect)",
        "COCO's average precision of boxes of one class, fruit, by pycocotools. Precision, recall and false boxes per "
        "image are of boxes from the least score, matched at an IoU of 0.5. 'both': a U-Net's fruits and the "
        "detector's that it missed. Boxes that lie where it is not known whether there is fruit do not count.",
        "fruits",
    ),
    "tracking": Description(
        "Fruit followed along belts (InspectStream)",
        "Rendered belts. IDF1: share of all places that the best assignment of tracks to fruits explains. Count error: "
        "wrongly counted fruits as a share of all. Verdicts: share of the fruits whose grade is that of the worst true "
        "view, beside that of the one frame in which the fruit is nearest to the middle.",
        "fruits",
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """The measures of one method on one set of images.

    Attributes:
        protocol: how they were measured.
        images: title of the set.
        count: images of the set; belts for "tracking".
        objects: annotated objects of these.
        method: what was measured.
        measures: by name; NaN for what is not defined, and for the ends of intervals that were not computed.
    """

    protocol: Protocol
    images: str
    count: int
    objects: int
    method: str
    measures: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class OperationsResults:
    """The results of an evaluation of operations.

    Attributes:
        rows: in the order of the report.
        machine: processor, threads, backend, versions and the like, by name.
        commit: of the project, with "-dirty" where files were changed; "unknown" outside a git checkout.
        created_at: ISO 8601, UTC.
        options: of the command line, by name.
        notes: what was left out, and why.
    """

    rows: tuple[Row, ...]
    machine: Mapping[str, str]
    commit: str
    created_at: str
    options: Mapping[str, str]
    notes: tuple[str, ...] = ()


_RESULTS: Final = TypeAdapter(OperationsResults)


def without_intervals(measures: Mapping[str, float]) -> dict[str, Interval]:
    """Return measures whose intervals were not computed."""
    return {name: Interval(value, math.nan, math.nan) for name, value in measures.items()}


def write_operations(results: OperationsResults, file: Path) -> None:
    """Write results as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    content = {"schema": OPERATIONS_SCHEMA, **_RESULTS.dump_python(results, mode="json")}
    file.write_text(json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n", "utf-8")


def read_operations(file: Path) -> OperationsResults:
    """Read results that `write_operations` wrote.

    Raises:
        DataError: the file cannot be read, or does not hold results.
    """
    try:
        content: Any = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict) or content.pop("schema", None) != OPERATIONS_SCHEMA:
        raise DataError(f"{file} must be a JSON object with schema {OPERATIONS_SCHEMA}")
    try:
        return _RESULTS.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def tables(rows: Sequence[Row]) -> list[tuple[Protocol, tuple[str, ...], list[Row]]]:
    """Return for each protocol the names of its measures and its rows, in the order of `PROTOCOLS`."""
    found = []
    for protocol in PROTOCOLS:
        own = [row for row in rows if row.protocol == protocol]
        if own:
            found.append((protocol, tuple(dict.fromkeys(name for row in own for name in row.measures)), own))
    return found
