"""Write rendered images as a data set, as a contact sheet, or both.

python -m models.synthetic --count 200 --size 448x224 --seed 0 --out FOLDER
python -m models.synthetic --count 15 --seed 300 --contact-sheet docs/rendered.jpg

The second command made docs/rendered.jpg.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
from tqdm import tqdm

from models.synthetic import CannotRender, render
from models.synthetic.output import contact_sheet, write_sample
from models.types import Size


def main(arguments: Sequence[str] | None = None) -> None:
    """Render `--count` images, with seeds from `--seed` on, and write them."""
    parser = argparse.ArgumentParser(prog="python -m models.synthetic", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=15, help="number of images (default: %(default)s)")
    parser.add_argument(
        "--size", type=_size, default=Size(224, 448), help="width x height of each image in pixels (default: 448x224)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the first image; each image adds one (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="data set folder, gets images/, masks/ and instances/")
    parser.add_argument("--contact-sheet", type=Path, help="one image of all images and their outlines, .png or .jpg")
    options = parser.parse_args(arguments)
    if options.count < 1:
        parser.error(f"--count must be at least 1, got {options.count}")
    if options.out is None and options.contact_sheet is None:
        parser.error("nothing to write: give --out, --contact-sheet or both")
    try:
        _write(options)
    except (CannotRender, OSError, ValueError) as error:  # ValueError: Pillow does not know the sheet's ending
        parser.error(str(error))


def _write(options: argparse.Namespace) -> None:
    shown = []
    for seed in tqdm(range(options.seed, options.seed + options.count), unit="image", disable=None):
        sample = render(seed, options.size)
        if options.out is not None:
            write_sample(options.out, sample)
        if options.contact_sheet is not None:
            shown.append(sample)
    if options.contact_sheet is not None:
        PIL.Image.fromarray(contact_sheet(shown)).save(options.contact_sheet, quality=82)


def _size(text: str) -> Size:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must have the form WIDTHxHEIGHT, got {text}")
    return Size(height=int(match[2]), width=int(match[1]))


if __name__ == "__main__":
    main()
