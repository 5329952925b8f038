"""The view Segment in a real browser: clicks and boxes give masks, and masks leave in other tools' formats."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from playwright.sync_api import Page, Request, Route, expect

from models.errors import BackendError
from models.masks import Rle, decode_rle, encode_rle
from service.api import schema
from service.api.operations import OPERATIONS
from tests.browser.visitor import Visitor
from tests.contract.door import Door
from tests.contract.live import LiveDoor
from tests.contract.scenes import FRUIT_SIZE
from tests.fakes import rectangle

CLICK = (90, 90)
BOX = (240, 60, 340, 160)


def boxed(visitor: Visitor) -> None:
    """Drag a box, and wait for its mask: the box itself."""
    visitor.drag(*BOX)
    expect(visitor.area(1)).to_have_text("10,000 px")


def masks_of(file: Path) -> list[Any]:
    masks = [each["mask"] for each in json.loads(file.read_text())["masks"]]
    return [decode_rle(Rle(tuple(mask["size"]), mask["counts"])) for mask in masks]


def test_a_click_gives_three_masks_to_choose_from(visitor: Visitor, two: Path, tmp_path: Path) -> None:
    visitor.open(two)
    visitor.click(*CLICK)
    radios = visitor.page.locator("#masks input")
    expect(radios).to_have_count(3)
    areas = []
    for number in (1, 2, 3):
        visitor.page.keyboard.press(str(number))
        expect(radios.nth(number - 1)).to_be_checked()
        (mask,) = masks_of(visitor.download("Download RLE", "segment", tmp_path))
        assert mask[CLICK[1], CLICK[0]]
        areas.append(int(mask.sum()))
        expect(visitor.area(1)).to_have_text(f"{areas[-1]:,} px")
    assert len(set(areas)) == 3


def test_a_box_gives_its_mask_which_is_painted_over_the_image(visitor: Visitor, two: Path, tmp_path: Path) -> None:
    visitor.open(two)
    before = visitor.colour(290, 110)
    boxed(visitor)
    (mask,) = masks_of(visitor.download("Download RLE", "segment", tmp_path))
    expected = np.zeros((FRUIT_SIZE.height, FRUIT_SIZE.width), bool)
    expected[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True
    assert np.array_equal(mask, expected)
    assert visitor.colour(290, 110) != before
    assert visitor.colour(400, 200) == (0, 0, 0), "outside the mask the image stays as it is"


def test_a_right_click_and_alt_mark_the_background(visitor: Visitor, two: Path) -> None:
    visitor.open(two)
    visitor.click(*CLICK)
    expect(visitor.area(1)).to_contain_text("px")
    for number in (2, 3):
        with visitor.page.expect_request(re.compile("/v1/segment$")) as asked:
            if number == 2:
                visitor.click(150, 30, button="right")
            else:
                visitor.page.keyboard.down("Alt")
                visitor.click(30, 150)
                visitor.page.keyboard.up("Alt")
        sent = asked.value.post_data or ""
        assert f'"labels":[1{",0" * (number - 1)}]' in sent
        assert '"multimask":false' in sent


def test_steps_are_undone_and_done_again(visitor: Visitor, two: Path) -> None:
    visitor.open(two)
    boxed(visitor)
    visitor.page.keyboard.press("n")
    visitor.click(*CLICK)
    expect(visitor.area(2)).to_contain_text("px")
    rows = visitor.page.locator("#objects li")
    for _ in range(2):
        visitor.page.keyboard.press("Control+z")
    expect(rows).to_have_count(1)
    expect(visitor.area(1)).to_have_text("10,000 px")
    visitor.page.get_by_role("button", name="Undo").click()
    expect(visitor.area(1)).to_have_text("click it")
    expect(visitor.page.get_by_role("button", name="Undo")).to_be_disabled()
    visitor.page.keyboard.press("Control+y")
    expect(visitor.area(1)).to_have_text("10,000 px")


def test_the_image_is_sent_once(visitor: Visitor, two: Path) -> None:
    sent: list[tuple[str, bool]] = []

    def note(request: Request) -> None:
        if "/v1/" in request.url:
            sent.append((request.url.rpartition("/")[2], "image_id" in (request.post_data or "")))

    visitor.page.on("request", note)
    visitor.open(two)
    boxed(visitor)
    visitor.page.keyboard.press("n")
    visitor.click(*CLICK)
    expect(visitor.area(2)).to_contain_text("px")
    assert sent == [("embed", False), ("segment", True), ("segment", True)]


def test_an_image_that_the_service_has_forgotten_is_sent_again(visitor: Visitor, two: Path) -> None:
    def ask_for_another(route: Route) -> None:
        sent = route.request.post_data or ""
        route.continue_(post_data=re.sub("[0-9a-f]{32}", "0" * 32, sent))

    visitor.open(two)
    boxed(visitor)
    visitor.page.keyboard.press("n")
    visitor.page.route("**/v1/segment", ask_for_another, times=1)
    with visitor.page.expect_response("**/v1/segment") as answered:
        visitor.click(*CLICK)
    assert answered.value.json()["code"] == "unknown_image_id"
    expect(visitor.area(2)).to_contain_text("px")
    expect(visitor.page.locator(".message")).to_have_count(0)


def test_objects_leave_as_coco_label_studio_and_png(visitor: Visitor, two: Path, tmp_path: Path) -> None:
    visitor.open(two)
    boxed(visitor)
    visitor.page.get_by_role("button", name="New object").click()
    visitor.drag(20, 20, 40, 50)
    expect(visitor.area(2)).to_have_text("600 px")
    coco = json.loads(visitor.download("Download COCO", "segment", tmp_path).read_text())
    assert [(each["area"], each["bbox"]) for each in coco["annotations"]] == [
        (10_000, [240, 60, 100, 100]),
        (600, [20, 20, 20, 30]),
    ]
    assert coco["images"] == [{"id": 1, "file_name": "two.png", "width": 448, "height": 224}]
    (task,) = json.loads(visitor.download("Download Label Studio", "segment", tmp_path).read_text())
    assert [each["value"]["brushlabels"] for each in task["predictions"][0]["result"]] == [["Object"], ["Object"]]
    with PIL.Image.open(visitor.download("Download PNG", "segment", tmp_path)) as image:
        numbers = np.asarray(image)
    assert image.mode == "P"
    assert np.bincount(numbers.reshape(-1)).tolist() == [448 * 224 - 10_600, 10_000, 600]


def test_the_call_that_is_shown_gives_the_same_mask(visitor: Visitor, two: Path) -> None:
    visitor.open(two)
    boxed(visitor)
    shown = visitor.page.locator("#segment-result pre")
    expect(shown).to_contain_text("curl -s")
    command = shown.inner_text()
    assert f"'{visitor.address}/v1/segment'" in command
    request = re.search(r"-F 'request=(.*)' \\", command)
    assert request is not None
    prompt = schema.SegmentRequest.model_validate_json(request[1]).prompts[0]
    assert prompt.box is not None
    assert [round(side) for side in prompt.box] == list(BOX)
    visitor.page.locator("#segment-result").get_by_label("Language of the call").select_option("python")
    expect(shown).to_contain_text("pomona.segment(")
    compile(shown.inner_text(), "shown", "exec")


def test_everything_can_be_done_with_the_keyboard(visitor: Visitor, two: Path) -> None:
    visitor.open(two)
    canvas = visitor.page.locator("#canvas")
    canvas.focus()
    for key in ("ArrowRight", "ArrowRight", "Enter"):
        visitor.page.keyboard.press(key)
    expect(visitor.area(1)).to_contain_text("px")
    expect(visitor.page.locator("#news")).to_contain_text("Mask of")
    visitor.page.keyboard.press("n")
    for key in ("b", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        canvas.press(key)
    expect(visitor.area(2)).to_contain_text("px")
    visitor.page.keyboard.press("Delete")
    expect(visitor.page.locator("#objects li")).to_have_count(1)


def test_images_are_dropped_and_pasted(visitor: Visitor, two: Path) -> None:
    for event in ("drop", "paste"):
        visitor.page.evaluate(
            """async ([event, data]) => {
              const bytes = Uint8Array.from(data);
              const carried = new DataTransfer();
              carried.items.add(new File([bytes], `${event}.png`, { type: "image/png" }));
              const kind = event === "drop" ? DragEvent : ClipboardEvent;
              dispatchEvent(new kind(event, { dataTransfer: carried, clipboardData: carried }));
            }""",
            [event, list(two.read_bytes())],
        )
        expect(visitor.page.locator("#canvas")).to_have_attribute("aria-label", f"Image {event}.png")


def test_everything_is_found_where_the_service_can(page: Page, served: LiveDoor, two: Path) -> None:
    counts = encode_rle(rectangle(100, 0, 104, 8, FRUIT_SIZE)).counts
    mask = {"mask": {"size": [224, 448], "counts": counts}, "score": 0.9, "stability_score": 1.0}
    mask |= {"box": [100, 0, 104, 8], "area": 32, "point": [102, 4]}
    answer = {"masks": [mask, mask], "degraded": True, "timing_ms": {"total": 5.0}}

    def add(route: Route) -> None:
        description = route.fetch().json()
        description["paths"]["/v1/automatic"] = {}
        route.fulfill(json=description)

    page.route("**/docs.json", add)
    page.route("**/v1/automatic", lambda route: route.fulfill(json=answer))
    visitor = Visitor(page, served.address).arrive()
    visitor.open(two)
    page.get_by_role("button", name="Find everything").click()
    expect(page.locator("#objects li")).to_have_count(2)
    expect(page.locator("#outcome")).to_contain_text("2 objects, as far as time allowed")
    expect(page.locator("#segment-result pre")).to_contain_text("/v1/automatic")


def test_nothing_is_offered_that_the_service_has_not(visitor: Visitor) -> None:
    has = any(operation.name == "automatic" for operation in OPERATIONS)
    assert visitor.page.get_by_role("button", name="Find everything").is_visible() == has


def test_an_example_opens(visitor: Visitor) -> None:
    visitor.page.get_by_role("button", name="Sorting line").click()
    expect(visitor.page.locator("#outcome")).to_contain_text("640 · ready in")


def test_a_file_that_is_no_image_is_refused_in_a_sentence(visitor: Visitor, tmp_path: Path) -> None:
    file = tmp_path / "notes.png"
    file.write_text("not an image")
    visitor.page.locator("input[data-opens]").first.set_input_files(file)
    message = visitor.page.get_by_role("alert")
    expect(message).to_contain_text("This browser cannot show notes.png.")
    message.get_by_role("button", name="Close").click()
    expect(message).to_be_empty()


def test_what_the_service_refuses_is_shown_in_its_words(visitor: Visitor, two: Path, served: LiveDoor) -> None:
    visitor.open(two)
    boxed(visitor)

    async def fail(door: Door) -> None:
        door.sam.fails = BackendError("the device cannot decode")

    async def heal(door: Door) -> None:
        door.sam.fails = None

    served.do(fail)
    visitor.click(*CLICK)
    message = visitor.page.get_by_role("alert")
    expect(message).to_contain_text("request id")
    served.do(heal)
    visitor.page.keyboard.press("z")
    expect(visitor.area(1)).to_have_text("10,000 px")


def test_a_service_out_of_reach_is_named_as_such(visitor: Visitor, two: Path) -> None:
    visitor.open(two)
    boxed(visitor)
    visitor.page.route("**/v1/segment", lambda route: route.abort())
    visitor.click(*CLICK)
    expect(visitor.page.get_by_role("alert")).to_contain_text("The service cannot be reached.")
