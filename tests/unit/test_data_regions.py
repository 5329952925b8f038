import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.data.regions import Region, RegionFault, paint, region_of_mask, region_of_rings
from models.errors import DataError
from models.types import PixelClass, Size

SIZE = Size(20, 30)
HEALTHY, INFECTED, FRUIT, IGNORE, BACKGROUND = (
    PixelClass.HEALTHY,
    PixelClass.INFECTED,
    PixelClass.FRUIT,
    PixelClass.IGNORE,
    PixelClass.BACKGROUND,
)


def box(pixel_class: PixelClass, x0: int, y0: int, x1: int, y1: int) -> Region:
    mask = np.zeros((SIZE.height, SIZE.width), np.bool_)
    mask[y0:y1, x0:x1] = True
    return region_of_mask(pixel_class, mask)


def test_each_region_is_a_fruit_numbered_as_annotated() -> None:
    labels = paint([box(HEALTHY, 0, 0, 5, 5), box(INFECTED, 10, 0, 20, 10), box(FRUIT, 0, 10, 5, 15)], SIZE)
    assert [(each.id, each.box, each.pixel_class) for each in labels.instances] == [
        (1, (0, 0, 5, 5), HEALTHY),
        (2, (10, 0, 20, 10), INFECTED),
        (3, (0, 10, 5, 15), FRUIT),
    ]
    assert labels.semantic[2, 2] == HEALTHY
    assert labels.semantic[5, 15] == INFECTED
    assert labels.semantic[12, 2] == FRUIT
    assert np.count_nonzero(labels.semantic) == 25 + 100 + 25


@pytest.mark.parametrize("order", [1, -1])
def test_an_infected_region_mostly_inside_a_fruit_is_a_lesion_of_it(order: int) -> None:
    # 6 of the lesion's 10 columns lie in the fruit.
    regions = [box(HEALTHY, 0, 0, 12, 12), box(INFECTED, 6, 2, 16, 5)][::order]
    labels = paint(regions, SIZE)
    (fruit,) = labels.instances
    assert fruit.pixel_class is INFECTED
    assert fruit.box == (0, 0, 16, 12)  # the union
    assert labels.instance_map is not None
    assert np.count_nonzero(labels.instance_map) == 144 + 4 * 3
    assert np.count_nonzero(labels.semantic == INFECTED) == 30
    assert np.count_nonzero(labels.semantic == HEALTHY) == 144 - 18


def test_an_infected_region_half_outside_is_a_fruit_of_its_own() -> None:
    labels = paint([box(HEALTHY, 0, 0, 12, 12), box(INFECTED, 7, 2, 17, 5)], SIZE)
    assert [each.pixel_class for each in labels.instances] == [HEALTHY, INFECTED]


def test_a_lesion_belongs_to_the_fruit_that_holds_most_of_it() -> None:
    labels = paint([box(HEALTHY, 0, 0, 10, 20), box(HEALTHY, 10, 0, 21, 20), box(INFECTED, 6, 4, 12, 8)], SIZE)
    assert [each.pixel_class for each in labels.instances] == [INFECTED, HEALTHY]


def test_a_lesion_inside_two_fruits_belongs_to_the_one_on_top() -> None:
    large, small, lesion = box(HEALTHY, 0, 0, 20, 20), box(HEALTHY, 4, 4, 14, 14), box(INFECTED, 6, 6, 9, 9)
    labels = paint([large, small, lesion], SIZE)
    assert [each.pixel_class for each in labels.instances] == [HEALTHY, INFECTED]
    assert np.count_nonzero(labels.semantic == INFECTED) == 9


def test_smaller_fruits_lie_on_top_and_lesions_only_on_their_own() -> None:
    small, large = box(HEALTHY, 8, 0, 14, 10), box(HEALTHY, 0, 0, 12, 20)
    lesion = box(INFECTED, 2, 2, 11, 6)  # of the large fruit, reaches under the small one
    for regions in ([small, large, lesion], [lesion, large, small]):
        labels = paint(regions, SIZE)
        assert (labels.semantic[2:6, 8:14] == HEALTHY).all()
        assert (labels.semantic[2:6, 2:8] == INFECTED).all()
        assert labels.instance_map is not None
        assert len(np.unique(labels.instance_map[0:10, 8:14])) == 1


