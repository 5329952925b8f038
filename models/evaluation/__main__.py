"""Evaluate models, or render the report of an earlier evaluation.

python -m models.evaluation --data FOLDER --classes 1=fruit,2=fruit --unet RUN --fine-tuned RUN --out REPORT
python -m models.evaluation --data FOLDER --rounds --proposals --edges --detection --tracking --out REPORT
python -m models.evaluation --render REPORT
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

from models.backends.cpu import cpu_quota
from models.backends.load import ModelStore, choose_backend
from models.catalog import load_catalogue
from models.data.sources import DataSource
from models.errors import PomonaError
from models.evaluation.belts import Belts
from models.evaluation.gallery import GalleryImage, contact_sheet, read_gallery
from models.evaluation.loading import Loader, Selection, load_candidates
from models.evaluation.operations import (
    OPERATIONS_FILE,
    PROTOCOLS,
    OperationsResults,
    Protocol,
    read_operations,
    write_operations,
)
from models.evaluation.options import parser
from models.evaluation.protocols import Settings, measure_operations, needs_images
from models.evaluation.results import RESULTS_FILE, Group, Results, read_results, write_results
from models.evaluation.samples import CannotEvaluate, ImageSet, data_sets, rendered_set
from models.evaluation.segmentation import measure_set
from models.provenance import commit, processor, versions

_PACKAGES: Final = ("openvino", "torch", "numpy", "opencv-python-headless", "pillow")


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and print the main tables; return 1 on failure, with the reason on stderr."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.failures and not options.render:
            raise CannotEvaluate("--failures needs --render, with the folder of a report")
        protocols = [name for name in PROTOCOLS if getattr(options, name)]
        if options.render and (options.render / OPERATIONS_FILE).is_file():
            _print_operations(*render_operations(options.render))
            if not (options.render / RESULTS_FILE).is_file():
                return 0
        elif protocols and not options.render:
            _print_operations(*run_operations(options, protocols))
            return 0
        results, report = render(options.render, options.failures) if options.render else run(options)
    except (PomonaError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    from models.evaluation.report import summary_markdown

    sys.stdout.write(f"{summary_markdown(results)}\n")
    for note in results.notes:
        sys.stderr.write(f"{note}\n")
    sys.stderr.write(f"{report}\n{report.with_name(RESULTS_FILE)}\n")
    return 0


def _print_operations(results: OperationsResults, report: Path) -> None:
    from models.evaluation.operations_report import operations_markdown

    sys.stdout.write(operations_markdown(results))
    for note in results.notes:
        sys.stderr.write(f"{note}\n")
    sys.stderr.write(f"{report}\n{report.with_name(OPERATIONS_FILE)}\n")


def run(options: argparse.Namespace) -> tuple[Results, Path]:
    """Evaluate, and write `results.json` and `report.html`.

    Args:
        options: of `parser`.

    Returns:
        The results, and the file of the report.

    Raises:
        PomonaError: an image, a model or an option cannot be used.
        OSError: the folder cannot be written.
    """
    _check_numbers(options)
    options.out.mkdir(parents=True, exist_ok=True)
    loader, selection = _loader(options), _selection(options)
    sets = _image_sets(options)
    if not sets:
        raise CannotEvaluate("there are no images to measure; name --data, or a number of scenes for --rendered")
    candidates, notes = load_candidates(selection, loader)
    groups, gallery = list[Group](), list[GalleryImage]()
    for images in sets:
        measured, shown = measure_set(candidates, images, seed=options.seed, progress=not options.quiet)
        groups += measured
        gallery += shown
    results = Results(
        groups=tuple(groups),
        machine=_machine(loader),
        commit=commit(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=options.seed,
        options=_recorded(options, selection),
        notes=(*notes, *_notes_on(sets)),
    )
    write_results(results, options.out / RESULTS_FILE)
    # Here, so that a machine without matplotlib can print --help.
    from models.evaluation.report import write_report

    return results, write_report(results, gallery, options.out)


def _machine(loader: Loader) -> dict[str, str]:
    return {
        "processor": processor(),
        "cores": str(cpu_quota() or os.cpu_count()),
        "backend": loader.backend,
        "threads": str(loader.threads) if loader.threads else "all",
        **versions(_PACKAGES),
    }


def run_operations(options: argparse.Namespace, protocols: Collection[Protocol]) -> tuple[OperationsResults, Path]:
    """Measure the service's operations, and write `operations.json`, `operations.md` and `operations.html`.

    Args:
        options: of `parser`.
        protocols: what to measure.

    Returns:
        The results, and the file of the page.

    Raises:
        PomonaError: an image, a model or an option cannot be used.
        OSError: the folder cannot be written.
    """
    settings = Settings(
        clicks=options.clicks,
        per_side=options.points_per_side,
        least_score=options.least_score,
        belts=Belts(options.belts, options.seconds, tuple(options.fps), options.drop),
        seed=options.seed,
        progress=not options.quiet,
    )
    _check_numbers(options)
    options.out.mkdir(parents=True, exist_ok=True)
    loader, selection = _loader(options), _selection(options)
    sets = _image_sets(options) if needs_images(protocols) else []
    rows, notes = measure_operations(protocols, sets, selection, loader, settings)
    results = OperationsResults(
        rows=tuple(rows),
        machine=_machine(loader),
        commit=commit(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        options=_recorded(options, selection) | _recorded_settings(options, protocols),
        notes=(*notes, *_notes_on(sets)),
    )
    from models.evaluation.operations_report import write_operations_report

    write_operations(results, options.out / OPERATIONS_FILE)
    return results, write_operations_report(results, options.out)


def render(folder: Path, failures: Path | None = None) -> tuple[Results, Path]:
    """Write `report.html` again from `results.json`, with the gallery of the report that is there.

    Args:
        folder: of the report.
        failures: JPEG file to write with the worst images of that gallery, or None.

    Raises:
        DataError: the results or the earlier report cannot be read.
        OSError: the folder cannot be written.
    """
    from models.evaluation.report import REPORT_FILE, write_report

    results = read_results(folder / RESULTS_FILE)
    earlier = folder / REPORT_FILE
    gallery = read_gallery(earlier.read_text("utf-8")) if earlier.is_file() else []
    if failures:
        failures.write_bytes(contact_sheet(gallery))
    return results, write_report(results, gallery, folder)


def render_operations(folder: Path) -> tuple[OperationsResults, Path]:
    """Write `operations.html` and `operations.md` again from `operations.json`.

    Raises:
        DataError: the results cannot be read.
        OSError: the folder cannot be written.
    """
    from models.evaluation.operations_report import write_operations_report

    results = read_operations(folder / OPERATIONS_FILE)
    return results, write_operations_report(results, folder)


def _loader(options: argparse.Namespace) -> Loader:
    cache = options.cache or Path(os.environ.get("POMONA_CACHE_DIR") or user_cache_path("pomona"))
    return Loader(
        catalogue=load_catalogue(options.models_file),
        model_store=ModelStore(cache.expanduser(), options.weights, "auto"),  # precision as in the service
        backend=choose_backend(options.backend),
        threads=options.threads,
    )


def _check_numbers(options: argparse.Namespace) -> None:
    if options.seed < 0 or options.threads < 0 or options.rendered < 0:
        raise CannotEvaluate("--seed, --threads and --rendered must be at least 0")
    if options.most_images is not None and options.most_images < 1:
        raise CannotEvaluate(f"--most-images must be at least 1, got {options.most_images}")


def _image_sets(options: argparse.Namespace) -> list[ImageSet]:
    sets = data_sets(options.data, options.part, progress=not options.quiet)
    if options.most_images is not None:
        sets = [each.at_most(options.most_images) for each in sets]
    return [*sets, rendered_set(options.rendered)] if options.rendered else sets


def _selection(options: argparse.Namespace) -> Selection:
    defaults = Selection()
    return Selection(
        unets=tuple(options.unet),
        sams=tuple(options.sam or defaults.sams),
        tuned=tuple(options.fine_tuned),
        input_size=options.input_size,
        detectors=tuple(options.detector or defaults.detectors),
    )


def _recorded_settings(options: argparse.Namespace, protocols: Collection[Protocol]) -> dict[str, str]:
    """Return for the report those options that the measured protocols use."""
    used: dict[Protocol, dict[str, object]] = {
        "rounds": {"clicks": options.clicks},
        "proposals": {"points per side": options.points_per_side},
        "edges": {"points per side": options.points_per_side},
        "detection": {"detector": ", ".join(_selection(options).detectors), "least score": options.least_score},
        "tracking": {"belts": options.belts, "seconds": options.seconds, "dropped frames": options.drop},
    }
    return {name: str(value) for protocol in protocols for name, value in used[protocol].items()}


def _recorded(options: argparse.Namespace, selection: Selection) -> dict[str, str]:
    """Return the options for the report; of paths the last part only, as reports are shared."""
    recorded = {
        "data": ", ".join(_described(source) for source in options.data),
        "part": ", ".join(options.part),
        "rendered": str(options.rendered),
        "most images": str(options.most_images or ""),
        "unet": ", ".join(Path(word).name for word in selection.unets),
        "sam": ", ".join(Path(word).name for word in selection.sams),
        "fine-tuned": ", ".join(Path(word).name for word in selection.tuned),
        "input size": str(selection.input_size or ""),
    }
    return {name: value for name, value in recorded.items() if value}


def _described(source: DataSource) -> str:
    classes = ",".join(f"{name}={word}" for name, word in source.classes.items())
    return f"{source.path.absolute().name} ({classes})" if classes else source.path.absolute().name


def _notes_on(sets: Sequence[ImageSet]) -> list[str]:
    return [
        f"{each.title}: the annotation does not separate fruits, so no prompts are made from it and no fruits counted."
        for each in sets
        if not each.has_instances
    ]


if __name__ == "__main__":
    sys.exit(main())
