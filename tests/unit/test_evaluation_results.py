import json
import math
from pathlib import Path

import pytest

from models.errors import DataError
from models.evaluation.results import (
    Calibration,
    CalibrationBin,
    Group,
    ImageScore,
    Interval,
    Measured,
    Results,
    Subject,
    from_json,
    read_results,
    to_json,
    write_results,
)

SUBJECT = Subject("a-box", "A: box", "sam", "A box.", "0123", {"backend": "torch"}, oracle=True)
CALIBRATION = Calibration((CalibrationBin(0.9, 1.0, 0.95, 0.9, 3),), 3, 0.05, 0.06, 0.05, 0.5)
MEASURED = Measured(
    SUBJECT, {"fruit_iou_per_image": Interval(0.9, 0.8, 0.95)}, {"total": 3.5}, (ImageScore("p", 0.9, {"x": 1.0}),),
    CALIBRATION,
)  # fmt: skip
RESULTS = Results(
    (Group("rendered", "Rendered", "Drawn.", 1, 2, (MEASURED,)),), {"cores": "2"}, "abc", "2026-01-01T00:00:00+00:00",
    7, {"rendered": "1"}, ("Nothing was left out.",),
)  # fmt: skip


def test_results_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    write_results(RESULTS, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == RESULTS


def test_what_was_not_measured_is_null_in_json_and_nan_here() -> None:
    unknown = Measured(SUBJECT, {"x": Interval(math.nan, 0.0, 1.0)}, {}, (ImageScore("p", math.nan, {}),))
    results = Results((Group("g", "G", "", 1, 0, (unknown,)),), {}, "", "", 0, {})
    text = json.dumps(to_json(results), allow_nan=False)
    assert json.loads(text)["groups"][0]["measured"][0]["measures"]["x"] == {"value": None, "low": 0, "high": 1}
    (back,) = from_json(json.loads(text)).groups[0].measured
    assert math.isnan(back.measures["x"].value)
    assert math.isnan(back.per_image[0].fruit_iou)


@pytest.mark.parametrize("content", [None, [], {}, {"schema": 2}, {**to_json(RESULTS), "schema": "1"}])
def test_what_is_of_no_known_schema_is_refused(content: object) -> None:
    with pytest.raises(DataError, match="schema 1"):
        from_json(content)


def test_what_does_not_fit_the_schema_is_refused_and_said_where() -> None:
    content = to_json(RESULTS)
    content["groups"][0]["images"] = "many"
    with pytest.raises(DataError, match=r"groups\.0\.images"):
        from_json(content)


def test_a_file_that_is_no_json_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "results.json")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DataError, match="no valid JSON"):
        read_results(tmp_path / "results.json")
