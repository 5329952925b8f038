"""Boxes of detectors, their masks, and what a text names, by both clients over both transports."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from stand_in import IMAGE, Problem, StandIn, use

from pomona import Client, FloatBox, Point, errors
from pomona.cli.main import pomona as cli

OPTIONS: dict[str, Any] = {"model": "d", "score_threshold": 0.5, "nms_threshold": 0.6, "overlay": True}


def test_objects_are_read(service: StandIn, kind: str) -> None:
    found = use(kind, service.address, lambda client: client.detect(IMAGE))
    (one,) = found.detections
    assert (one.class_name, one.class_id, one.score, one.box) == ("orange", 49, 0.89, FloatBox(2.25, 1, 6.5, 6))
    assert (found.model.name, found.model.input_size) == ("yolox-nano", (416, 208))
    assert found.to_dict()["detections"][0]["box"] == [2.25, 1.0, 6.5, 6.0]
    with pytest.raises(errors.InvalidArgument, match="overlay=True"):
        found.overlay()


def test_instances_are_masks_with_the_names_of_their_classes(service: StandIn, kind: str) -> None:
    found = use(kind, service.address, lambda client: client.instances(IMAGE))
    (one,) = found.instances
    assert (one.class_name, one.area, one.box, one.mask_score) == ("orange", 20, (2, 1, 6, 6), 0.97)
    assert one.mask.array.sum() == 20
    assert (found.detector.name, found.sam.name, found.classes) == ("yolox-nano", "mobile-sam", ())
    assert found.labelled_masks()[0].label == "orange"
    assert np.unique(found.index_map()).tolist() == [0, 1]
    coco = found.to_coco()
    assert coco["categories"][-1] == {"id": 150, "name": "orange"}
    assert [each["category_id"] for each in coco["annotations"]] == [150]
    assert found.to_supervision().class_id.tolist() == [150]


def test_requests_carry_every_option(service: StandIn, kind: str) -> None:
    more = {"sam_model": "s", "max_instances": 7, "input_size": 512, "padding": "square"}
    points = [Point(3, 4), Point(5, 6, label=0)]

    def send(client: Any) -> Any:
        return client.detect(IMAGE, classes=["orange"], max_detections=9, **OPTIONS)

    use(kind, service.address, send)
    use(kind, service.address, lambda client: client.instances(IMAGE, classes=["orange"], **OPTIONS, **more))
    found = use(kind, service.address, lambda client: client.text(IMAGE, "oranges", points=points, **OPTIONS, **more))
    assert found.classes == ("orange",)
    detected, outlined, named = (received.fields for received in service.received)
    size = 512 if service.address.startswith("http") else "512"
    assert detected == {**OPTIONS, "classes": ["orange"], "max_detections": 9}
    assert outlined == {**OPTIONS, **more, "classes": ["orange"], "input_size": size}
    clicks = {"points": [[3, 4], [5, 6]], "labels": [1, 0]}
    assert named == {**OPTIONS, **more, **clicks, "text": "oranges", "input_size": size}


@pytest.mark.parametrize(
    "options",
    [
        {"classes": "orange"},
        {"classes": [5]},
        {"classes": ["orange"] * 101},
        {"score_threshold": 2},
        {"nms_threshold": "0.5"},
        {"max_detections": 0},
        {"max_detections": 301},
        {"overlay": "yes"},
        {"model": 5},
    ],
)
def test_an_option_of_another_type_or_value_is_refused_before_anything_is_sent(
    service: StandIn, options: dict[str, Any]
) -> None:
    with Client(service.address) as pomona, pytest.raises(errors.InvalidArgument):
        pomona.detect(IMAGE, **options)
    assert service.received == []


@pytest.mark.parametrize(("text", "points"), [(5, []), ("orange," * 40, []), ("orange", [(3, 4)])])
def test_a_text_and_clicks_are_checked(service: StandIn, text: Any, points: Any) -> None:
    with Client(service.address) as pomona, pytest.raises(errors.InvalidArgument):
        pomona.text(IMAGE, text, points=points)
    assert service.received == []


def test_an_unknown_class_is_an_error_of_its_own(service: StandIn) -> None:
    service.always(Problem("unknown_class", "It knows orange, apple."))
    with Client(service.address) as pomona, pytest.raises(errors.UnknownClass, match="orange, apple"):
        pomona.text(IMAGE, "plum")


@pytest.mark.parametrize(
    ("arguments", "operation", "fields"),
    [
        (
            ["--class", "orange", "--score", "0.4", "--most", "5"],
            "detect",
            {"classes": ["orange"], "max_detections": 5},
        ),
        (["--masks", "--sam-model", "s"], "instances", {"sam_model": "s"}),
        (["--text", "oranges"], "text", {"text": "oranges"}),
    ],
)
def test_the_command_counts_what_is_found(
    service: StandIn, tmp_path: Any, arguments: list[str], operation: str, fields: dict[str, Any]
) -> None:
    file = tmp_path / "oranges.png"
    file.write_bytes(IMAGE)
    done = CliRunner().invoke(cli, ["detect", str(file), *arguments, "--url", service.address])
    assert (done.exit_code, done.output) == (0, f"{file}: 1 orange (22 ms)\n")
    (received,) = service.received
    assert received.operation == operation
    assert {name: received.fields[name] for name in fields} == fields
    listed = CliRunner().invoke(cli, ["detect", str(file), *arguments, "--json", "--url", service.address])
    assert json.loads(listed.output)["ok"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--text", "oranges", "--class", "orange"], "--class cannot be added"),
        (["--sam-model", "s"], "needs --masks or --text"),
        (["--text", "orange" * 50], "at most 256 characters"),
    ],
)
def test_options_of_the_command_that_do_not_go_together_are_wrong_usage(
    service: StandIn, arguments: list[str], says: str
) -> None:
    done = CliRunner().invoke(cli, ["detect", "a.png", *arguments, "--url", service.address])
    assert done.exit_code == 2
    assert says in done.output
