"""Everything in an image, and its edges: results, options and commands, against the stand-in for a service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from click.testing import CliRunner
from stand_in import IMAGE, StandIn, use

from pomona import Automatic, Client, EdgeMap, Edges, Proposals
from pomona.cli.main import pomona
from pomona.errors import InvalidArgument


def test_masks_of_everything_hold_what_the_service_answered(service: StandIn, kind: str) -> None:
    result: Proposals = use(kind, service.address, lambda client: client.automatic(IMAGE))
    (mask,) = result.masks
    assert (mask.score, mask.point, mask.area, int(mask.array.sum())) == (0.9, (4.0, 3.0), 20, 20)
    assert (result.points_done, result.points_total, result.degraded) == (16, 64, True)
    assert [labelled.label for labelled in result.labelled_masks()] == ["object"]
    assert result.to_dict()["masks"][0]["point"] == [4.0, 3.0]


def test_a_map_of_edges_is_an_array_from_0_to_1(http: StandIn) -> None:
    with Client(http.address) as client:
        result: EdgeMap = client.edges(IMAGE)
    assert result.array.shape == (8, 16)
    assert (result.array[3] == 1).all()
    assert result.array.sum() == 16
    assert (result.masks, result.points_done, result.degraded) == (3, 16, True)


def test_every_option_is_sent(service: StandIn) -> None:
    options = {
        "preset": "fast",
        "points_per_side": 5,
        "crop_layers": 1,
        "pred_iou_threshold": 0.5,
        "stability_score_threshold": 0.25,
        "box_nms_threshold": 0.75,
        "mask_nms_threshold": 0.5,
        "min_area": 10,
        "max_area": 1000,
        "min_side": 2,
        "max_side": 90,
        "max_masks": 7,
        "model": "m",
        "overlay": True,
        "padding": "square",
    }
    with Client(service.address) as client:
        client.send(Automatic(**options), IMAGE)  # type: ignore[arg-type]
    (received,) = service.received
    assert received.fields == options


def test_the_image_is_sent_again_only_where_its_pixels_are_needed(http: StandIn) -> None:
    with Client(http.address) as client:
        embedded = client.embed(IMAGE)
        for request in (Automatic(), Automatic(overlay=True), Automatic(crop_layers=1), Edges()):
            client.send(request, embedded)
    assert [bool(received.image_id) for received in http.received] == [False, True, False, False, True]


@pytest.mark.parametrize(
    "options",
    [
        {"points_per_side": 0},
        {"points_per_side": 129},
        {"points_per_side": 2.5},
        {"crop_layers": 3},
        {"pred_iou_threshold": 1.5},
        {"box_nms_threshold": "high"},
        {"min_area": -1},
        {"max_masks": 0},
        {"preset": "slow"},
        {"overlay": 1},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        Automatic(**options)


@pytest.mark.parametrize("options", [{"points_per_side": 0}, {"box_nms_threshold": 2}, {"depth": 8}, {"thick": "yes"}])
def test_options_of_edges_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        Edges(**options)


@pytest.fixture
def image_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save("0.png")
    return "0.png"


def test_the_command_writes_numbered_masks_and_annotations(http: StandIn, image_file: str) -> None:
    arguments = [
        "automatic",
        "--url",
        http.address,
        image_file,
        "--preset",
        "fast",
        "-o",
        "masks.png",
        "--coco",
        "coco",
    ]
    done = CliRunner().invoke(pomona, arguments)
    assert (done.exit_code, done.stdout) == (0, "0.png: 1 masks, after 16 of 64 points\n")
    with PIL.Image.open("masks.png") as written:
        assert int((np.asarray(written) == 1).sum()) == 20
    assert len(json.loads(Path("coco/0.json").read_text())["annotations"]) == 1
    assert http.received[0].fields["preset"] == "fast"


def test_the_command_of_edges_writes_the_map(http: StandIn, image_file: str) -> None:
    done = CliRunner().invoke(pomona, ["edges", "--url", http.address, image_file, "-o", "edges.png"])
    assert (done.exit_code, done.stdout) == (0, "0.png: edges of 3 masks\n")
    with PIL.Image.open("edges.png") as written:
        assert (np.asarray(written)[3] == 255).all()
