"""Makes the golden masks of this folder with MobileSAM's own code, which shares none with ours.

    git clone https://github.com/ChaoningZhang/MobileSAM && git -C MobileSAM checkout 34bbbfd
    python -m tests.golden.make_golden --reference MobileSAM --checkpoint MobileSAM/weights/mobile_sam.pt

Three images are drawn by `drawing.py` (seeds below) and stored as JPEG, so that the masks do not depend on
what draws them; one is the portrait of Grace Hopper that matplotlib carries (NASA, public domain), not copied. Each
prompt goes through `mobile_sam.SamPredictor` on PyTorch in float32 on a CPU, at 1024 pixels, padded to a square. Stored
are the masks as COCO RLE (written by pycocotools) with their predicted IoUs, in the order of the decoder's tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from pycocotools import mask as coco

from models.types import Size
from tests.golden.drawing import render_oranges
from tests.golden.golden import FOLDER, GOLDEN, read_image

DRAWN = {
    "belt.jpg": (11, Size(640, 960), 5),
    "crowded.jpg": (12, Size(500, 333), 9),
    "narrow.jpg": (13, Size(301, 777), 3),
}


def main() -> None:
    """Draw, segment, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", type=Path, required=True, help="a checkout of MobileSAM")
    parser.add_argument("--checkpoint", type=Path, required=True, help="mobile_sam.pt")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.reference))
    warnings.simplefilter("ignore")
    from mobile_sam import SamPredictor, sam_model_registry  # type: ignore[import-not-found]

    predictor = SamPredictor(sam_model_registry["vit_t"](checkpoint=str(arguments.checkpoint)).eval())
    cases = []
    for name, prompts in _prompts().items():
        pixels = read_image(name)
        predictor.set_image(pixels)
        cases += [_case(predictor, name, pixels, prompt) for prompt in prompts]
        print(f"{name}: {len(prompts)} prompts", file=sys.stderr)
    lines = ",\n".join(json.dumps(case) for case in cases)
    GOLDEN.write_text(f"[\n{lines}\n]\n")


def _prompts() -> dict[str, list[dict[str, Any]]]:
    """Points, boxes and both on each drawn fruit, and clicks on the portrait."""
    prompts: dict[str, list[dict[str, Any]]] = {}
    for name, (seed, size, fruits) in DRAWN.items():
        scene = render_oranges(seed, size, fruits)
        PIL.Image.fromarray(scene.pixels).save(FOLDER / "images" / name, quality=90)
        prompts[name] = []
        for number in sorted(set(np.unique(scene.instances)) - {0})[:4]:
            ys, xs = np.nonzero(scene.instances == number)
            middle = [float(np.median(xs)), float(np.median(ys))]
            box = scene.fruit_box(int(number))
            corners = [box.x0, box.y0, box.x1, box.y1]
            prompts[name] += [
                {"points": [middle], "labels": [1], "box": None, "multimask": True},
                {"points": [], "labels": [], "box": corners, "multimask": False},
                {"points": [middle, [2.0, 2.0]], "labels": [1, 0], "box": corners, "multimask": False},
            ]
    prompts["grace_hopper.jpg"] = [
        {"points": [[250.0, 200.0]], "labels": [1], "box": None, "multimask": True},
        {"points": [[250.0, 450.0], [250.0, 200.0]], "labels": [1, 1], "box": None, "multimask": True},
        {"points": [[250.0, 450.0], [250.0, 200.0]], "labels": [1, 0], "box": None, "multimask": False},
        {"points": [], "labels": [], "box": [150.0, 60.0, 350.0, 330.0], "multimask": True},
    ]
    return prompts


def _case(predictor: Any, name: str, pixels: NDArray[np.uint8], prompt: dict[str, Any]) -> dict[str, Any]:
    points, box = prompt["points"], prompt["box"]
    masks, scores, _ = predictor.predict(
        point_coords=np.array(points) if points else None,
        point_labels=np.array(prompt["labels"]) if points else None,
        box=None if box is None else np.array(box),
        multimask_output=prompt["multimask"],
    )
    encoded = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    return {
        "image": name,
        "size": list(pixels.shape[:2]),
        "prompt": prompt,
        "counts": [rle["counts"].decode() for rle in encoded],
        "scores": [round(float(score), 5) for score in scores],
    }


if __name__ == "__main__":
    main()
