"""Results in the formats of other tools, and drawn over images."""

from __future__ import annotations

import builtins
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from pomona import Embedding, ImageInfo, Inspection, Mask, ModelUsed, SemanticMap
from pomona.errors import BadAnswer, InvalidArgument, MissingPackage
from pomona.masks import encode_rle
from pomona.testing import UNET, a_fruit, a_mask, a_segmentation, an_embedding, an_inspection

SIZE = (60, 80)
PIXELS = np.full((*SIZE, 3), 100, np.uint8)


@pytest.fixture
def report() -> Inspection:
    fruits = [
        a_fruit((4, 4, 24, 24), size=SIZE),
        a_fruit((40, 10, 60, 50), infected=0.25, grade="C", size=SIZE, confidence=0.8),
    ]
    return an_inspection(fruits, size=SIZE)


def test_coco_has_a_box_an_area_and_a_mask_for_each_fruit(report: Inspection) -> None:
    exported = json.loads(json.dumps(report.to_coco(file_name="a.jpg", image_number=3)))
    assert exported["images"] == [{"id": 3, "file_name": "a.jpg", "width": 80, "height": 60}]
    _, sick, spot = exported["annotations"]
    names = {category["id"]: category["name"] for category in exported["categories"]}
    assert [names[each["category_id"]] for each in exported["annotations"]] == ["healthy", "healthy", "infected"]
    infected = report.fruits[1].infected_mask
    assert spot["segmentation"] == {"size": [60, 80], "counts": encode_rle(infected.array).counts}
    assert (spot["area"], spot["fruit"], spot["score"]) == (200, 2, 0.8)
    assert sick["segmentation"] == {"size": [60, 80], "counts": encode_rle(report.fruits[1].array).counts}
    assert (sick["bbox"], sick["area"], sick["iscrowd"], sick["image_id"]) == ([40, 10, 20, 40], 800, 0, 3)
    assert (sick["grade"], sick["infected_fraction"], sick["score"]) == ("C", 0.25, 0.8)
    assert len({each["id"] for each in exported["annotations"]}) == 3


def test_a_segmentation_exports_the_best_mask_of_each_prompt() -> None:
    masks = [[a_mask((0, 0, 9, 9), size=SIZE), a_mask((0, 0, 5, 5), size=SIZE)], [a_mask((20, 20, 30, 30), size=SIZE)]]
    result = a_segmentation(*masks, size=SIZE)
    assert [annotation["area"] for annotation in result.to_coco()["annotations"]] == [81, 100]
    assert result.index_map().max() == 2
    assert len(result.masks) == 3


def test_label_studio_gets_a_task_with_a_prediction(report: Inspection) -> None:
    task = json.loads(json.dumps(report.to_label_studio(image="/data/a.jpg", from_name="tag")))
    assert task["data"] == {"image": "/data/a.jpg"}
    (prediction,) = task["predictions"]
    assert prediction["score"] == 0.8
    result = prediction["result"][1]
    assert (result["type"], result["from_name"], result["to_name"]) == ("brushlabels", "tag", "image")
    assert (result["original_width"], result["original_height"]) == (80, 60)
    labels = [each["value"]["brushlabels"] for each in prediction["result"]]
    assert labels == [["Healthy"], ["Healthy"], ["Infected"]]
    assert all(0 <= number < 256 for number in result["value"]["rle"])


def test_supervision_itself_accepts_the_detections(report: Inspection) -> None:
    pytest.importorskip("supervision")
    detections: Any = report.to_supervision()
    assert len(detections) == 2
    np.testing.assert_array_equal(detections.xyxy, [[4, 4, 24, 24], [40, 10, 60, 50]])
    np.testing.assert_array_equal(detections.area, [400, 800])
    np.testing.assert_allclose(detections.confidence, [0.95, 0.8])
    assert detections.class_id.tolist() == [2, 3]
    assert detections.data["class_name"].tolist() == ["healthy", "infected"]
    rejected: Any = detections[detections["grade"] == "C"]
    assert rejected.xyxy.tolist() == [[40, 10, 60, 50]]
    assert len(an_inspection().to_supervision()) == 0


