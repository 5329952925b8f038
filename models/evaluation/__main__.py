"""Evaluates models.

python -m models.evaluation --data FOLDER --classes 1=fruit,2=fruit --unet RUN --fine-tuned RUN --out REPORT
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from models.errors import PomonaError
from models.evaluation.command import RESULTS, parser, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate and print the main tables; 1 when it failed, with the reason on stderr."""
    given = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        results, report = run(given)
    except (PomonaError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    from models.evaluation.report import summary_markdown

    sys.stdout.write(f"{summary_markdown(results)}\n")
    for note in results.notes:
        sys.stderr.write(f"{note}\n")
    sys.stderr.write(f"{report}\n{given.out / RESULTS}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
