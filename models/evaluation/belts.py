"""Measure how well fruit is followed along rendered belts, and draw one of them.

python -m models.evaluation.belts --seeds 6 --seconds 4 --fps 15
python -m models.evaluation.belts --truth --seeds 40 --fps 10 15 30 --drop 0.1
python -m models.evaluation.belts --draw docs/belt.webp --first-seed 102 --fps 10

The first lets the default U-Net find the fruit, the second takes it from the truth. The third made docs/belt.webp.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import PIL.Image
from platformdirs import user_cache_path
from scipy.optimize import linear_sum_assignment

from models.backends.load import ModelStore, choose_backend, load_unet
from models.catalog import CATALOGUE
from models.inspection import GRADES, Grade, grade_of, inspect
from models.letterbox import resize
from models.masks import PixelBox
from models.overlay import draw_detections
from models.synthetic.belts import BeltFrame, BeltOptions, render_belt
from models.tracking import Tracker, Verdict, View, credible_views
from models.types import Box, PixelClass, Pixels, Size
from models.unet.letterbox import input_area, unet_letterbox

Finder: TypeAlias = Callable[[BeltFrame], list[View]]
"""Finds the fruit of a frame."""

SIZE: Final = Size(224, 448)
_MATCH: Final = 0.5
_UNET: Final = "unet-mobilenetv2-citrus"
_LEAST_SEEN: Final = 2
"""Frames that a fruit must be in to be counted."""

_DRAWN: Final = (640, 320)


@dataclass
class Score:
    """Counts over belts; fruits of different belts are different.

    Attributes:
        pairs: frames in which a fruit of the truth and a track were found at the same place.
        truths: frames of each fruit.
        tracks: frames of each track.
        switches: how often a fruit was found by another track than before.
        count_errors: difference of judged and true fruits, of each belt.
        fruits: true fruits, of all belts.
        right: fruits whose verdict has the true grade, that of the worst true view.
        by_frame: the same of one frame, in the middle of the image.
        judged: fruits that both were compared for.
    """

    pairs: Counter[tuple[object, object]] = field(default_factory=Counter)
    truths: Counter[object] = field(default_factory=Counter)
    tracks: Counter[object] = field(default_factory=Counter)
    switches: int = 0
    count_errors: list[int] = field(default_factory=list)
    fruits: int = 0
    right: int = 0
    by_frame: int = 0
    judged: int = 0

    @property
    def idf1(self) -> float:
        """Share of all places that the best assignment of tracks to fruits explains (Ristani et al., 2016)."""
        rows, columns = list(self.truths), list(self.tracks)
        shared = np.array([[self.pairs[row, column] for column in columns] for row in rows], float).reshape(
            len(rows), len(columns)
        )
        chosen = linear_sum_assignment(-shared)
        total = self.truths.total() + self.tracks.total()
        return 2 * float(shared[chosen].sum()) / total if total else 1.0

    @property
    def count_error(self) -> float:
        """Sum over belts of the wrongly counted fruits, as a share of all."""
        return sum(map(abs, self.count_errors)) / max(1, self.fruits)


def of_truth(frame: BeltFrame) -> list[View]:
    """Return the fruit of a frame as it is."""
    found = []
    numbers = np.asarray(frame.sample.instance_map)
    for each in frame.sample.instances:
        mask = numbers == each.id
        area = int(np.count_nonzero(mask))
        infected = int(np.count_nonzero(frame.sample.semantic[mask] == PixelClass.INFECTED))
        found.append(View(each.box, area, infected / area, truncated=_at_edge(each.box, frame.sample.size)))
    return found


def by_unet(cache: Path, threads: int = 0) -> Finder:
    """Return what finds fruit as the service's mode `fast` does."""
    entry = CATALOGUE[_UNET]
    backend = load_unet(entry, choose_backend("auto"), ModelStore(cache, None, "auto"), threads=threads)
    area = input_area(entry.input_area, fast=True)

    def find(frame: BeltFrame) -> list[View]:
        letterbox = unet_letterbox(frame.sample.size, area)
        (output,) = backend.infer([backend.prepare(resize(frame.sample.pixels, letterbox), letterbox)])
        return [
            View(fruit.box, fruit.area, fruit.infected_fraction, fruit.confidence, fruit.truncated)
            for fruit in inspect(output, letterbox).fruits
        ]

    return find


