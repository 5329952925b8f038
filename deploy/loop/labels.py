"""The annotator's part: replaces what the model said about captured frames by the truth."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import PIL.Image

from models.data.samples import Sample
from models.data.splits import SPLIT_FILE
from models.errors import PomonaError

ANNOTATIONS: Final = "annotations.json"


class CannotLabel(PomonaError):
    """Captures cannot be labelled."""


def label(tasks: Path, out: Path, truth: Callable[[str], Sample], part: Callable[[str], str]) -> dict[str, int]:
    """Write training folders of captured frames: their images with the masks of the truth, and a split.

    Args:
        tasks: what `python -m service.capture export --to label-studio` wrote.
        out: folder to be made.
        truth: returns the truth about a frame by its `frame_id`.
        part: returns the part of the split that a frame belongs to, likewise.

    Returns:
        How many frames there are of each part.

    Raises:
        CannotLabel: a task has no `frame_id`, its image has another size than the truth, or there is nothing to label.
    """
    for folder in ("images", "masks", "instances"):
        (out / folder).mkdir(parents=True)
    split: dict[str, list[str]] = defaultdict(list)
    for task in json.loads((tasks / ANNOTATIONS).read_text("utf-8")):
        data = task["data"]
        image = tasks / "images" / data["image"]
        if "frame_id" not in data:
            raise CannotLabel(f"{image.name} has no frame_id, so its truth cannot be looked up.")
        sample = truth(data["frame_id"])
        with PIL.Image.open(image) as opened:
            size = opened.size
        if size != (sample.size.width, sample.size.height):
            raise CannotLabel(
                f"{image.name} must have the size of {data['frame_id']}, {sample.size.width} x {sample.size.height}, "
                f"has {size[0]} x {size[1]}."
            )
        shutil.copyfile(image, out / "images" / image.name)
        PIL.Image.fromarray(sample.semantic).save(out / "masks" / f"{image.stem}.png")
        PIL.Image.fromarray(np.asarray(sample.instance_map)).save(out / "instances" / f"{image.stem}.png")
        split[part(data["frame_id"])].append(image.stem)
    if not split:
        raise CannotLabel("Nothing was captured: send more frames, or raise POMONA_CAPTURE_SAMPLE.")
    (out / SPLIT_FILE).write_text(json.dumps(split, indent=1), "utf-8")
    return {name: len(names) for name, names in split.items()}
