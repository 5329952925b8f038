"""Drift: statistics of images and answers, their index against a reference, and the file of the reference."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from models.catalog import CATALOGUE, CatalogueEntry, LocalFile
from models.drift import (
    LEAST,
    REFERENCES,
    STATISTICS,
    WINDOW,
    Distribution,
    Reference,
    Window,
    fit_distribution,
    fruit_size,
    image_statistics,
    population_stability,
)
from models.errors import WeightsError
from models.training.__main__ import main
from models.types import Size
from tests.fakes import LOADED_UNET
from tests.untrained import write_untrained_unet


def test_the_index_is_that_of_the_definition_on_large_counts() -> None:
    expected, actual = (5000, 3000, 2000), (2000, 3000, 5000)
    by_hand = (0.2 - 0.5) * math.log(0.2 / 0.5) + (0.5 - 0.2) * math.log(0.5 / 0.2)
    assert population_stability(expected, actual) == pytest.approx(by_hand, rel=1e-3)
    assert population_stability(expected, expected) == 0
    assert population_stability(expected, actual) == pytest.approx(population_stability(actual, expected))


def test_an_empty_bin_is_a_large_index_and_not_an_infinite_one() -> None:
    assert 0.25 < population_stability((50, 50), (0, 100)) < 10


def test_bins_have_equal_shares_of_the_reference_and_at_least_ten_numbers() -> None:
    many = fit_distribution(np.random.default_rng(0).normal(size=1000).tolist())
    assert many is not None
    assert many.counts == (100,) * 10
    few = fit_distribution([float(value) for value in range(43)])
    assert few is not None
    assert len(few.counts) == 4
    assert min(few.counts) >= 10
    assert fit_distribution([1.0] * 29) is None


def test_a_value_that_many_share_has_a_bin_of_its_own() -> None:
    healthy = fit_distribution([0.0] * 60 + [0.1 + 0.01 * number for number in range(40)])
    assert healthy is not None
    assert healthy.counts[0] == 60
    assert healthy.bin_of(0.0) == 0
    assert healthy.bin_of(1e-6) == 1
    assert healthy.bin_of(9.0) == len(healthy.counts) - 1


def test_a_window_says_nothing_of_few_numbers_and_forgets_old_ones() -> None:
    reference = fit_distribution(np.linspace(0, 1, 1000).tolist())
    assert reference is not None
    window, draw = Window(reference), np.random.default_rng(1)
    assert window.add(draw.random(LEAST - 1)) is None
    alike = window.add(draw.random(WINDOW))
    assert alike is not None
    assert alike < 0.1
    assert window.add([0.99]) is None, "it is not said for each number"
    other = window.add([0.99] * (WINDOW // 2))
    assert other is not None
    assert other > 0.25
    again = window.add(draw.random(WINDOW))
    assert again is not None
    assert again < 0.1


def test_statistics_of_an_image_follow_light_colour_and_focus() -> None:
    grey = np.full((40, 60, 3), 51, np.uint8)
    assert image_statistics(grey) == pytest.approx({"brightness": 0.2, "saturation": 0.0, "sharpness": 0.0})
    red = grey.copy()
    red[..., 0] = 255
    assert image_statistics(red)["saturation"] == pytest.approx(0.8)
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    blurred = np.asarray(PIL.Image.fromarray(noise).resize((6, 4)).resize((60, 40)))
    assert image_statistics(noise)["sharpness"] > image_statistics(blurred)["sharpness"] + 1
    assert fruit_size(25, Size(10, 10)) == 0.5


def entry_of(weights: Path, sha256: str) -> CatalogueEntry:
    return replace(LOADED_UNET, sha256=sha256, sources=(LocalFile(weights),))


REFERENCE = Reference("ab" * 32, 43, {"brightness": Distribution((0.2, 0.4), (10, 20, 13))})


def test_a_reference_is_kept_beside_its_weights_and_read_for_these_alone(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    REFERENCES.write(REFERENCE, weights)
    assert REFERENCES.path(weights) == tmp_path / "model.reference.json"
    assert REFERENCES.read(entry_of(weights, "ab" * 32)) == REFERENCE
    assert REFERENCES.read(entry_of(weights, "cd" * 32)) is None
    assert REFERENCES.read(entry_of(tmp_path / "other.safetensors", "ab" * 32)) is None


def test_a_damaged_reference_is_named(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    REFERENCES.write(REFERENCE, weights)
    content = json.loads(REFERENCES.path(weights).read_text())
    content["statistics"]["brightness"]["counts"] = [1]
    REFERENCES.path(weights).write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="2 edges need 3 counts, got 1"):
        REFERENCES.read(entry_of(weights, "ab" * 32))
    REFERENCES.path(weights).write_text("{")
    with pytest.raises(WeightsError, match="make it again or remove it"):
        REFERENCES.read(entry_of(weights, "ab" * 32))


def test_the_shipped_u_net_has_a_reference_of_every_statistic() -> None:
    reference = REFERENCES.read(CATALOGUE["unet-mobilenetv2-citrus"])
    assert reference is not None
    assert set(reference.statistics) == set(STATISTICS)


def test_the_command_describes_validation_images_and_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, data = tmp_path / "model.safetensors", tmp_path / "data"
    write_untrained_unet(weights, "unet-mobilenetv2", 0)
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True)
    names = [f"i{number:02d}" for number in range(33)]
    for number, name in enumerate(names):
        PIL.Image.new("RGB", (64, 64), (8 * number // 2,) * 3).save(data / "images" / f"{name}.png")
        PIL.Image.new("L", (64, 64)).save(data / "masks" / f"{name}.png")
    command = ["reference", "--weights", str(weights), "--data", str(data), "--device", "cpu", "--threads", "1"]
    split = {"train": names[30:], "val": names[:30], "test": []}
    (data / "split.json").write_text(json.dumps(split))
    assert main(command) == 0
    content = json.loads(REFERENCES.path(weights).read_text())
    assert content["images"] == 30
    assert content["statistics"]["brightness"]["counts"] == [10, 10, 10]
    (data / "split.json").write_text(json.dumps(split | {"train": names[5:], "val": names[:5]}))
    assert main(command) == 1
    assert "needs at least 30 validation images, got 5" in capsys.readouterr().err
    assert main(["reference", "--weights", str(tmp_path / "none"), "--data", str(data)]) == 1
    assert "there is no such checkpoint" in capsys.readouterr().err