def test_of_equal_fruits_the_later_lies_on_top_and_a_hidden_one_is_not_listed() -> None:
    labels = paint([box(HEALTHY, 0, 0, 5, 5), box(FRUIT, 0, 0, 5, 5)], SIZE)
    assert [(each.id, each.pixel_class) for each in labels.instances] == [(2, FRUIT)]


def test_ignored_regions_lie_on_top_but_take_nothing_from_a_fruit() -> None:
    labels = paint([box(IGNORE, 0, 0, 5, 20), box(HEALTHY, 3, 0, 12, 12)], SIZE)
    assert (labels.semantic[:, :5] == IGNORE).all()
    assert labels.instances[0].box == (3, 0, 12, 12)
    assert labels.instances[0].pixel_class is HEALTHY


def test_background_regions_change_nothing() -> None:
    with_leaf = paint([box(HEALTHY, 0, 0, 12, 12), box(BACKGROUND, 3, 3, 6, 6)], SIZE)
    assert (with_leaf.semantic == paint([box(HEALTHY, 0, 0, 12, 12)], SIZE).semantic).all()


def test_no_region_is_an_image_without_fruit() -> None:
    labels = paint([], SIZE)
    assert not labels.semantic.any()
    assert labels.instances == ()
    assert labels.semantic.shape == (20, 30)


@given(
    st.lists(
        st.tuples(st.floats(-20, 50, allow_nan=False), st.floats(-20, 40, allow_nan=False)), min_size=3, max_size=6
    )
)
@example([(0.0, 2.0), (0.0, 0.0), (19.798134540763392, 19.798134540763392)])
@settings(deadline=None)
def test_outlines_are_filled_as_over_the_whole_image(points: list[tuple[float, float]]) -> None:
    def crossings(x: float, y: float) -> int:
        ends = zip(points, points[1:] + points[:1], strict=True)
        crossed = [(a, b) for a, b in ends if (a[1] <= y) != (b[1] <= y)]
        return sum(a[0] + (y - a[1]) * (b[0] - a[0]) / (b[1] - a[1]) > x for a, b in crossed)

    def on_an_edge(x: float, y: float) -> bool:
        centre, ends = np.array((x, y)), np.array(points)
        along = np.roll(ends, -1, axis=0) - ends
        share = ((centre - ends) * along).sum(axis=1) / np.maximum((along**2).sum(axis=1), 1e-12)
        nearest = ends + np.clip(share, 0, 1)[:, None] * along
        return bool(np.hypot(*(nearest - centre).T).min() < 1e-6)

    expected = np.array([[crossings(x + 0.5, y + 0.5) % 2 == 1 for x in range(30)] for y in range(20)])
    # For a centre on an edge, rounding decides.
    sure = np.array([[not on_an_edge(x + 0.5, y + 0.5) for x in range(30)] for y in range(20)])
    if not expected.any():
        return
    try:
        region = region_of_rings(HEALTHY, [np.array(points)], SIZE)
    except DataError:
        assert not (expected & sure).any()
        return
    labels = np.zeros((20, 30), np.bool_)
    labels[region.window] = region.mask
    assert region.area == np.count_nonzero(labels)
    assert (labels == expected)[sure].all()


def test_an_outline_beside_the_image_is_rejected() -> None:
    for shift in (-100, 100):
        ring = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 10.0]]) + shift
        with pytest.raises(DataError, match="covers no pixel"):
            region_of_rings(HEALTHY, [ring], SIZE)


def test_an_invalid_outline_is_rejected() -> None:
    with pytest.raises(RegionFault, match="at least 3 vertices"):
        region_of_rings(HEALTHY, [np.array([[0.0, 0.0], [10.0, 0.0]])], SIZE)
    with pytest.raises(DataError, match="not finite"):
        region_of_rings(HEALTHY, [np.array([[0.0, 0.0], [10.0, np.nan], [3.0, 3.0]])], SIZE)
    with pytest.raises(RegionFault, match="at most 10000000 from 0"):
        region_of_rings(HEALTHY, [np.array([[0.0, 0.0], [1e300, 1.0], [3.0, 3.0]])], SIZE)
