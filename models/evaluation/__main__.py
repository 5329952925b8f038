"""Evaluate models, or render the report of an earlier evaluation.

python -m models.evaluation --data FOLDER --classes 1=fruit,2=fruit --unet RUN --fine-tuned RUN --out REPORT
python -m models.evaluation --render REPORT
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from platformdirs import user_cache_path

from models.backends.cpu import cpu_quota
from models.backends.load import ModelStore, choose_backend, load_sam
from models.catalog import load_catalogue
from models.data.sources import DataSource, add_data_arguments
from models.errors import PomonaError
from models.evaluation.gallery import GalleryImage, contact_sheet, read_gallery
from models.evaluation.loading import NONE, Loader, Selection, find_models, load_candidates
from models.evaluation.results import RESULTS_FILE, Group, Results, read_results, write_results
from models.evaluation.samples import ALL, CannotEvaluate, ImageSet, data_sets, rendered_set
from models.evaluation.segmentation import measure_set

UNKNOWN: Final = "unknown"
_MOST_PER_SIDE: Final = 128

_PROJECT: Final = Path(__file__).parents[2]
_PACKAGES: Final = ("openvino", "torch", "numpy", "opencv-python-headless", "pillow")


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and print the main tables; return 1 on failure, with the reason on stderr."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.failures and not options.render:
            raise CannotEvaluate("--failures needs --render, with the folder of a report")
        if options.proposals or options.edges:
            report = run_everything(options)
            sys.stdout.write(report.read_text("utf-8"))
            sys.stderr.write(f"{report}\n")
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
        help="only write report.html again from results.json in FOLDER, with the images of the report.html there",
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
    _add_candidates(whole)
    group = whole.add_argument_group(
        "everything in an image", "Measured instead of the above, for the SAMs; written to everything.md and .json."
    )
    group.add_argument(
        "--proposals", action="store_true", help="average recall of the masks of everything (AR@10, @100, @1000)"
    )
    group.add_argument(
        "--edges", action="store_true", help="edges (ODS, OIS, AP, R50), beside Sobel's and Canny's filters"
    )
    group.add_argument(
        "--points-per-side",
        type=int,
        default=32,
        metavar="N",
        help="ask at N x N points for proposals, and at half as many per side for edges (%(default)s)",
    )
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
    if options.seed < 0 or options.threads < 0 or options.rendered < 0:
        raise CannotEvaluate("--seed, --threads and --rendered must be at least 0")
    options.out.mkdir(parents=True, exist_ok=True)
    loader = _loader(options)
    sets = data_sets(options.data, options.part, progress=not options.quiet)
    if options.rendered:
        sets.append(rendered_set(options.rendered))
    if not sets:
        raise CannotEvaluate("there are no images to measure; name --data, or a number of scenes for --rendered")
    selection = Selection(
        tuple(options.unet), tuple(options.sam or Selection().sams), tuple(options.fine_tuned), options.input_size
    )
    candidates, notes = load_candidates(selection, loader)
    groups, gallery = list[Group](), list[GalleryImage]()
    for images in sets:
        measured, shown = measure_set(candidates, images, seed=options.seed, progress=not options.quiet)
        groups += measured
        gallery += shown
    results = Results(
        groups=tuple(groups),
        machine=_machine(loader),
        commit=_commit(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        seed=options.seed,
        options=_recorded(options, selection),
        notes=(*notes, *_notes_on(sets)),
    )
    write_results(results, options.out / RESULTS_FILE)
    # Here, so that a machine without matplotlib can print --help.
    from models.evaluation.report import write_report

    return results, write_report(results, gallery, options.out)


def run_everything(options: argparse.Namespace) -> Path:
    """Measure the proposals and the edges of SAMs; return the file of the tables.

    Raises:
        PomonaError: an image, a model or an option cannot be used.
        OSError: the folder cannot be written.
    """
    from models.evaluation.everything import measure_everything, write_everything

    if options.rendered < 0 or not 1 <= options.points_per_side <= _MOST_PER_SIDE:
        raise CannotEvaluate(f"--rendered must be at least 0, and --points-per-side 1 to {_MOST_PER_SIDE}")
    options.out.mkdir(parents=True, exist_ok=True)
    loader = _loader(options)
    sets = data_sets(options.data, options.part, progress=not options.quiet)
    if options.rendered:
        sets.append(rendered_set(options.rendered))
    if not any(each.has_instances for each in sets):
        raise CannotEvaluate("there are no images whose annotations separate objects; name --data, or --rendered")
    words = tuple(options.sam or Selection().sams)
    entries = [entry for word in words for entry in find_models(word, "sam", loader.catalogue)]
    sams = [
        (entry.name, load_sam(entry, loader.backend, loader.model_store, threads=loader.threads)) for entry in entries
    ]
    rows = measure_everything(
        sams,
        sets,
        proposals=options.proposals,
        edges=options.edges,
        per_side=options.points_per_side,
        progress=not options.quiet,
    )
    recorded = _machine(loader) | {"commit": _commit(), "points per side": str(options.points_per_side)}
    return write_everything(rows, recorded, options.out)


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


def _loader(options: argparse.Namespace) -> Loader:
    cache = options.cache or Path(os.environ.get("POMONA_CACHE_DIR") or user_cache_path("pomona"))
    return Loader(
        catalogue=load_catalogue(options.models_file),
        model_store=ModelStore(cache.expanduser(), options.weights, "auto"),  # precision as in the service
        backend=choose_backend(options.backend),
        threads=options.threads,
    )


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
        "--input-size",
        type=int,
        metavar="SIZE",
        help="longest side of a SAM's input, where NAME has no @SIZE (a fine-tuned model's own, else 1024)",
    )
    add("--models-file", type=Path, metavar="FILE", help="adds your own models to the catalogue")
    add("--weights", type=Path, metavar="FOLDER", help="checkpoints under their official names")


def _recorded(options: argparse.Namespace, selection: Selection) -> dict[str, str]:
    """Return the options for the report; of paths the last part only, as reports are shared."""
    recorded = {
        "data": ", ".join(_described(source) for source in options.data),
        "part": ", ".join(options.part),
        "rendered": str(options.rendered),
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


def _machine(loader: Loader) -> dict[str, str]:
    """Return processor, cores, backend and versions."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    machine = {
        "processor": names[0] if names else platform.processor() or UNKNOWN,
        "cores": str(cpu_quota() or os.cpu_count() or UNKNOWN),
        "backend": loader.backend,
        "threads": str(loader.threads) if loader.threads else "all",
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            machine[package] = version(package)
        except PackageNotFoundError:
            machine[package] = "not installed"
    return machine


def _commit() -> str:
    """Return the project's commit, with "-dirty" where tracked files are changed; `UNKNOWN` without git."""
    git = shutil.which("git")
    if git is None:
        return UNKNOWN
    described = subprocess.run(  # noqa: S603 constant arguments
        [git, "-C", str(_PROJECT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or UNKNOWN


if __name__ == "__main__":
    sys.exit(main())
