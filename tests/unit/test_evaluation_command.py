import json
from pathlib import Path

import pytest

from models.catalog import Architecture
from models.evaluation.__main__ import main
from models.evaluation.results import read_results
from models.synthetic.output import write_sample
from tests.knowing_unet import discs
from tests.untrained import write_untrained_unet


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of two images to test on."""
    path = tmp_path / "orchard"
    for name in "abc":
        write_sample(path, discs((100, 100, 40), (220, 100, 50), name=name))
    (path / "split.json").write_text(json.dumps({"train": ["c"], "val": [], "test": ["a", "b"]}))
    return path


@pytest.fixture
def unet(tmp_path: Path) -> Path:
    """An untrained U-Net."""
    write_untrained_unet(tmp_path / "model.safetensors", Architecture.UNET_MOBILENETV2, 0)
    (tmp_path / "models.yaml").write_text(
        "models: {mine: {architecture: unet-mobilenetv2, file: model.safetensors, licence: own}}"
    )
    return tmp_path / "models.yaml"


def test_the_whole_way_from_a_folder_to_a_report(
    folder: Path, unet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(folder), "--unet", str(unet), "--sam", "none", "--rendered", "1", "--backend", "torch"]
    assert main([*words, "--out", str(tmp_path / "report"), "--seed", "3", "--quiet"]) == 0
    results = read_results(tmp_path / "report" / "results.json")
    assert [(group.name, group.images) for group in results.groups] == [("orchard-test", 2), ("rendered", 1)]
    for group in results.groups:
        (measured,) = group.measured
        assert measured.subject.name == "mine"
        assert 0 <= measured.measures["fruit_iou_per_image"].value <= 1
        assert measured.milliseconds["infer"] > 0
    assert results.seed == 3
    assert results.options["data"] == "orchard"
    assert "No SAM was asked for." in results.notes
    # Where things lie on this machine is nobody's business.
    assert str(tmp_path) not in (tmp_path / "report" / "results.json").read_text()
    assert "</html>" in (tmp_path / "report" / "report.html").read_text()
    shown = capsys.readouterr()
    assert "orchard" in shown.out
    assert "mine" in shown.out
    assert "No SAM was asked for." in shown.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rendered", "0"], "nothing to measure on"),
        (["--rendered", "-1"], "at least 0"),
        (["--data", "missing"], "there is no such file or folder"),
        (["--rendered", "1", "--unet", "nobody"], "nobody"),
        (["--rendered", "1", "--sam", "none", "--unet", "none"], "Nobody is left"),
    ],
)
def test_what_does_not_do_is_told_and_the_exit_status_is_1(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--out", str(tmp_path / "report"), "--cache", str(tmp_path), "--quiet"]) == 1
    assert said in capsys.readouterr().err


def test_an_unreadable_image_fails_the_command_before_a_model_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "images" / "b.jpg").write_bytes(b"\xff\xd8\xff and no more")
    # There is no such U-Net: the image is told first.
    words = ["--data", str(folder), "--unet", "nobody", "--out", str(tmp_path / "report"), "--quiet"]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "b.jpg" in told
    assert "nobody" not in told
