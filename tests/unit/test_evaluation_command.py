import json
import math
from pathlib import Path

import pytest

from models.catalog import Architecture
from models.errors import DataError
from models.evaluation.__main__ import main
from models.evaluation.results import (
    Candidate,
    CandidateResult,
    Group,
    ImageScore,
    Interval,
    Results,
    from_json,
    read_results,
    to_json,
    write_results,
)
from models.synthetic.output import write_sample
from tests.invented_results import full_results, invented_results
from tests.knowing_unet import discs
from tests.untrained import write_untrained_unet

pytestmark = pytest.mark.slow

REPORTS = Path(__file__).parents[2] / "models" / "evaluation" / "reports"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Annotated images, two of them to test on."""
    path = tmp_path / "orchard"
    for name in "abc":
        write_sample(path, discs((100, 100, 40), (220, 100, 50), name=name))
    (path / "split.json").write_text(json.dumps({"train": ["c"], "val": [], "test": ["a", "b"]}))
    return path


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    """The models file of an untrained U-Net."""
    write_untrained_unet(tmp_path / "model.safetensors", Architecture.UNET_MOBILENETV2, 0)
    (tmp_path / "models.yaml").write_text(
        "models: {mine: {architecture: unet-mobilenetv2, file: model.safetensors, licence: own}}"
    )
    return tmp_path / "models.yaml"


def test_evaluate_a_folder_and_render_its_report_again(
    folder: Path, unet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    words = ["--data", str(folder), "--unet", str(unet), "--sam", "none", "--rendered", "1", "--backend", "torch"]
    assert main([*words, "--out", str(out), "--seed", "3", "--quiet"]) == 0
    results = read_results(out / "results.json")
    assert [(group.name, group.images) for group in results.groups] == [("orchard-test", 2), ("rendered", 1)]
    for group in results.groups:
        assert [measured.candidate.name for measured in group.results] == ["mine", "mine@scales"]
        for measured in group.results:
            assert 0 <= measured.measures["fruit_iou_per_image"].value <= 1
            assert measured.timing_ms["infer"] > 0
    assert results.seed == 3
    assert results.options["data"] == "orchard"
    assert "No SAM was selected." in results.notes
    # Reports are shared: they hold no paths of this machine.
    assert str(tmp_path) not in (out / "results.json").read_text()
    report = (out / "report.html").read_text()
    assert "data:image/jpeg" in report
    printed = capsys.readouterr()
    assert "orchard" in printed.out
    assert "mine" in printed.out
    assert "No SAM was selected." in printed.err

    assert main(["--render", str(out)]) == 0
    assert (out / "report.html").read_text() == report
    assert capsys.readouterr().out == printed.out


def test_results_without_an_earlier_report_are_rendered_without_a_gallery(tmp_path: Path) -> None:
    write_results(invented_results([], notes=("Nothing was measured.",)), tmp_path / "results.json")
    assert main(["--render", str(tmp_path)]) == 0
    assert "Nothing was measured." in (tmp_path / "report.html").read_text()
    (tmp_path / "results.json").write_text("{}")
    assert main(["--render", str(tmp_path)]) == 1


def test_the_committed_report_shows_the_committed_results() -> None:
    report = (REPORTS / "report.html").read_text("utf-8")
    results = read_results(REPORTS / "results.json")
    assert results.created_at in report
    for group in results.groups:
        for each in group.results:
            found = each.measures["fruit_iou_per_image"]
            assert f"{found.value:.3f}</strong><small>" in report or f"{found.value:.3f}<small>" in report


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rendered", "0"], "there are no images to measure"),
        (["--rendered", "-1"], "at least 0"),
        (["--data", "missing"], "there is no such file or folder"),
        (["--rendered", "1", "--unet", "missing"], "missing"),
        (["--rendered", "1", "--sam", "none", "--unet", "none"], "no models to evaluate"),
        (["--render", "missing"], "cannot be read"),
    ],
)
def test_unusable_options_end_with_status_1_and_a_reason(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--out", str(tmp_path / "report"), "--cache", str(tmp_path), "--quiet"]) == 1
    assert message in capsys.readouterr().err


def test_a_broken_image_is_reported_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "images" / "b.jpg").write_bytes(b"\xff\xd8\xff and no more")
    # There is no such U-Net, which is not found out.
    words = ["--data", str(folder), "--unet", "missing", "--out", str(tmp_path / "report"), "--quiet"]
    assert main(words) == 1
    reason = capsys.readouterr().err
    assert "b.jpg" in reason
    assert "missing" not in reason


def test_results_survive_a_file(tmp_path: Path) -> None:
    results = full_results()
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results


def test_nan_is_null_in_json() -> None:
    candidate = Candidate("a-box", "A: box", "sam", "A box.", "0123", {"backend": "torch"}, oracle=True)
    unknown = CandidateResult(candidate, {"x": Interval(math.nan, 0.0, 1.0)}, {}, (ImageScore("p", math.nan, {}),))
    content = to_json(Results((Group("g", "G", "", 1, 0, (unknown,)),), {}, "", "", 0, {}))
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text)["groups"][0]["results"][0]["measures"]["x"] == {"value": None, "low": 0, "high": 1}
    (back,) = from_json(json.loads(text)).groups[0].results
    assert math.isnan(back.measures["x"].value)
    assert math.isnan(back.per_image[0].fruit_iou)


def test_files_that_hold_no_results_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with pytest.raises(DataError, match="cannot be read"):
        read_results(file)
    file.write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        read_results(file)
    content = to_json(full_results())
    others: list[object] = [None, [], {}, {**content, "schema": 1}]
    for other in others:
        with pytest.raises(DataError, match="schema 2"):
            from_json(other)
    content["groups"][0]["images"] = "many"
    with pytest.raises(DataError, match=r"groups\.0\.images"):
        from_json(content)
