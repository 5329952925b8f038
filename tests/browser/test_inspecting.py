"""The view Inspect in a real browser: graded fruit, moved limits, two answers side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from models.data.sources import open_dataset
from models.types import PixelClass
from tests.browser.visitor import Visitor
from tests.contract.live import LiveDoor

SICK = (290, 80)
SICK_EDGE = (240, 110)


@pytest.fixture
def visitor(page: Page, served: LiveDoor) -> Visitor:
    return Visitor(page, served.address).arrive("inspect")


def inspected(visitor: Visitor, file: Path) -> Any:
    """Open an image of two fruits, and return the service's answer once it is shown."""
    with visitor.page.expect_response("**/v1/inspect") as answered:
        visitor.open(file)
    expect(visitor.page.locator("#fruits tbody tr")).to_have_count(2)
    return answered.value.json()


def grades(visitor: Visitor) -> list[str]:
    return [text.strip() for text in visitor.page.locator("#fruits tbody td:nth-child(2)").all_inner_texts()]


def test_fruit_is_outlined_graded_and_listed_most_infected_first(visitor: Visitor, two: Path) -> None:
    answer = inspected(visitor, two)
    clean, sick = answer["fruits"]
    assert (clean["grade"], sick["grade"]) == ("A", "C")
    rows = visitor.page.locator("#fruits tbody tr")
    expect(rows.first).to_contain_text(f"{sick['area']:,}")
    expect(rows.first).to_contain_text(f"{sick['infected_fraction']:.1%}".replace("%", " %"))
    expect(rows.last).to_contain_text(f"{clean['area']:,}")
    expect(visitor.page.locator("#tally")).to_have_text("2 fruitsA: 1C: 1")
    assert visitor.colour(400, 200) == (0, 0, 0)
    assert visitor.colour(270, 80)[2] > 60, "the infected part is shaded"
    assert visitor.colour(310, 140) == (0, 255, 0), "the rest of the fruit stays as it is"


def test_a_grade_that_is_not_certain_is_marked(visitor: Visitor, two: Path) -> None:
    answer = inspected(visitor, two)
    for fruit, certain in zip(answer["fruits"], (True, False), strict=True):
        fruit |= {"infected_fraction_interval": [0.03, 0.31], "grade_certain": certain, "later": {"field": 1}}
    visitor.page.route("**/v1/inspect", lambda route: route.fulfill(json=answer))
    visitor.page.get_by_role("button", name="Inspect again").click()
    rows = visitor.page.locator("#fruits tbody tr")
    expect(rows.first).to_contain_text("3 % to 31 %")
    expect(rows.first).to_contain_text("unsure")
    expect(rows.last).not_to_contain_text("unsure")


def test_the_table_is_sorted_by_any_column(visitor: Visitor, two: Path) -> None:
    inspected(visitor, two)
    head = visitor.page.get_by_role("columnheader", name="Fruit")
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert grades(visitor) == ["A", "C"]
    head.get_by_role("button").click()
    expect(head).to_have_attribute("aria-sort", "descending")
    assert grades(visitor) == ["C", "A"]


def test_limits_are_moved_with_sliders_and_the_service_grades_by_them(visitor: Visitor, two: Path) -> None:
    inspected(visitor, two)
    assert grades(visitor) == ["C", "A"]
    slider = visitor.page.get_by_label("Limit of grade C")
    with visitor.page.expect_response("**/v1/inspect") as answered:
        slider.fill("250")  # a square root in thousandths: 0.0625, under which the others give way
    assert [fruit["grade"] for fruit in answered.value.json()["fruits"]] == ["A", "reject"]
    expect(visitor.page.locator("#tally")).to_contain_text("reject: 1")
    expect(visitor.page.locator("#inspect-result pre")).to_contain_text('"max_infected_fraction":0.063')
    visitor.page.get_by_role("button", name="Reset").click()
    expect(visitor.page.locator("#tally")).to_contain_text("C: 1")


def test_a_fruit_is_shown_when_it_is_chosen(visitor: Visitor, two: Path) -> None:
    inspected(visitor, two)
    visitor.click(*SICK)
    expect(visitor.page.locator("#fruits tr.chosen td").first).to_have_text("2")
    visitor.page.get_by_role("button", name="Show fruit 1").click()
    expect(visitor.page.locator("#fruits tr.chosen td").first).to_have_text("1")
    expect(visitor.page.locator("#news")).to_have_text("Fruit 1, grade A.")


def test_two_answers_are_compared_with_a_swipe(visitor: Visitor, two: Path) -> None:
    inspected(visitor, two)
    visitor.page.get_by_label("Compare with").select_option("this model, mode fast")
    expect(visitor.page.locator("#compared tbody tr").nth(1)).to_contain_text("fast")
    swipe = visitor.page.get_by_label("Where the left answer ends")
    expect(swipe).to_be_visible()
    swipe.fill("900")
    assert visitor.colour(visitor.size.width * 0.5, 20) == (0, 0, 0)
    visitor.page.get_by_role("tab", name="Segment").click()
    expect(swipe).to_be_hidden()


def test_a_deadline_that_is_too_short_is_refused_in_a_sentence(visitor: Visitor, two: Path, served: LiveDoor) -> None:
    inspected(visitor, two)
    visitor.page.locator("#deadline").fill("1")
    expect(visitor.page.get_by_role("alert")).to_contain_text("deadline")
    expect(visitor.page.locator("#inspected")).to_be_hidden()


def test_what_is_exported_has_the_areas_that_the_service_said(visitor: Visitor, two: Path, tmp_path: Path) -> None:
    said = inspected(visitor, two)["fruits"]
    areas = [(fruit["area"], round(fruit["infected_fraction"] * fruit["area"])) for fruit in said]
    assert areas[1][1] > 0
    for button, name in (("Download COCO", "coco.json"), ("Download Label Studio", "tasks.json")):
        file = visitor.download(button, "inspect", tmp_path)
        content = json.loads(file.read_text())
        if button == "Download Label Studio":  # as it comes back once a person has accepted the prediction
            content = [{**task, "annotations": task.pop("predictions")} for task in content]
        folder = tmp_path / button
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "two.png").write_bytes(two.read_bytes())
        (folder / name).write_text(json.dumps(content))
        read = open_dataset(folder / name, images=folder / "images").load("two")
        assert read.instance_map is not None
        fruits = [read.instance_map == fruit.id for fruit in read.instances]
        infected = read.semantic == PixelClass.INFECTED
        assert [(int(fruit.sum()), int((fruit & infected).sum())) for fruit in fruits] == areas
