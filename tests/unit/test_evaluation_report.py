import dataclasses
import io
import itertools
import math
import re
from pathlib import Path
from typing import Literal

import numpy as np
import PIL.Image
import pytest

from models.data.samples import Sample
from models.errors import DataError
from models.evaluation.candidates import Answer
from models.evaluation.gallery import HEIGHT, WIDTH, Gallery, GalleryImage, contact_sheet, read_gallery, side_by_side
from models.evaluation.report import milliseconds, share, summary_markdown, write_report
from models.evaluation.results import Candidate, Results
from models.types import Pixels, Size
from tests.invented_results import KINDS, Kind, full_results, invented_gallery, invented_group, invented_results
from tests.knowing_unet import discs
from tests.parsed_page import Page

pytestmark = pytest.mark.slow

NAN = math.nan
HOSTILE = "A&B <script>alert(\"1\")</script> | 'x' $\\frac{1}{2$"


@pytest.fixture(scope="module")
def results() -> Results:
    return full_results()


@pytest.fixture(scope="module")
def file(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(results, invented_gallery(results), tmp_path_factory.mktemp("report") / "new")


@pytest.fixture(scope="module")
def page(file: Path) -> Page:
    return Page(file.read_text("utf-8"))


def page_of(results: Results, folder: Path, gallery: list[GalleryImage] | None = None) -> Page:
    return Page(write_report(results, gallery or [], folder).read_text("utf-8"))


def test_the_report_is_one_file_without_scripts_or_other_hosts(file: Path, page: Page) -> None:
    assert file.stat().st_size < 4_000_000
    assert [each.name for each in file.parent.iterdir()] == ["report.html"]
    assert not page.all("script")
    assert not page.all("link")
    assert all(each["src"].startswith("data:image/") for each in page.all("img"))
    assert all(attributes["href"].startswith("#") for attributes in page.all("a"))
    (style,) = (text for tag, text in page.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style


def test_the_report_shows_every_candidate_with_values_times_and_images(results: Results, page: Page) -> None:
    text = page.text()
    for group in results.groups:
        assert group.title in text
        for each in group.results:
            assert each.candidate.title in text
            found = each.measures["fruit_iou_per_image"]
            assert f"{found.value:.3f} {found.low:.3f} to {found.high:.3f}" in text
            assert milliseconds(each.timing_ms["total"]) in text
            if each.score_calibration:
                assert f"{each.score_calibration.expected_calibration_error:.3f}" in text
    gallery = invented_gallery(results)
    assert len(page.gallery()) == len(gallery) == 7 * 2 * 6
    for image in gallery:
        assert f"{image.name} fruit IoU {image.fruit_iou:.3f}" in text


def test_the_report_shows_how_it_was_measured(page: Page, results: Results) -> None:
    text = page.text()
    for shown in (
        *results.machine.values(),
        *results.options.values(),
        results.commit,
        results.created_at,
        *results.notes,
    ):
        assert shown in text
    defined = [text for tag, text in page.texts if tag == "code"]
    assert sorted(defined) == sorted({name for g in results.groups for each in g.results for name in each.measures})


def test_figures_show_iou_times_and_calibration_of_each_candidate(results: Results, page: Page) -> None:
    figures = page.figures()
    assert len(figures) == 2 * 3
    for iou, timing, reliability in (figures[:3], figures[3:]):
        for candidate in (each.candidate for each in results.groups[0].results):
            first_word = candidate.title.split()[0]
            assert first_word in iou
            assert first_word in timing
        for stage in ("decode", "encode", "prompt", "infer", "postprocess"):
            assert stage in timing
        assert "mean score" in reliability


def test_tables_and_figures_are_accessible(page: Page) -> None:
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert all(attributes["scope"] in ("col", "row") for attributes in page.all("th"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for attributes in page.all("a")} == set(ids)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(headings))


def test_hostile_text_cannot_become_part_of_the_page(tmp_path: Path) -> None:
    candidate = Candidate("name", HOSTILE, "unet", HOSTILE, HOSTILE, {HOSTILE: HOSTILE})
    group = invented_group("g", HOSTILE, images=3, classes=True, seed=1, kinds=[Kind(candidate, 0.9, {HOSTILE: 3.0})])
    results = dataclasses.replace(
        invented_results([group], notes=(HOSTILE,)), machine={HOSTILE: HOSTILE}, commit=HOSTILE, options={"a": HOSTILE}
    )
    gallery = [dataclasses.replace(each, name=HOSTILE) for each in invented_gallery(results, height=60)]
    page = page_of(results, tmp_path, gallery)
    assert not page.all("script")
    assert page.text().count(HOSTILE) >= 15
    assert any(HOSTILE in attributes["alt"] for attributes in page.all("img"))
    assert all("<script>" in each for each in page.figures())
    assert {image.name for image in read_gallery((tmp_path / "report.html").read_text("utf-8"))} == {HOSTILE}
    rows = summary_markdown(results).splitlines()[2:]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {len(re.findall(r"(?<!\\)\|", rows[1]))}


def test_names_outside_of_unicode_are_written_with_replacement_characters(tmp_path: Path) -> None:
    # Python's form of file names that are not UTF-8, a character that HTML forbids, and one without a glyph.
    name = "apple\udcff\x00\u6a58.jpg"
    kind = dataclasses.replace(KINDS[0], candidate=dataclasses.replace(KINDS[0].candidate, title=name))
    group = invented_group("g", "Title", images=3, classes=False, seed=1, kinds=[kind])
    page = page_of(invented_results([group], notes=(name,)), tmp_path)
    expected = "apple\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\u6a58.jpg"
    assert expected in page.text()
    assert all(expected in each for each in page.figures())


def test_undefined_values_are_a_dash(tmp_path: Path) -> None:
    group = invented_group("g", "Title", images=4, classes=False, seed=1, kinds=KINDS[:2])
    blank = dataclasses.replace(
        group.results[0],
        measures={},
        timing_ms={"total": NAN},
        per_image=tuple(dataclasses.replace(each, fruit_iou=NAN) for each in group.results[0].per_image),
    )
    results = invented_results([dataclasses.replace(group, results=(blank, group.results[1]))])
    page = page_of(results, tmp_path)
    assert "nan" not in page.text().lower().split()
    row = next(row for row in summary_markdown(results).splitlines() if "ResNet" in row)
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == ["–"] * 3  # noqa: RUF001 the report's dash
    assert share(-0.0001) == "0.000"
    assert (milliseconds(5.04), milliseconds(1234.5)) == ("5.0", "1,234")


def test_empty_results_make_a_report(tmp_path: Path) -> None:
    assert "No images were measured." in page_of(invented_results([]), tmp_path).text()
    empty = invented_group("g", "Title", images=1, classes=False, seed=1, kinds=[])
    assert "Nothing was measured on it." in page_of(invented_results([empty]), tmp_path).text()
    assert summary_markdown(invented_results([])) == "\n"


def test_an_oracle_is_never_the_best(tmp_path: Path) -> None:
    oracle = dataclasses.replace(KINDS[5], skill=0.999)
    group = invented_group("g", "Title", images=40, classes=False, seed=1, kinds=[*KINDS[:3], oracle])
    values = [each.measures["fruit_iou_per_image"].value for each in group.results]
    assert max(values) == values[3]
    page = page_of(invented_results([group]), tmp_path)
    strong = [text for tag, text in page.texts if tag == "strong"]
    assert f"{values[3]:.3f}" not in strong
    second = sorted(values)[-2]
    assert f"{second:.3f}" in strong
    leader = group.results[values.index(second)].candidate.title
    assert f"of all candidates except oracles: {leader} , {second:.3f} (" in page.text()
    assert "oracle: an upper bound, not a result" in page.text()
    assert "(oracle)" in summary_markdown(invented_results([group]))


def test_equal_values_share_the_lead(tmp_path: Path) -> None:
    group = invented_group("g", "Title", images=9, classes=False, seed=1, kinds=KINDS[:2])
    equal = tuple(dataclasses.replace(each, measures=group.results[0].measures) for each in group.results)
    page = page_of(invented_results([dataclasses.replace(group, results=equal)]), tmp_path)
    value = f"{equal[0].measures['fruit_iou_per_image'].value:.3f}"
    assert [text for tag, text in page.texts if tag == "strong"].count(value) == 2


def test_the_best_candidate_without_prompts_from_the_annotation_is_named(results: Results, page: Page) -> None:
    unprompted = [each for each in results.groups[0].results if "prompted_iou_per_fruit" not in each.measures]
    leader = max(unprompted, key=lambda each: each.measures["fruit_iou_per_image"].value)
    assert f"Highest fruit IoU without prompts from the annotation: {leader.candidate.title}" in page.text()


@pytest.fixture
def small() -> Results:
    """Two groups, the second without figures."""
    groups = [("one", KINDS[:1]), ("two", ())]
    return invented_results(
        [invented_group(name, name, images=9, classes=False, seed=1, kinds=kinds) for name, kinds in groups]
    )


def test_the_gallery_is_sorted_and_read_back_from_the_report(small: Results, tmp_path: Path) -> None:
    gallery = invented_gallery(small, height=60)
    file = write_report(small, gallery, tmp_path)
    page = Page(file.read_text("utf-8"))
    assert page.text().count("Best and worst images") == 1  # in its own group only
    shown = read_gallery(file.read_text("utf-8"))
    best, worst = ([each for each in shown if each.kind == kind] for kind in ("best", "worst"))
    assert [each.fruit_iou for each in best] == sorted((each.fruit_iou for each in best), reverse=True)
    assert [each.fruit_iou for each in worst] == sorted(each.fruit_iou for each in worst)
    assert {dataclasses.astuple(each) for each in shown} == {dataclasses.astuple(each) for each in gallery}
    assert write_report(small, shown, tmp_path / "again").read_bytes() == file.read_bytes()
    with pytest.raises(DataError, match="earlier report"):
        read_gallery('<img data-kind="best" src="x">')


def test_many_images_shrink_and_few_do_not(small: Results, page: Page, tmp_path: Path) -> None:
    assert sum(len(each["src"]) for each in page.gallery()) < 3_500_000
    few = invented_gallery(small)
    assert {each["src"] for each in page_of(small, tmp_path, few).gallery()} == {each.uri for each in few}
    broken = dataclasses.replace(few[0], name="pear", jpeg=b"no image")
    with pytest.raises(DataError, match="pear"):
        write_report(small, [broken], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_contact_sheet_shows_the_worst_images_of_the_first_candidate() -> None:
    def image(group: str, candidate: str, kind: Literal["best", "worst"], colour: tuple[int, int, int]) -> GalleryImage:
        file = io.BytesIO()
        PIL.Image.new("RGB", (400, 200), colour).save(file, "JPEG")
        return GalleryImage(group, candidate, "x", kind, 0.5, file.getvalue())

    red, green, blue, grey = (255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128)
    shown = [image("trees", "mine", "worst", red), image("lesions", "mine", "worst", green)]
    left_out = [image("trees", "mine", "best", blue), image("trees", "other", "worst", grey)]
    with PIL.Image.open(io.BytesIO(contact_sheet([left_out[0], *shown, left_out[1]]))) as sheet:
        left, right = (sheet.getpixel((sheet.width * place // 4, sheet.height // 2)) for place in (1, 3))
    assert left == pytest.approx(red, abs=5)
    assert right == pytest.approx(green, abs=5)
    with pytest.raises(DataError, match="no worst images"):
        contact_sheet(left_out[:1])


def test_the_summary_is_a_markdown_table_per_group(results: Results) -> None:
    blocks = summary_markdown(results).rstrip("\n").split("\n\n")
    assert len(blocks) == 2 * len(results.groups)
    for group, heading, table in zip(results.groups, blocks[::2], blocks[1::2], strict=True):
        assert group.title in heading
        rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
        assert len({len(row) for row in rows}) == 1
        assert "Fruit IoU per image" in rows[0]
        for row, each in zip(rows[2:], group.results, strict=True):
            found = each.measures["fruit_iou_per_image"]
            assert row[1] == f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
    assert "Infected IoU per image" in blocks[3]
    assert "Infected" not in blocks[1]


def offered(*ious: float) -> list[tuple[str, str, float]]:
    gallery = Gallery("g", "c")
    for number, iou in enumerate(ious):
        nothing = Answer(np.zeros((224, 448), np.uint8), (), {})
        gallery.offer(discs((100, 100, 40), name=str(number)), nothing, iou)
    return [(each.kind, each.name, each.fruit_iou) for each in gallery.images()]


def test_the_gallery_keeps_the_three_best_and_the_three_worst_images() -> None:
    assert offered(0.5, 0.9, 0.1, 0.7, 0.3, 0.8, 0.2, 0.6) == [
        ("best", "1", 0.9), ("best", "5", 0.8), ("best", "3", 0.7),
        ("worst", "2", 0.1), ("worst", "6", 0.2), ("worst", "4", 0.3),
    ]  # fmt: skip
    # Of equal ones the first stay.
    equal = offered(0.5, 0.5, 0.5, 0.5, 0.1, 0.2, 0.3)
    assert [name for kind, name, _ in equal if kind == "best"] == ["0", "1", "2"]
    assert offered(math.nan) == []


def test_the_gallery_holds_no_image_twice() -> None:
    assert offered(0.5) == [("best", "0", 0.5)]
    assert offered(0.5, 0.7, 0.6) == [("best", "1", 0.7), ("best", "2", 0.6), ("worst", "0", 0.5)]
    assert [name for _, name, _ in offered(0.1, 0.2, 0.3, 0.4)] == ["3", "2", "0", "1"]


def sides(sample: Sample, answer: Answer) -> tuple[Pixels, Pixels]:
    whole = np.asarray(PIL.Image.open(io.BytesIO(side_by_side(sample, answer))))
    half = (whole.shape[1] - 4) // 2
    return whole[:, :half], whole[:, -half:]


@pytest.mark.parametrize(
    ("size", "expected"),
    [(Size(100, 200), (100, 200)), (Size(1000, 1000), (HEIGHT, HEIGHT)), (Size(200, 1920), (50, WIDTH))],
)
def test_large_images_are_drawn_smaller(size: Size, expected: tuple[int, int]) -> None:
    sample = discs((50, 50, 30), size=size)
    left, right = sides(sample, Answer(sample.semantic, (), {}))
    assert left.shape[:2] == right.shape[:2] == expected


def test_the_annotation_is_outlined_on_the_left_and_the_prediction_on_the_right() -> None:
    sample, predicted = discs((100, 100, 60), (300, 100, 60), infected=[1]), discs((300, 100, 60))
    assert predicted.instance_map is not None
    left, right = sides(sample, Answer(predicted.semantic, (predicted.instance_map == 1,), {}))
    # The left rim of the first disc is drawn in the annotation only. JPEG blurs what is one pixel wide.
    rim = (slice(95, 105), slice(36, 44))
    plain = sample.pixels[rim]
    assert np.abs(left[rim].astype(int) - plain).max() > 80
    assert np.abs(right[rim].astype(int) - plain).max() < 80
    # Infected: a purple line in the annotation only, where blue and red both exceed green.
    purple = [
        (np.minimum(side[..., 0], side[..., 2]) > side[..., 1] + 30).sum()
        for side in (each[30:170, 230:370].astype(int) for each in (left, right))
    ]
    assert purple[0] > 100
    assert purple[1] < 10


def test_touching_fruits_are_separated_by_a_line() -> None:
    sample = discs((100, 100, 50), (170, 100, 50))
    assert sample.instance_map is not None
    left, right = sides(sample, Answer(sample.semantic, (sample.instance_map > 0,), {}))
    seam = (slice(95, 105), slice(115, 125))  # the left rim of the second disc, which lies on top
    assert np.abs(left[seam].astype(int) - right[seam]).max() > 60
