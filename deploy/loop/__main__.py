"""Go once round the circle by which hard frames become a better model: `make loop`.

Starts a service, sends it fruit that its U-Net does not know, has it capture those frames, labels them, trains a
revision on them, compares it on live frames, promotes it without a stop, and says what it was worth.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.loop.report import as_markdown, failures
from deploy.loop.turn import Amounts, Turn, TurnFailed
from loadtest.server import ServerFailed
from models.errors import PomonaError as DomainError
from pomona import PomonaError

_USUAL = Amounts()


def main(arguments: Sequence[str]) -> int:
    """Go round, and return the exit status: 1 where a step failed or the new revision is no better."""
    parser = argparse.ArgumentParser(prog="python -m deploy.loop", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/loop"), help="folder of the report (%(default)s)")
    parser.add_argument("--frames", type=int, default=_USUAL.train, help="sent to be captured (%(default)s)")
    parser.add_argument(
        "--validation", type=int, default=_USUAL.validation, help="likewise, to validate on (%(default)s)"
    )
    parser.add_argument("--held-out", type=int, default=_USUAL.held_out, help="for the figures (%(default)s)")
    parser.add_argument("--epochs", type=int, default=_USUAL.epochs, help="of the training (%(default)s)")
    parser.add_argument("--shown", type=int, default=_USUAL.shown, help="captured frames in an epoch (%(default)s)")
    parser.add_argument("--rendered", type=int, default=_USUAL.rendered, help="ordinary scenes in one (%(default)s)")
    parser.add_argument("--compared", type=int, default=_USUAL.compared, help="live frames (%(default)s)")
    parser.add_argument("--checked", type=int, default=_USUAL.checked, help="scenes to validate on too (%(default)s)")
    parser.add_argument("--area", type=int, default=_USUAL.area, help="pixels of an image in training (%(default)s)")
    given = parser.parse_args(arguments)
    for name in ("frames", "validation", "held_out", "epochs", "shown", "rendered", "compared", "checked", "area"):
        if getattr(given, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(given, name)}")
    amounts = Amounts(
        train=given.frames,
        validation=given.validation,
        held_out=given.held_out,
        epochs=given.epochs,
        shown=given.shown,
        rendered=given.rendered,
        compared=given.compared,
        checked=given.checked,
        area=given.area,
    )
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryDirectory() as folder:
            report = Turn(Path(folder), given.out.resolve(), amounts, _say).run()
    except (TurnFailed, ServerFailed, PomonaError, DomainError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    _say("")
    _say(as_markdown(report))
    _say(f"See {given.out}/report.md, report.json and before-after.webp.")
    found = failures(report)
    sys.stderr.writelines(f"{sentence}\n" for sentence in found)
    return 1 if found else 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
