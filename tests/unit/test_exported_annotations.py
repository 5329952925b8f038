"""What the client exports of an inspection is read back as a training set with the areas that the service said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import PIL.Image
import pytest

from models.data.sources import open_dataset
from models.types import PixelClass
from pomona import Inspection
from pomona.testing import a_fruit, an_inspection

SIZE: Final = (60, 80)


def exported(report: Inspection, kind: Literal["coco", "label studio"]) -> Any:
    if kind == "coco":
        return report.to_coco(file_name="a.png")
    task = report.to_label_studio(image="a.png")
    return [{"data": task["data"], "annotations": task["predictions"]}]  # as accepted by an annotator


@pytest.mark.parametrize("kind", ["coco", "label studio"])
@pytest.mark.parametrize("infected", [0.0, 0.05, 0.25, 1.0])
def test_fruits_have_the_infected_areas_that_the_service_said(
    tmp_path: Path, kind: Literal["coco", "label studio"], infected: float
) -> None:
    fruits = [a_fruit((4, 4, 24, 24), size=SIZE), a_fruit((40, 10, 60, 50), infected=infected, size=SIZE)]
    PIL.Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(tmp_path / "a.png")
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(exported(an_inspection(fruits, size=SIZE), kind)))
    sample = open_dataset(file).load("a")
    assert sample.instance_map is not None
    read = [sample.instance_map == each.id for each in sample.instances]
    rotten = sample.semantic == PixelClass.INFECTED
    assert [(int(fruit.sum()), int((fruit & rotten).sum())) for fruit in read] == [
        (fruit.area, fruit.infected_mask.area) for fruit in fruits
    ]
    assert fruits[1].infected_mask.area == round(800 * infected)
