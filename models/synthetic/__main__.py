"""Writes rendered images as a data set, as a contact sheet, or both.

python -m models.synthetic --count 200 --size 448x224 --seed 0 --out FOLDER
python -m models.synthetic --count 15 --seed 300 --contact-sheet docs/rendered.jpg

The second line made docs/rendered.jpg.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import PIL.Image
from tqdm import tqdm

from models.synthetic import CannotRender, render
from models.synthetic.contact_sheet import contact_sheet
from models.synthetic.folder import write_sample
from models.types import Size


def main(arguments: Sequence[str] | None = None) -> None:
    """Render `count` images, of the seeds from `seed` on, and write what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m models.synthetic", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=15, help="how many images (%(default)s)")
    parser.add_argument("--size", type=_size, default=Size(224, 448), help="width x height in pixels (448x224)")
    parser.add_argument("--seed", type=int, default=0, help="of the first image; each next has the next (%(default)s)")
    parser.add_argument("--out", type=Path, help="a folder for images/, masks/ and instances/")
    parser.add_argument("--contact-sheet", type=Path, help="an image of all images, .png or .jpg")
    given = parser.parse_args(arguments)
    if given.count < 1:
        parser.error(f"--count {given.count}: at least one image")
    if given.out is None and given.contact_sheet is None:
        parser.error("nothing to write: give --out, --contact-sheet or both")
    try:
        _write(given)
    except (CannotRender, OSError, ValueError) as error:  # ValueError: Pillow does not know the sheet's ending
        parser.error(str(error))


def _write(given: argparse.Namespace) -> None:
    shown = []
    for seed in tqdm(range(given.seed, given.seed + given.count), unit="image", disable=None):
        sample = render(seed, given.size)
        if given.out is not None:
            write_sample(given.out, sample)
        if given.contact_sheet is not None:
            shown.append(sample)
    if given.contact_sheet is not None:
        PIL.Image.fromarray(contact_sheet(shown)).save(given.contact_sheet, quality=82)


def _size(text: str) -> Size:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text} is not of the form WIDTHxHEIGHT")
    return Size(height=int(match[2]), width=int(match[1]))


if __name__ == "__main__":
    main()
