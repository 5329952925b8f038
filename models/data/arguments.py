"""The command line's words for annotated images, the same for every training.

--data FOLDER --classes 1=fruit,2=fruit --data-weight 2 --data OTHER.json --images FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from models.data.sources import DataSource


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --data, and the options that belong to the --data before them; `namespace.data` holds `DataSource`s."""
    group = parser.add_argument_group("annotated images", "--data may be given several times; what follows is its.")
    group.add_argument(
        "--data", action=_NextData, default=(), metavar="PATH", help="a folder, or Label Studio's or COCO's JSON file"
    )
    for option, field, metavar, said in (
        ("--classes", "classes", "NAME=CLASS,…", "what its classes mean: background, healthy, infected, fruit, ignore"),
        ("--images", "images", "FOLDER", "where its images lie, if not beside the annotations"),
        ("--split", "split", "FILE", "its split file (its own split.json; without one, by the images' hashes)"),
        ("--data-weight", "weight", "W", "how often an epoch shows each of its images, on average (1)"),
        ("--data-licence", "licence", "TEXT", "its licence and origin, for the model card"),
    ):
        group.add_argument(option, action=_OfLastData, field=field, metavar=metavar, help=said, dest=argparse.SUPPRESS)


class _NextData(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 argparse's words
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        namespace.data = (*namespace.data, DataSource(Path(str(values))))


class _OfLastData(argparse.Action):
    def __init__(self, *, field: str, **given: Any) -> None:
        super().__init__(**given)
        self.field = field

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        if not namespace.data:
            parser.error(f"{option_string} belongs to the --data before it; there is none")
        try:
            value = _READ[self.field](str(values))
        except ValueError as error:
            parser.error(f"{option_string}: {error}")
        namespace.data = (*namespace.data[:-1], replace(namespace.data[-1], **{self.field: value}))


def _classes(text: str) -> dict[str, str]:
    pairs = [pair.rpartition("=") for pair in text.split(",") if pair.strip()]
    if not pairs or not all(name.strip() and word.strip() for name, _, word in pairs):
        raise ValueError(f"{text!r} is not of the form NAME=CLASS,NAME=CLASS")
    return {name.strip(): word.strip() for name, _, word in pairs}


_READ: dict[str, Any] = {"classes": _classes, "images": Path, "split": Path, "weight": float, "licence": str}
