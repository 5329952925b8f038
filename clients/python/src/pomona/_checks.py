"""Checks of what callers give, so that a wrong value is named here and not by a library below.

Each returns the value as Python's own type, and raises `InvalidArgument` with what must hold and what was given.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, Final, TypeVar

from pomona.errors import InvalidArgument

T = TypeVar("T")

LONGEST_S: Final = 1_000_000.0
"""Eleven days: more than any limit needs, and less than timers can count."""

_REPR: Final = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


def shown(value: object) -> str:
    """Return a value for an error message, shortened."""
    return _REPR.repr(value)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)  # which Python counts among the whole numbers


def whole(value: Any, name: str, *, low: int, high: int | None = None) -> int:
    """Check for a whole number, also one of numpy's, from `low` to `high`."""
    if isinstance(value, Integral) and not _is_flag(value):
        number = int(value)
        if low <= number and (high is None or number <= high):
            return number
    limits = f"at least {low}" if high is None else f"from {low} to {high}"
    raise InvalidArgument(f"{name} must be a whole number {limits}, got {shown(value)}.")


def finite(value: Any) -> float | None:
    """Return a real number as a float; None if it is not one, or not finite."""
    if not isinstance(value, Real) or _is_flag(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def number(value: Any, name: str, *, low: float, high: float) -> float:
    """Check for a real number from `low` to `high`."""
    given = finite(value)
    if given is None or not low <= given <= high:
        raise InvalidArgument(f"{name} must be a number from {low:g} to {high:g}, got {shown(value)}.")
    return given


def seconds(value: Any, name: str) -> float:
    """Check for a number of seconds above 0, at most `LONGEST_S`."""
    given = finite(value)
    if given is None or not 0 < given <= LONGEST_S:
        raise InvalidArgument(f"{name} must be a number of seconds above 0, at most {LONGEST_S:g}, got {shown(value)}.")
    return given


def text(value: Any, name: str, *, longest: int | None = None) -> str:
    """Check for a string of at most `longest` characters that can be sent as UTF-8."""
    if not isinstance(value, str) or (longest is not None and len(value) > longest):
        limit = "" if longest is None else f" of at most {longest} characters"
        raise InvalidArgument(f"{name} must be a string{limit}, got {shown(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{name} must be text that UTF-8 can hold, got {shown(value)}.") from error
    return str(value)


def token(value: Any, name: str, *, longest: int | None = None) -> str:
    """Check for a string of printable ASCII, as headers carry it."""
    if not text(value, name, longest=longest).isascii() or not value.isprintable():
        raise InvalidArgument(f"{name} must be printable ASCII, got {shown(value)}.")
    return str(value)


def flag(value: Any, name: str) -> bool:
    """Check for True or False."""
    if not isinstance(value, bool):
        raise InvalidArgument(f"{name} must be True or False, got {shown(value)}.")
    return value


def one_of(value: T, name: str, allowed: Sequence[object]) -> T:
    """Check for one of a few values of the same type."""
    if not any(type(value) is type(each) and value == each for each in allowed):
        raise InvalidArgument(f"{name} must be one of {', '.join(map(str, allowed))}, got {shown(value)}.")
    return value


def headers(value: Any) -> dict[str, str]:
    """Check for a mapping of names to values, both printable ASCII; None is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"headers must map names to values, got {shown(value)}.")
    return {token(name, "a header's name"): token(each, f"the header {name}") for name, each in value.items()}


def path(value: Any) -> str:
    """Check for a path: a string or an `os.PathLike` of one."""
    try:
        given = os.fspath(value)
    except TypeError:
        given = None
    if not isinstance(given, str):
        raise InvalidArgument(f"A path must be a string or a pathlib.Path, got {shown(value)}.")
    return given
