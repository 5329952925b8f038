"""List and export the captures in POMONA_CAPTURE_DIR: `python -m service.capture export --to coco OUT`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, get_args

from models.errors import PomonaError
from service.capture.export import ExportFormat, ExportOptions, export
from service.capture.folder import CaptureFolder, Kept
from service.capture.records import REASONS

_FOLDER_VARIABLE: Final = "POMONA_CAPTURE_DIR"


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says, and return the exit status."""
    given = _parser().parse_args(arguments)
    root: Path | None = given.captures
    if root is None:
        sys.stderr.write(f"pomona: set {_FOLDER_VARIABLE}, or name the folder with --captures\n")
        return 2
    try:
        captures = CaptureFolder(root, 0).captures()
    except OSError as error:
        sys.stderr.write(f"pomona: the folder of captures {root} cannot be read: {error.strerror}.\n")
        return 1
    try:
        if given.command == "list":
            sys.stdout.writelines(f"{_describe(kept)}\n" for kept in captures)
            return 0
        options = ExportOptions(tuple(given.reason or ()), given.image_prefix, given.from_name, given.to_name)
        done = export(captures, given.to, given.out, options)
    except PomonaError as error:
        sys.stderr.write(f"pomona: {error.detail}\n")
        return 1
    left = f"; {done.without_answer} without an answer were left out" if done.without_answer else ""
    sys.stdout.write(f"{given.out}: {done.images} image{'' if done.images == 1 else 's'}{left}\n")
    return 0


def _describe(kept: Kept) -> str:
    capture = kept.read()
    answer = capture.answer
    said = capture.problem or "" if answer is None else f"{len(answer.fruits)} fruit, {answer.models.unet.revision}"
    return f"{kept.path.name}  {kept.nbytes >> 10} KiB  {','.join(capture.reasons)}  {said}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service.capture", description="Frames that the service kept.")
    folder = os.environ.get(_FOLDER_VARIABLE)
    parser.add_argument(
        "--captures", type=Path, default=Path(folder).expanduser() if folder else None, help=f"else {_FOLDER_VARIABLE}"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print names, sizes, reasons and answers, the oldest first")
    exporting = commands.add_parser("export", help="write images and annotations into a new folder")
    exporting.add_argument("out", type=Path, help="an empty folder, or one to be made")
    exporting.add_argument("--to", choices=get_args(ExportFormat), required=True, help="kind of annotations")
    exporting.add_argument("--reason", action="append", choices=REASONS, help="only those; may be repeated")
    exporting.add_argument("--image-prefix", default="", help="of Label Studio's tasks, before an image's name")
    exporting.add_argument("--from-name", default="label", help="Label Studio's tag with the brush labels (label)")
    exporting.add_argument("--to-name", default="image", help="Label Studio's tag with the image (image)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
