"""Runs the command line: `pomona`, or `python -m pomona`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; it needs the extra `cli`."""
    try:
        from pomona.cli.main import pomona
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        sys.stderr.write("The command line needs click: pip install 'pomona-client[cli]'\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:  # while the packages are loaded
        raise SystemExit(130) from None
    pomona(prog_name="pomona")


if __name__ == "__main__":
    main()
