"""Fetch, verify and convert what POMONA_MODELS names, then end: `python -m service.prepare`.

For the build of an image, and for a step before a server that cannot convert itself. Settings are those of the server,
and `POMONA_BACKEND` says for which backend. U-Nets for OpenVINO are converted in float32 also where int8 is asked for:
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
    """Prepare for `settings`, and for those that another machine may fall back to.

    Yields:
        the settings for which all is now there.

    Raises:
        PomonaError: a checkpoint cannot be had, or cannot be converted.
    """
    for wished in dict.fromkeys([settings.unet_precision, "fp32"]):
        these = settings.model_copy(update={"unet_precision": wished})
        prepare_files(these)
        yield these


def main() -> None:
    """Read the settings, prepare, and say what was done."""
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
