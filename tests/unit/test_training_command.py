from __future__ import annotations

from pathlib import Path

import pytest

from models.data.sources import DataSource
from models.training.__main__ import command_line, main, sam_options, unet_options
from models.training.options import PRESETS, SamOptions


def sources(*words: str) -> tuple[DataSource, ...]:
    parsed: tuple[DataSource, ...] = command_line().parse_args(["unet", "--out", "run", *words]).data
    return parsed


def test_data_options_apply_to_the_data_before_them() -> None:
    first, second = sources(
        "--data", "a", "--classes", "1=fruit, Rotten Orange=infected", "--data-weight", "2.5",
        "--data", "b.json", "--images", "p", "--split", "s.json", "--data-licence", "MIT",
    )  # fmt: skip
    assert first == DataSource(Path("a"), {"1": "fruit", "Rotten Orange": "infected"}, weight=2.5)
    assert second == DataSource(Path("b.json"), images=Path("p"), split=Path("s.json"), licence="MIT")
    assert sources() == ()
    (kinds,) = sources("--data", "a", "--data-weight", "0.5,lesion=3,negative=0.25")
    assert (kinds.weight, kinds.group_weights) == (0.5, {"lesion": 3.0, "negative": 0.25})
    (only,) = sources("--data", "a", "--data-weight", "lesion=3")
    assert (only.weight, only.group_weights) == (1.0, {"lesion": 3.0})


def test_strict_applies_to_all_data_wherever_it_stands() -> None:
    for words in (("--strict", "--data", "a", "--data", "b"), ("--data", "a", "--strict", "--data", "b")):
        assert [each.strict for each in sources(*words)] == [True, True]
    assert [each.strict for each in sources("--data", "a", "--data", "b")] == [False, False]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--classes", "1=fruit"), "--classes must follow the --data"),
        (("--data", "a", "--classes", "fruit"), "must have the form NAME=CLASS"),
        (("--data", "a", "--data-weight", "much"), "--data-weight"),
    ],
)
def test_invalid_data_options_are_rejected(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        sources(*words)
    assert message in capsys.readouterr().err


def test_a_failed_training_reports_why_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "run")]
    for command, message in (
        (["unet", *out, "--data", str(tmp_path / "missing"), "--quiet"], "there is no such file or folder"),
        (["unet", *out, "--batch", "1"], "batch must be at least 2"),
        (["unet", *out, "--workers", "-1"], "--workers and --threads must be at least 0"),
        (["sam", *out, "--size", "100"], "multiple of 64, got 100"),
    ):
        assert main(command) == 1
        assert message in capsys.readouterr().err


def test_options_that_are_given_replace_those_of_the_preset() -> None:
    study = unet_options(
        command_line().parse_args(["unet", "--out", "x", "--preset", "study", "--batch", "16", "--seed", "7"])
    )
    assert (study.batch, study.fit.seed, study.loss) == (16, 7, "dice")
    assert unet_options(command_line().parse_args(["unet", "--out", "x"])) == PRESETS["default"]


def test_batches_have_about_the_area_that_the_model_will_be_served_with() -> None:
    assert {crop.pixels for crop in PRESETS["default"].crops} == {448 * 224, 384 * 256, 320 * 288}
    options = unet_options(command_line().parse_args(["unet", "--out", "x", "--area", "200704"]))
    assert options.area == 200_704
    assert {crop.pixels for crop in options.crops} == {608 * 320, 544 * 352, 480 * 416}
    assert sam_options(command_line().parse_args(["sam", "--out", "x"])) == SamOptions()
    small = sam_options(command_line().parse_args(["sam", "--out", "x", "--size", "512", "--epochs", "3"]))
    assert (small.sides, small.fit.epochs, small.fit.learning_rate) == ((512,), 3, 1e-4)


@pytest.mark.parametrize(
    ("size", "served"), [("512", 512), ("512,768", 768), ("512,1024", None), ("1024", None), ("256", None)]
)
def test_a_sam_is_served_at_the_largest_size_that_it_was_trained_at(size: str, served: int | None) -> None:
    options = sam_options(command_line().parse_args(["sam", "--out", "x", "--size", size]))
    assert options.input_size == served


@pytest.mark.parametrize("command", ["unet", "sam"])
def test_every_option_is_documented(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    for option in (
        "--data",
        "--classes",
        "--split",
        "--resume",
        "--learning-rate",
        "--schedule",
        "--seed",
        "--threads",
    ):
        assert f"  {option}" in text
