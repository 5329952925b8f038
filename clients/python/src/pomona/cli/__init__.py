"""The command line, on click; the exit codes are in the help of `pomona`."""