def test_without_supervision_the_error_says_how_to_install_it(
    report: Inspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        if name == "supervision":
            raise ImportError(name)
        return imported(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingPackage, match="pip install"):
        report.to_supervision()


def test_an_overlay_outlines_fruits_and_tints_what_is_infected_and_nothing_else(report: Inspection) -> None:
    drawn = np.asarray(report.overlay(PIXELS))
    changed = (drawn != PIXELS).any(axis=2)
    expected = report.fruits[1].infected_mask.array.copy()
    for x0, y0, x1, y1 in (fruit.box for fruit in report.fruits):
        expected[y0:y1, x0:x1] = True
        expected[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] &= report.fruits[1].infected_mask.array[
            y0 + 2 : y1 - 2, x0 + 2 : x1 - 2
        ]
    # The grade is written at the upper left of each fruit and may be wider than it.
    labels = np.zeros(SIZE, np.bool_)
    labels[4:22], labels[10:28] = True, True
    assert changed[expected].all()
    assert not changed[~expected & ~labels].any()
    assert tuple(drawn[49, 59]) == (204, 121, 167)  # the infected fruit's outline
    assert tuple(drawn[23, 4]) == (0, 114, 178)


def test_the_masks_of_a_segmentation_have_different_colours() -> None:
    result = a_segmentation([a_mask((0, 0, 20, 20), size=SIZE)], [a_mask((40, 0, 60, 20), size=SIZE)], size=SIZE)
    drawn = np.asarray(result.overlay(PIL.Image.fromarray(PIXELS)))
    assert tuple(drawn[0, 0]) != tuple(drawn[0, 40])
    assert tuple(drawn[10, 10]) == pytest.approx(
        [100 + (channel - 100) * 115 / 255 for channel in (0, 114, 178)], abs=1
    )
    assert (drawn[30:] == 100).all()


def test_an_overlay_needs_an_image_of_the_right_size(report: Inspection) -> None:
    with pytest.raises(InvalidArgument, match="80 x 60"):
        report.overlay(np.zeros((61, 80, 3), np.uint8))
    with pytest.raises(InvalidArgument, match="overlay=True"):
        report.overlay()
    buffer = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(buffer, "PNG")
    assert a_segmentation(size=SIZE, overlay_png=buffer.getvalue()).overlay().size == (80, 60)
    with pytest.raises(BadAnswer):
        a_segmentation(size=SIZE, overlay_png=buffer.getvalue()[:50]).overlay()


def test_saving_writes_coco_or_an_index_image(report: Inspection, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report.to_coco()
    report.save(tmp_path / "report.png")
    with PIL.Image.open(tmp_path / "report.png") as image:
        index = report.fruits[0].array + 2 * report.fruits[1].array
        np.testing.assert_array_equal(np.asarray(image), index)
        assert np.asarray(image.convert("RGB"))[index > 0].max(axis=1).min() > 100  # viewers do not show it black
    dots = [[a_mask((x % 80, x // 80, x % 80 + 1, x // 80 + 1), size=SIZE)] for x in range(300)]
    many = a_segmentation(*dots, size=SIZE)
    many.save(tmp_path / "many.png")
    with PIL.Image.open(tmp_path / "many.png") as image:
        assert int(np.asarray(image).max()) == 300
    report.fruits[0].save(tmp_path / "fruit.png")
    np.testing.assert_array_equal(Mask.open(tmp_path / "fruit.png").array, report.fruits[0].array)
    for wrong in (tmp_path / "no" / "report.json", tmp_path / "report.xyz", tmp_path):
        with pytest.raises(InvalidArgument):
            report.save(wrong)


def test_a_result_is_plain_json_without_its_drawing(report: Inspection) -> None:
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["fruits"][1]["mask"]["size"] == [60, 80]
    assert plain["fruits"][1]["box"] == [40, 10, 60, 50]
    assert plain["unet"]["input_size"] == [448, 224]
    assert "overlay_png" not in plain


def test_classes_without_pixels_are_not_exported() -> None:
    healthy, infected = np.zeros(SIZE, np.bool_), np.zeros(SIZE, np.bool_)
    healthy[:10, :10] = True
    result = SemanticMap(
        request_id="test",
        image=ImageInfo("0" * 32, 80, 60),
        model=UNET,
        healthy=Mask.of(healthy),
        infected=Mask.of(infected),
        healthy_area=100,
        infected_area=0,
    )
    assert result.array.sum() == 100
    (annotation,) = result.to_coco()["annotations"]
    assert annotation["area"] == 100
    np.testing.assert_array_equal(result.index_map(), result.array)


def test_an_embedding_can_drop_its_image() -> None:
    embedding: Embedding = an_embedding(SIZE)
    assert embedding.without_source().source is None
    assert embedding.model == ModelUsed("mobile-sam", "6dbb90523a35", 1024, "none")


def test_importing_the_package_loads_nothing_of_the_server_and_no_extra() -> None:
    code = "import sys, pomona, pomona.testing; print(*sys.modules)"
    path = {"PYTHONPATH": ":".join(sys.path)}
    loaded = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, check=False)
    roots = {name.partition(".")[0] for name in loaded.stdout.decode().split()}
    assert "pomona" in roots, loaded.stderr
    assert not roots & {"service", "models", "torch", "bentoml", "cv2", "supervision", "grpc", "pydantic"}
