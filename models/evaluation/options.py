"""The command line of `make evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.data.sources import add_data_arguments
from models.evaluation.loading import NONE, Selection
from models.evaluation.protocols import Settings
from models.evaluation.rounds import MOST_CLICKS
from models.evaluation.samples import ALL


def parser() -> argparse.ArgumentParser:
    """Return the parser of all options."""
    whole = argparse.ArgumentParser(
        prog="python -m models.evaluation",
        description="Measure U-Nets and SAMs, zero-shot and fine-tuned, on annotated images and rendered scenes.",
    )
    whole.add_argument(
        "--out", type=Path, default=Path("runs/evaluation"), metavar="FOLDER", help="for the report (%(default)s)"
    )
    whole.add_argument(
        "--render",
        type=Path,
        metavar="FOLDER",
        help="only write report.html again from results.json in FOLDER, with the images of the report.html there, and "
        "operations.html from operations.json",
    )
    whole.add_argument(
        "--failures", type=Path, metavar="FILE", help="with --render: also tile the worst images of the first U-Net"
    )
    add_data_arguments(whole)
    group = whole.add_argument_group("images")
    group.add_argument(
        "--part",
        action="append",
        default=[],
        metavar="NAME",
        help=f"part of the data's split, or {ALL!r}; repeatable (test, and extra_test where the split has it)",
    )
    group.add_argument(
        "--rendered", type=int, default=100, metavar="N", help="rendered scenes, 0 for none (%(default)s)"
    )
    group.add_argument(
        "--most-images", type=int, metavar="N", help="at most so many photographs of each part, evenly spaced (all)"
    )
    _add_candidates(whole)
    _add_operations(whole)
    group = whole.add_argument_group("machine")
    group.add_argument(
        "--backend",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="runs the models (torch with a CUDA device, else openvino)",
    )
    group.add_argument("--threads", type=int, default=0, help="CPU threads on OpenVINO, 0 for all cores")
    group.add_argument("--cache", type=Path, help="folder of downloads (POMONA_CACHE_DIR, or the user's cache)")
    group.add_argument("--seed", type=int, default=0, help="of box jitter and intervals (%(default)s)")
    group.add_argument("--quiet", action="store_true", help="no progress bars")
    return whole


def _add_candidates(whole: argparse.ArgumentParser) -> None:
    group = whole.add_argument_group(
        "models", "NAME is a model of the catalogue, a run folder, a models file or a training's .safetensors file."
    )
    add = group.add_argument
    add(
        "--unet",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a U-Net; repeatable; the first finds fruits for the SAMs (the catalogue's; {NONE!r} for none)",
    )
    add(
        "--sam",
        action="append",
        default=[],
        metavar="NAME[@SIZE]",
        help=f"a zero-shot SAM; repeatable ({Selection().sams[0]}; {NONE!r} for none)",
    )
    add("--fine-tuned", action="append", default=[], metavar="NAME[@SIZE]", help="a fine-tuned SAM; repeatable")
    add(
        "--detector",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a detector, for --detection; repeatable ({Selection().detectors[0]}; {NONE!r} for none)",
    )
    add(
        "--input-size",
        type=int,
        metavar="SIZE",
        help="longest side of a SAM's input, where NAME has no @SIZE (a fine-tuned model's own, else 1024)",
    )
    add("--models-file", type=Path, metavar="FILE", help="adds your own models to the catalogue")
    add("--weights", type=Path, metavar="FOLDER", help="checkpoints under their official names")


def _add_operations(whole: argparse.ArgumentParser) -> None:
    group = whole.add_argument_group(
        "operations of the service",
        "Measured instead of the above, any of them together; written to operations.html, .md and .json.",
    )
    add = group.add_argument
    add("--rounds", action="store_true", help="SAMs: simulated clicks (mean IoU after each, NoC@85, NoC@90)")
    add("--proposals", action="store_true", help="SAMs: average recall of the masks of everything (AR@10, @100, @1000)")
    add("--edges", action="store_true", help="SAMs: edges (ODS, OIS, AP, R50), beside Sobel's and Canny's filters")
    add("--detection", action="store_true", help="detectors and U-Nets: COCO's average precision of boxes of fruit")
    add("--tracking", action="store_true", help="U-Nets and the annotation: fruit followed along rendered belts")
    defaults = Settings()
    add(
        "--clicks",
        type=int,
        default=defaults.clicks,
        metavar="N",
        help=f"most clicks on an object, 1 to {MOST_CLICKS} (%(default)s)",
    )
    add(
        "--points-per-side",
        type=int,
        default=defaults.per_side,
        metavar="N",
        help="ask at N x N points for proposals, and at half as many per side for edges (%(default)s)",
    )
    add(
        "--least-score",
        type=float,
        default=defaults.least_score,
        metavar="S",
        help="of boxes that count for precision and recall (%(default)s)",
    )
    add(
        "--belts", type=int, default=defaults.belts.count, metavar="N", help="belts to follow fruit along (%(default)s)"
    )
    add("--seconds", type=float, default=defaults.belts.seconds, metavar="S", help="length of a belt (%(default)s)")
    add("--fps", type=float, nargs="+", default=list(defaults.belts.fps), help="frames per second of belts (15)")
    add("--drop", type=float, default=defaults.belts.drop, help="share of the frames that are dropped (%(default)s)")
