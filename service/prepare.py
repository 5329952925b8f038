"""Fetch, verify and convert the models of POMONA_MODELS, then end: `python -m service.prepare`.

For building an image, and as a step before a server that cannot convert models itself. The settings are those of the
server; `POMONA_BACKEND` chooses the backend. U-Nets for OpenVINO are also converted in float32 where int8 is set, as
machines without instructions for it may run them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from models.errors import PomonaError
from service.lifecycle import prepare_files
from service.observability import logs
from service.settings import Settings, load_settings


def prepare(settings: Settings) -> Iterator[Settings]:
    """Prepare for `settings`, and for the precision that another machine may fall back to.

    Yields:
        The settings for which all files now exist.

    Raises:
        PomonaError: a checkpoint cannot be fetched or converted.
    """
    for precision in dict.fromkeys([settings.unet_precision, "fp32"]):
        these = settings.model_copy(update={"unet_precision": precision})
        prepare_files(these)
        yield these


def main() -> None:
    """Read the settings, prepare, and print what was done."""
    try:
        settings = load_settings()
        logs.configure(settings.log_level)
        for these in prepare(settings):
            sys.stdout.write(
                f"{', '.join(these.models)}: ready in {these.cache_dir} (U-Nets: {these.unet_precision})\n"
            )
    except PomonaError as error:
        raise SystemExit(f"pomona: {error.detail}") from error


if __name__ == "__main__":
    main()
