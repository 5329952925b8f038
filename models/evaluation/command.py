"""The command line: who is measured on what, and where the report goes."""

from __future__ import annotations

import argparse
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

from models.backends.load import ModelStore, choose_backend
from models.catalog import load_catalogue
from models.data.sources import DataSource, add_data_arguments
from models.evaluation.candidates import NONE, Asked, Place, open_panel
from models.evaluation.data_sets import ALL, data_sets
from models.evaluation.errors import CannotEvaluate
from models.evaluation.measuring import measure_set
from models.evaluation.provenance import commit, machine
from models.evaluation.results import ImageFile, Results, write_results
from models.evaluation.shots import ImageSet, rendered_set

RESULTS: Final = "results.json"

_log = logging.getLogger("pomona.evaluation")


def parser() -> argparse.ArgumentParser:
    """All options."""
    whole = argparse.ArgumentParser(
        prog="python -m models.evaluation",
        description="Measures U-Nets and SAMs, zero-shot and fine-tuned, on annotated images and rendered scenes.",
    )
    whole.add_argument(
        "--out", type=Path, default=Path("runs/evaluation"), metavar="FOLDER", help="of the report (%(default)s)"
    )
    add_data_arguments(whole)
    group = whole.add_argument_group("what is measured on")
    group.add_argument(
        "--part",
        action="append",
        default=[],
        metavar="NAME",
        help=f"part of the data's split, or {ALL!r}; several times (test, and extra_test where the split has it)",
    )
    group.add_argument(
        "--rendered", type=int, default=100, metavar="N", help="rendered scenes, 0 for none (%(default)s)"
    )
    _add_contenders(whole)
    group = whole.add_argument_group("machine")
    group.add_argument(
        "--backend",
        choices=("auto", "torch", "openvino"),
        default="auto",
        help="what runs the models (torch with a CUDA device, else openvino)",
    )
    group.add_argument("--threads", type=int, default=0, help="CPU threads on OpenVINO, 0 for all cores")
    group.add_argument("--cache", type=Path, help="folder of downloads (POMONA_CACHE_DIR, or the user's cache)")
    group.add_argument("--seed", type=int, default=0, help="of the boxes' jitter and the intervals (%(default)s)")
    group.add_argument("--quiet", action="store_true", help="no progress bars")
    return whole


def run(given: argparse.Namespace) -> tuple[Results, Path]:
    """Evaluate, and write `results.json` and `report.html`.

    Args:
        given: of `parser`.

    Returns:
        The results, and the report's file.

    Raises:
        PomonaError: an image, a model or an option does not do.
        OSError: the folder cannot be written.
    """
    if given.seed < 0 or given.threads < 0 or given.rendered < 0:
        raise CannotEvaluate("--seed, --threads and --rendered are at least 0.")
    given.out.mkdir(parents=True, exist_ok=True)
    cache = given.cache or Path(os.environ.get("POMONA_CACHE_DIR") or user_cache_path("pomona"))
    place = Place(
        catalogue=load_catalogue(given.models_file),
        model_store=ModelStore(cache.expanduser(), given.weights, "auto"),  # as it is served
        backend=choose_backend(given.backend),
        threads=given.threads,
    )
    sets = data_sets(given.data, given.part, progress=not given.quiet)
    if given.rendered:
        sets.append(rendered_set(given.rendered))
    if not sets:
        raise CannotEvaluate("There is nothing to measure on: name --data, or some scenes for --rendered.")
    asked = Asked(tuple(given.unet), tuple(given.sam or Asked().sams), tuple(given.fine_tuned), given.input_size)
    panel, notes = open_panel(asked, place)
    groups, files = [], list[ImageFile]()
    for images in sets:
        group, drawn = measure_set(panel, images, seed=given.seed, progress=not given.quiet)
        groups.append(group)
        files += drawn
    results = Results(
        groups=tuple(groups),
        machine=machine(place.backend, place.threads),
        commit=commit(),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=given.seed,
        options=_options(given, asked),
        notes=(*notes, *_untold(sets)),
    )
    write_results(results, given.out / RESULTS)
    from models.evaluation.report import write_report

    return results, write_report(results, files, given.out)


def _add_contenders(whole: argparse.ArgumentParser) -> None:
    group = whole.add_argument_group(
        "who is measured",
        "NAME is one of the catalogue, a run folder, a models file or a training's .safetensors file.",
    )
    add = group.add_argument
    add(
        "--unet",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a U-Net; several times; the first finds fruits for the SAMs (the catalogue's; {NONE!r} for none)",
    )
    add(
        "--sam",
        action="append",
        default=[],
        metavar="NAME[@SIZE]",
        help=f"a SAM as it comes; several times ({Asked().sams[0]}; {NONE!r} for none)",
    )
    add("--fine-tuned", action="append", default=[], metavar="NAME[@SIZE]", help="a fine-tuned SAM; several times")
    add(
        "--input-size",
        type=int,
        metavar="SIZE",
        help="longest side at which SAMs see images, where NAME has no @SIZE (a fine-tuned one's own, else 1024)",
    )
    add("--models-file", type=Path, metavar="FILE", help="adds your own models to the catalogue")
    add("--weights", type=Path, metavar="FOLDER", help="checkpoints under their official names")


def _options(given: argparse.Namespace, asked: Asked) -> dict[str, str]:
    """What the command was told; of paths the last part, for the rest is nobody's business."""
    told = {
        "data": ", ".join(_words_of(source) for source in given.data),
        "part": ", ".join(given.part),
        "rendered": str(given.rendered),
        "unet": ", ".join(Path(word).name for word in asked.unets),
        "sam": ", ".join(Path(word).name for word in asked.sams),
        "fine-tuned": ", ".join(Path(word).name for word in asked.tuned),
        "input size": str(asked.input_size or ""),
    }
    return {name: value for name, value in told.items() if value}


def _words_of(source: DataSource) -> str:
    classes = ",".join(f"{name}={word}" for name, word in source.classes.items())
    return f"{source.path.absolute().name} ({classes})" if classes else source.path.absolute().name


def _untold(sets: list[ImageSet]) -> list[str]:
    return [
        f"{each.title}: the annotation does not tell fruits apart, so no prompt is made from it and no fruit counted."
        for each in sets
        if not each.told_apart
    ]
