"""Lines of the log that come from what libraries print."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from service.observability.logs import log_printed_lines
from tests.fakes import FakeClock


@contextmanager
def printing(caplog: pytest.LogCaptureFixture, clock: FakeClock | None = None) -> Iterator[None]:
    with caplog.at_level(logging.WARNING, "pomona.printed"):
        give_back = log_printed_lines(clock or FakeClock())
        try:
            yield
        finally:
            give_back()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "pomona.printed"]


def test_afterwards_standard_error_is_as_before(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with printing(caplog):
        os.write(2, b"inside\n\n\xff half a line")
    os.write(2, b"outside\n")
    assert lines(caplog) == ["inside", "\N{REPLACEMENT CHARACTER} half a line"]
    assert capfd.readouterr().err == "outside\n"


def test_what_is_printed_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    with printing(caplog):
        os.write(2, b"a" * 10_000 + b"\n" + b"again\n" * 1000)
    assert len(lines(caplog)) == 20
    assert {len(line) for line in lines(caplog)} <= {300, 5}


def test_a_library_that_prints_while_nobody_can_read_is_not_held_up(caplog: pytest.LogCaptureFixture) -> None:
    holding_the_lock = ctypes.PyDLL(None)
    with printing(caplog):
        for _ in range(2000):  # more than a pipe takes
            holding_the_lock.write(2, b"b" * 299 + b"\n", 300)
    assert lines(caplog)[0] == "b" * 299
