"""Trains models.

python -m models.training unet --data FOLDER --out RUN
python -m models.training sam --data FOLDER --out RUN
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from models.errors import PomonaError
from models.training import sam_command, unet_command

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

# Each adds its subcommand, and sets `run` to what takes the parsed arguments.
_COMMANDS: tuple[Callable[[Subparsers], None], ...] = (unet_command.register, sam_command.register)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; 1 when it failed, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m models.training", description="Train models.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for register in _COMMANDS:
        register(subparsers)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        given.run(given)
    except (PomonaError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
