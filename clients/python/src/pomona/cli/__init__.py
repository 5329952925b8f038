"""The command line, on click. Exit codes: see `pomona.cli.outcome`."""
