"""Draw a rendered belt with the tracks and verdicts of its fruit, as the default U-Net finds it.

python -m models.evaluation.belt_drawing docs/belt.webp --seed 102 --fps 10

That made docs/belt.webp.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import PIL.Image
from platformdirs import user_cache_path

from models.backends.load import ModelStore, choose_backend, load_unet
from models.catalog import CATALOGUE
from models.evaluation.belts import SIZE, Finder, by_unet
from models.inspection import GRADES, grade_of
from models.overlay import draw_detections
from models.synthetic.belts import BeltOptions, render_belt
from models.tracking import Tracker, Verdict, View
from models.types import Box, Pixels
from models.unet.letterbox import input_area

_UNET: Final = "unet-mobilenetv2-citrus"
_DRAWN: Final = (640, 320)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw a belt."""
    parser = argparse.ArgumentParser(
        prog="python -m models.evaluation.belt_drawing", description=__doc__.splitlines()[0]
    )
    parser.add_argument("file", type=Path, help="animated WebP to write")
    parser.add_argument("--seed", type=int, default=102, help="of the belt (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of the belt (%(default)s)")
    parser.add_argument("--fps", type=float, default=10.0, help="frames per second (%(default)s)")
    parser.add_argument("--cache", type=Path, help="folder of converted models (POMONA_CACHE_DIR, or the user's cache)")
    given = parser.parse_args(arguments)
    cache = given.cache or Path(os.environ.get("POMONA_CACHE_DIR") or user_cache_path("pomona"))
    entry = CATALOGUE[_UNET]
    unet = load_unet(entry, choose_backend("auto"), ModelStore(cache, None, "auto"))
    find = by_unet(unet, input_area(entry.input_area, fast=True))
    draw(given.file, find, seed=given.seed, options=BeltOptions(seconds=given.seconds, fps=given.fps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
