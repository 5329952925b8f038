import base64
import dataclasses
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from models.errors import DataError
from models.evaluation.report import summary_markdown, write_report
from models.evaluation.results import ImageFile, Results, Subject
from tests.invented_results import KINDS, NAN, Kind, full_results, invented_group, invented_images, invented_results

VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "A&B <script>alert(\"1\")</script> | 'x'"


class Page(HTMLParser):
    """What a browser would see: elements with attributes and text; fails on tags that do not pair."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def text(self) -> str:
        return " ".join(" ".join(text for tag, text in self.texts if tag != "style").split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def results() -> Results:
    return full_results()


@pytest.fixture(scope="module")
def file(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(results, invented_images(results), tmp_path_factory.mktemp("report") / "new")


@pytest.fixture(scope="module")
def page(file: Path) -> Page:
    return Page(file.read_text("utf-8"))


def of(results: Results, folder: Path, images: list[ImageFile] | None = None) -> Page:
    return Page(write_report(results, images or [], folder).read_text("utf-8"))


def test_the_page_needs_nothing_but_itself_and_stays_below_4_mb(file: Path, page: Page) -> None:
    assert file.name == "report.html"
    assert file.stat().st_size < 4_000_000
    assert [each.name for each in file.parent.iterdir()] == ["report.html"]
    assert not page.all("script")
    assert not page.all("link")
    sources = [attributes["src"] for _, attributes in page.elements if "src" in attributes]
    assert sources
    assert all(each.startswith("data:image/jpeg;base64,") for each in sources)
    assert all(attributes["href"].startswith("#") for attributes in page.all("a"))
    (style,) = (text for tag, text in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


def test_it_tells_every_subject_of_every_group_with_its_interval(results: Results, page: Page) -> None:
    text = page.text()
    for group in results.groups:
        assert group.title in text
        for each in group.measured:
            assert each.subject.title in text
            found = each.measures["fruit_iou_per_image"]
            assert f"{found.value:.3f} {found.low:.3f} to {found.high:.3f}" in text


def test_it_shows_all_images_with_their_names_and_ious(results: Results, page: Page) -> None:
    images = invented_images(results)
    assert len(page.all("img")) == len(images) == 7 * 3 * 6
    text = page.text()
    for each in images:
        assert f"{each.name} fruit IoU {each.fruit_iou:.3f}" in text


def test_a_image_stands_under_its_own_group_only(results: Results, tmp_path: Path) -> None:
    # Both groups hold images of the same names.
    only = [each for each in invented_images(results, height=60) if each.group == "rendered"][:1]
    text = of(results, tmp_path, only).text()
    assert text.count("Best and worst images") == 1
    assert text.index("Best and worst images") > text.index("Rendered scenes: time per stage")


def test_the_best_come_best_first_and_the_worst_worst_first(results: Results, tmp_path: Path) -> None:
    images = [each for each in invented_images(results, height=60) if each.group == "rendered"][:6]
    shown = [float(each) for each in re.findall(r"fruit IoU (\d\.\d{3})", of(results, tmp_path, images).text())]
    kinds = {
        kind: sorted(round(each.fruit_iou, 3) for each in images if each.kind == kind) for kind in ("best", "worst")
    }
    assert shown[-6:] == kinds["best"][::-1] + kinds["worst"]


def test_it_says_what_must_be_known_to_read_it(page: Page, results: Results) -> None:
    text = page.text()
    assert "Groups are never averaged." in text
    assert "An oracle is no result one can have." in text
    assert "Intervals come from the bootstrap over images." in text
    for told in (*results.machine.values(), *results.options.values(), results.commit, results.made_at, *results.notes):
        assert told in text


def test_every_measure_is_explained_once(page: Page, results: Results) -> None:
    explained = [text for tag, text in page.texts if tag == "code"]
    measured = {name for group in results.groups for each in group.measured for name in each.measures}
    assert sorted(explained) == sorted(measured)


def test_every_figure_and_table_head_can_be_read_aloud(page: Page) -> None:
    assert all(attributes["alt"] for attributes in page.all("img"))
    for attributes in page.all("svg"):
        assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-label"])
    assert all(attributes["scope"] in ("col", "row") for attributes in page.all("th"))
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    assert {attributes["href"][1:] for attributes in page.all("a")} == set(identities)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(headings))


def test_foreign_text_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    subject = Subject("name", HOSTILE, "unet", HOSTILE, HOSTILE, {HOSTILE: HOSTILE})
    group = invented_group("g", HOSTILE, images=3, classes=True, seed=1, kinds=[Kind(subject, 0.9, {HOSTILE: 3.0})])
    results = dataclasses.replace(
        invented_results([group], notes=(HOSTILE,)), machine={HOSTILE: HOSTILE}, commit=HOSTILE, options={"a": HOSTILE}
    )
    images = [dataclasses.replace(each, name=HOSTILE) for each in invented_images(results, height=60)]
    page = of(results, tmp_path, images)
    assert not page.all("script")
    assert page.text().count(HOSTILE) >= 15
    assert any(HOSTILE in attributes["alt"] for attributes in page.all("img"))
    rows = summary_markdown(results).splitlines()[2:]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(re.findall(r"(?<!\\)\|", rows[1]))}


def test_names_that_no_encoding_knows_are_written_all_the_same(tmp_path: Path) -> None:
    # What Python makes of a file name's bytes that are no UTF-8, and a character that HTML forbids.
    results = invented_results([], notes=("apple\udcff\x00.jpg",))
    assert "apple\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.jpg" in of(results, tmp_path).text()


def test_what_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    group = invented_group("g", "Title", images=4, classes=False, seed=1, kinds=KINDS[:2])
    blank = dataclasses.replace(
        group.measured[0],
        measures={},
        milliseconds={"total": NAN},
        per_image=tuple(dataclasses.replace(each, fruit_iou=NAN) for each in group.measured[0].per_image),
    )
    results = invented_results([dataclasses.replace(group, measured=(blank, group.measured[1]))])
    page = of(results, tmp_path)
    assert "nan" not in page.text().lower().split()
    assert not any("nan" in value.lower() for _, each in page.elements for value in each.values())
    assert "nothing measured; 4 without fruit not counted" in page.text()
    row = next(row for row in summary_markdown(results).splitlines() if "ResNet" in row)
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == ["–"] * 3  # noqa: RUF001 the report's dash


def test_nothing_measured_is_still_a_page(tmp_path: Path) -> None:
    assert "No images were measured." in of(invented_results([]), tmp_path).text()
    empty = invented_group("g", "Nobody came", images=1, classes=False, seed=1, kinds=[])
    assert "Nothing was measured on it." in of(invented_results([empty]), tmp_path).text()
    assert summary_markdown(invented_results([])) == "\n"


def test_an_oracle_is_never_called_the_best(tmp_path: Path) -> None:
    oracle = dataclasses.replace(KINDS[5], skill=0.999)
    group = invented_group("g", "Title", images=40, classes=False, seed=1, kinds=[*KINDS[:3], oracle])
    value = [each.measures["fruit_iou_per_image"].value for each in group.measured]
    assert max(value) == value[3]
    page = of(invented_results([group]), tmp_path)
    assert f"{value[3]:.3f}" not in [text for tag, text in page.texts if tag == "strong"]
    assert f"{sorted(value)[-2]:.3f}" in [text for tag, text in page.texts if tag == "strong"]
    leader = group.measured[value.index(sorted(value)[-2])].subject.title
    assert f": {leader} , {sorted(value)[-2]:.3f}" in page.text()
    assert f"{value[3]:.3f} (" not in page.text()
    assert "oracle: no result one can have" in page.text()
    assert "(oracle)" in summary_markdown(invented_results([group]))


def test_equal_figures_lead_together(tmp_path: Path) -> None:
    group = invented_group("g", "Title", images=9, classes=False, seed=1, kinds=KINDS[:2])
    twins = tuple(dataclasses.replace(each, measures=group.measured[0].measures) for each in group.measured)
    page = of(invented_results([dataclasses.replace(group, measured=twins)]), tmp_path)
    value = f"{twins[0].measures['fruit_iou_per_image'].value:.3f}"
    assert [text for tag, text in page.texts if tag == "strong"].count(value) == 2


def test_the_best_without_a_prompt_from_the_annotation_is_told_apart(results: Results, page: Page) -> None:
    alone = [each for each in results.groups[0].measured if "prompted_iou_per_fruit" not in each.measures]
    leader = max(alone, key=lambda each: each.measures["fruit_iou_per_image"].value)
    assert f"Highest fruit IoU without any prompt from the annotation: {leader.subject.title}" in page.text()


def test_many_images_shrink_and_few_stay_as_they_are(results: Results, page: Page, tmp_path: Path) -> None:
    heights = {int(each["height"]) for each in page.all("img")}
    assert 200 <= min(heights) < 300
    few = invented_images(results)[:6]
    shown = of(results, tmp_path, few).all("img")
    assert {each["height"] for each in shown} == {"360"}
    sources = {f"data:image/jpeg;base64,{base64.b64encode(each.jpeg).decode()}" for each in few}
    assert {each["src"] for each in shown} == sources


def test_a_image_that_is_none_is_refused(results: Results, tmp_path: Path) -> None:
    broken = ImageFile("rendered", "mobile-sam-box", "pear", 0.5, "best", b"no image")
    with pytest.raises(DataError, match="pear"):
        write_report(results, [broken], tmp_path)
    assert not list(tmp_path.iterdir())


def test_equal_results_make_equal_pages(results: Results, tmp_path: Path) -> None:
    images = invented_images(results, height=60)
    one = write_report(results, images, tmp_path / "one").read_bytes()
    assert write_report(full_results(), images, tmp_path / "two").read_bytes() == one


def test_the_summary_is_a_markdown_table_for_each_group(results: Results) -> None:
    blocks = summary_markdown(results).rstrip("\n").split("\n\n")
    assert len(blocks) == 2 * len(results.groups)
    for group, heading, table in zip(results.groups, blocks[::2], blocks[1::2], strict=True):
        assert group.title in heading
        rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
        assert len({len(row) for row in rows}) == 1
        assert len(rows) == 2 + len(group.measured)
        for row, each in zip(rows[2:], group.measured, strict=True):
            found = each.measures["fruit_iou_per_image"]
            assert row[1] == f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
            assert "Fruit IoU per image" in rows[0]
    assert "Infected IoU per image" in blocks[5]
    assert "Infected" not in blocks[1]