def measure(
    frames: Iterator[BeltFrame],
    find: Finder,
    score: Score,
    *,
    belt: object,
    drop: float = 0.0,
    grades: Sequence[Grade] = GRADES,
) -> None:
    """Follow the fruit of one belt and add to a score.

    Args:
        frames: of the belt.
        find: finds the fruit of a frame.
        score: is added to.
        belt: makes fruits of this belt different from those of others.
        drop: share of the frames that are dropped, 0 to 1.
        grades: of verdicts.
    """
    tracker, rng = Tracker(), np.random.default_rng(int(str(belt)) if str(belt).isdigit() else 0)
    truth: dict[int, list[View]] = {}
    seen_as: dict[int, int] = {}
    central: dict[int, tuple[float, View]] = {}
    verdicts: list[Verdict] = []
    votes: Counter[tuple[int, int]] = Counter()
    for frame in frames:
        true_views = of_truth(frame)
        for fruit, view in zip(frame.fruits, true_views, strict=True):
            truth.setdefault(fruit, []).append(view)
        if rng.random() < drop:
            continue
        views = find(frame)
        update = tracker.update(frame.number, frame.time, frame.sample.size, views)
        verdicts += update.verdicts
        for fruit in frame.fruits:
            score.truths[belt, fruit] += 1
        for track_id in filter(None, update.track_ids):
            score.tracks[belt, track_id] += 1
        for row, column in _matches([view.box for view in true_views], [view.box for view in views]):
            fruit, track_id = frame.fruits[row], update.track_ids[column]
            away = abs(views[column].centre[0] - frame.sample.size.width / 2)
            if fruit not in central or away < central[fruit][0]:
                central[fruit] = (away, views[column])
            if not track_id:
                continue
            score.pairs[(belt, fruit), (belt, track_id)] += 1
            votes[fruit, track_id] += 1
            score.switches += fruit in seen_as and seen_as[fruit] != track_id
            seen_as[fruit] = track_id
    verdicts += tracker.in_view()
    counted = [fruit for fruit, views in truth.items() if len(views) >= _LEAST_SEEN]
    score.fruits += len(counted)
    score.count_errors.append(len(verdicts) - len(counted))
    by_track = {verdict.track_id: verdict for verdict in verdicts}
    for fruit in counted:
        best = max(((count, track) for (one, track), count in votes.items() if one == fruit), default=None)
        if best is None or best[1] not in by_track or fruit not in central:
            continue
        true_grade = grade_of(max(view.infected_fraction for view in credible_views(truth[fruit])), grades)
        score.judged += 1
        score.right += grade_of(by_track[best[1]].infected, grades) == true_grade
        score.by_frame += grade_of(central[fruit][1].infected_fraction, grades) == true_grade


def draw(path: Path, find: Finder, *, seed: int, options: BeltOptions) -> None:
    """Draw a belt as an animation: each fruit with its track, and its verdict so far."""
    tracker, shown = Tracker(), []
    for frame in render_belt(seed, SIZE, options):
        views = find(frame)
        update = tracker.update(frame.number, frame.time, frame.sample.size, views)
        verdicts = {verdict.track_id: verdict for verdict in tracker.in_view()}
        shown.append(PIL.Image.fromarray(_drawn(frame.sample.pixels, views, update.track_ids, verdicts)))
    shown[0].save(
        path, save_all=True, append_images=shown[1:], duration=round(1000 / options.fps), loop=0, quality=60, method=4
    )


def _drawn(pixels: Pixels, views: Sequence[View], ids: Sequence[int], verdicts: dict[int, Verdict]) -> Pixels:
    width, height = _DRAWN
    large = np.array(PIL.Image.fromarray(pixels).resize(_DRAWN, PIL.Image.Resampling.BICUBIC))
    scale = width / pixels.shape[1], height / pixels.shape[0]
    followed = [(view, track_id) for view, track_id in zip(views, ids, strict=True) if track_id]
    boxes = [
        Box(view.box[0] * scale[0], view.box[1] * scale[1], view.box[2] * scale[0], view.box[3] * scale[1])
        for view, _ in followed
    ]
    labels = []
    for _, track_id in followed:
        verdict = verdicts.get(track_id)
        grade = "" if verdict is None else f" {grade_of(verdict.infected, GRADES)} {verdict.infected:.0%}"
        labels.append(f"#{track_id}{grade}")
    return draw_detections(large, boxes, labels, [track_id for _, track_id in followed])


def _matches(truth: Sequence[PixelBox], found: Sequence[PixelBox]) -> list[tuple[int, int]]:
    """Pair boxes by the largest IoU of at least a half."""
    if not (truth and found):
        return []
    ious = np.array([[_iou(one, other) for other in found] for one in truth])
    pairs = zip(*(each.tolist() for each in linear_sum_assignment(-ious)), strict=True)
    return [(row, column) for row, column in pairs if ious[row, column] >= _MATCH]


def _iou(one: PixelBox, other: PixelBox) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(0, width) * max(0, height)
    areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (one, other)]
    return shared / max(1, sum(areas) - shared)


def _at_edge(box: PixelBox, size: Size) -> bool:
    return box[0] == 0 or box[1] == 0 or box[2] == size.width or box[3] == size.height


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, or draw."""
    parser = argparse.ArgumentParser(prog="python -m models.evaluation.belts", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=6, help="belts (%(default)s)")
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each belt (%(default)s)")
    parser.add_argument("--fps", type=float, nargs="+", default=[15.0], help="frames per second (15)")
    parser.add_argument("--drop", type=float, default=0.0, help="share of the frames that are dropped (%(default)s)")
    parser.add_argument("--truth", action="store_true", help="take the fruit from the truth, without a U-Net")
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw one belt as an animated WebP instead")
    parser.add_argument("--cache", type=Path, help="folder of converted models (POMONA_CACHE_DIR, or the user's cache)")
    given = parser.parse_args(arguments)
    cache = given.cache or Path(os.environ.get("POMONA_CACHE_DIR") or user_cache_path("pomona"))
    find = of_truth if given.truth else by_unet(cache)
    options = BeltOptions(seconds=given.seconds)
    if given.draw is not None:
        draw(given.draw, find, seed=given.first_seed, options=replace(options, fps=given.fps[0]))
        return 0
    sys.stdout.write("| fps | belts | fruits | IDF1 | identity switches | count error | verdicts | single frames |\n")
    sys.stdout.write("|---:|---:|---:|---:|---:|---:|---:|---:|\n")
    for fps in given.fps:
        score = Score()
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            belt = render_belt(seed, SIZE, replace(options, fps=fps))
            measure(belt, find, score, belt=seed, drop=given.drop)
        sys.stdout.write(
            f"| {fps:g} | {given.seeds} | {score.fruits} | {score.idf1:.3f} | {score.switches} | "
            f"{score.count_error:.1%} | {score.right / max(1, score.judged):.1%} | "
            f"{score.by_frame / max(1, score.judged):.1%} |\n"
        )
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
