"""Makes the golden masks of everything in an image with MobileSAM's own `SamAutomaticMaskGenerator`.

    git clone https://github.com/ChaoningZhang/MobileSAM && git -C MobileSAM checkout 34bbbfd
    git clone https://github.com/facebookresearch/segment-anything && git -C segment-anything checkout dca509f
    python -m tests.golden.make_automatic --reference MobileSAM --checkpoint MobileSAM/weights/mobile_sam.pt \
        --notebook segment-anything/notebooks/images

Its default parameters, on PyTorch in float32 on a CPU, which takes about 0.2 s per point on two quiet cores. The three
photographs of segment-anything's notebook are not part of this project; stored are their SHA-256 and the masks.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.golden.automatic import GOLDEN, IMAGES, NOTEBOOK, path_of

SEED = 0


def main() -> None:
    """Generate, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="a checkout of MobileSAM")
    parser.add_argument("--checkpoint", type=Path, required=True, help="mobile_sam.pt")
    parser.add_argument("--notebook", type=Path, required=True, help="folder of dog.jpg, groceries.jpg and truck.jpg")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.reference))
    warnings.simplefilter("ignore")
    torch.manual_seed(SEED)
    from mobile_sam import SamAutomaticMaskGenerator, sam_model_registry  # type: ignore[import-not-found]

    sam = sam_model_registry["vit_t"](checkpoint=str(arguments.checkpoint)).eval()
    stored: dict[str, Any] = {}
    for name, per_side in IMAGES.items():
        path = arguments.notebook / name if name in NOTEBOOK else path_of(name)
        if path is None:
            raise SystemExit(f"{name} is missing")
        import PIL.Image

        with PIL.Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        generator = SamAutomaticMaskGenerator(
            sam, points_per_side=per_side, points_per_batch=16, output_mode="coco_rle"
        )
        started = time.perf_counter()
        found = generator.generate(pixels)
        print(f"{name}: {len(found)} masks in {time.perf_counter() - started:.0f} s", file=sys.stderr)
        stored[name] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "points_per_side": per_side,
            "size": list(pixels.shape[:2]),
            "masks": [
                {
                    "counts": one["segmentation"]["counts"],
                    "score": round(one["predicted_iou"], 5),
                    "stability_score": round(one["stability_score"], 5),
                    "point": one["point_coords"][0],
                }
                for one in found
            ],
        }
        GOLDEN.write_bytes(gzip.compress(json.dumps(stored).encode(), mtime=0))


if __name__ == "__main__":
    main()
