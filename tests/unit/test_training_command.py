from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from models.data.sources import DataSource, add_data_arguments
from models.training.__main__ import main
from models.training.unet_command import add_recipe_arguments, options_of
from models.training.unet_options import PRESETS


def parsed(*words: str) -> tuple[DataSource, ...]:
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    sources: tuple[DataSource, ...] = parser.parse_args(words).data
    return sources


def test_options_belong_to_the_data_before_them() -> None:
    first, second = parsed(
        "--data", "a", "--classes", "1=fruit, Rotten Orange=infected", "--data-weight", "2.5",
        "--data", "b.json", "--images", "p", "--split", "s.json", "--data-licence", "MIT",
    )  # fmt: skip
    assert first == DataSource(Path("a"), {"1": "fruit", "Rotten Orange": "infected"}, weight=2.5)
    assert second == DataSource(Path("b.json"), images=Path("p"), split=Path("s.json"), licence="MIT")
    assert parsed() == ()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--classes", "1=fruit"), "belongs to the --data before it"),
        (("--data", "a", "--classes", "fruit"), "is not of the form"),
        (("--data", "a", "--data-weight", "much"), "--data-weight"),
    ],
)
def test_data_options_that_cannot_be_read_are_refused(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(*words)
    assert said in capsys.readouterr().err


def test_a_failed_training_says_why_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["unet", "--out", str(tmp_path / "run"), "--data", str(tmp_path / "missing"), "--quiet"])
    assert code == 1
    assert "there is no such file or folder" in capsys.readouterr().err
    assert main(["unet", "--out", str(tmp_path / "run"), "--batch", "1"]) == 1
    assert "at least 2" in capsys.readouterr().err


def test_what_is_given_replaces_the_presets() -> None:
    parser = argparse.ArgumentParser()
    add_recipe_arguments(parser)
    study = options_of(parser.parse_args(["--preset", "study", "--batch", "16", "--seed", "7"]))
    assert (study.batch, study.fit.seed, study.loss) == (16, 7, "dice")
    assert options_of(parser.parse_args([])) == PRESETS["default"]
