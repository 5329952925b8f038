import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.report_axes import Axis, axis_of
from models.evaluation.report_figures import (
    BINS,
    histogram,
    histogram_counts,
    reliability,
    stacked_bar,
    stage_names,
    whisker,
)
from models.evaluation.report_markup import document, element
from models.evaluation.report_numbers import DASH, interval, milliseconds, share
from models.evaluation.results import Calibration, CalibrationBin, Interval

NAN = math.nan
WHOLE = Axis(0, 1, 0.2)


@given(st.lists(st.one_of(st.just(NAN), st.floats(0, 1.2))))
def test_an_axis_holds_all_values_and_few_ticks(values: list[float]) -> None:
    axis = axis_of(values)
    known = [value for value in values if not math.isnan(value)]
    assert all(axis.low - 1e-9 <= value <= axis.high + 1e-9 for value in known)
    assert axis.low >= 0
    assert axis.high >= 1
    assert 3 <= len(axis.ticks()) <= 8
    assert axis.ticks()[-1] == pytest.approx(axis.high)


def test_good_values_get_a_fine_axis() -> None:
    assert axis_of([0.93, 0.97]) == Axis(0.9, 1, 0.05)
    assert axis_of([0.62, NAN]) == Axis(0.6, 1, 0.1)
    assert axis_of([0.31]) == Axis(0.2, 1, 0.2)
    assert axis_of([0.9, 1.03]) == Axis(0.9, 1.05, 0.05)


def test_a_histogram_counts_every_image_once() -> None:
    counts = histogram_counts([0, 0.04, 0.051, 0.999, 1, NAN], WHOLE)
    assert len(counts) == BINS
    assert (counts[0], counts[1], counts[-1], sum(counts)) == (2, 1, 2, 5)


def test_bars_are_as_tall_as_their_share_of_the_axis() -> None:
    drawn = histogram([0.5, 0.5, 0.9], WHOLE, most=4, label="two and one")
    heights = [float(bar.get("height", "")) for bar in drawn.iter("rect")]
    assert heights == [45, 22.5]
    assert drawn.get("aria-label") == "two and one"


def test_a_whisker_spans_its_interval() -> None:
    drawn = whisker(Interval(0.5, 0.25, 0.75), WHOLE)
    (dot,) = drawn.iter("circle")
    (line,) = (each for each in drawn.iter("line") if each.get("class") == "whisker")
    left, middle, right = (float(each) for each in (line.get("x1", ""), dot.get("cx", ""), line.get("x2", "")))
    width = float(drawn.get("width", ""))
    assert middle == width / 2
    # The quarters of the axis, which has some room on both sides.
    assert middle - left == right - middle
    assert 0.2 * width < right - middle < 0.25 * width


def test_what_was_not_measured_is_not_drawn() -> None:
    assert not list(whisker(Interval(NAN, NAN, NAN), WHOLE).iter("circle"))
    assert not list(histogram([NAN], WHOLE, most=1, label="none").iter("rect"))
    assert not list(stacked_bar({"infer": NAN, "total": 4.0}, most=4, label="none").iter("rect"))


def test_stages_are_stacked_in_the_order_in_which_they_run() -> None:
    times = {"total": 10.0, "postprocess": 1.0, "new": 2.0, "decode": 3.0, "infer": 4.0}
    assert stage_names(times) == ("decode", "infer", "postprocess", "new")
    bars = list(stacked_bar(times, most=20, label="all").iter("rect"))
    assert [float(bar.get("x", "")) for bar in bars] == [0, 150, 350, 400]
    assert [float(bar.get("width", "")) for bar in bars] == [150, 200, 50, 100]
    assert bars[3].get("class") == "stage-other"


def test_a_bar_is_as_long_as_the_total() -> None:
    (one, two) = stacked_bar({"decode": 1.0, "infer": 3.0, "total": 3.6}, most=7.2, label="all").iter("rect")
    assert (float(one.get("width", "")), float(two.get("width", ""))) == (125, 375)
    (alone,) = stacked_bar({"infer": 3.0, "total": NAN}, most=6, label="all").iter("rect")
    assert float(alone.get("width", "")) == 500


def test_a_true_score_lies_on_the_diagonal_and_more_masks_make_a_larger_dot() -> None:
    bins = (CalibrationBin(0.2, 0.3, 0.25, 0.25, 4), CalibrationBin(0.9, 1.0, 0.95, 0.75, 16))
    drawn = reliability(Calibration(bins, 20, 0.1, 0.1, 0.1, 1.0), WHOLE, label="scores")
    (diagonal,) = (each for each in drawn.iter("line") if each.get("class") == "diagonal")
    total = float(diagonal.get("x1", "")) + float(diagonal.get("y1", ""))
    true, vain = drawn.iter("circle")
    # On the diagonal x and y of SVG, whose y runs down, have the same sum everywhere; below it a larger one.
    assert float(true.get("cx", "")) + float(true.get("cy", "")) == pytest.approx(total, abs=0.02)
    assert float(vain.get("cx", "")) + float(vain.get("cy", "")) > total + 10
    assert float(vain.get("r", "")) > float(true.get("r", ""))


def test_numbers_have_the_digits_that_matter() -> None:
    assert [share(value) for value in (0.93456, 1.0, -0.0001, NAN)] == ["0.935", "1.000", "0.000", DASH]
    assert [milliseconds(value) for value in (4.04, 99.94, 99.96, 1234.5, NAN)] == ["4.0", "99.9", "100", "1,234", DASH]
    assert interval(Interval(0.5, 0.4, 0.6)) == "0.500 (0.400 to 0.600)"
    assert interval(Interval(0.5, NAN, NAN)) == "0.500"
    assert interval(Interval(NAN, NAN, NAN)) == DASH


def test_text_keeps_its_place_between_elements_and_is_escaped() -> None:
    tree = element(
        "p", "a < b", element("b", "&"), " then ", [element("i"), "c"], class_="x", aria_label='"', width=2.50
    )
    assert document(tree) == (
        '<!DOCTYPE html>\n<p class="x" aria-label="&quot;" width="2.5">a &lt; b<b>&amp;</b> then <i></i>c</p>\n'
    )
