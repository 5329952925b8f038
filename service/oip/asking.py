"""What a caller asks of a model, whichever door it came through."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias, TypeVar

from service.callers import seconds_left
from service.errors import MalformedRequest, UnknownField
from service.messages import When
from service.oip.tensors import Tensor

T = TypeVar("T")

Parameter: TypeAlias = bool | int | float | str

PRIORITY: Final = "priority"
TIMEOUT: Final = "timeout"

MOST_RAW: Final = 1 << 29
MOST_LISTED: Final = 1 << 25
"""Elements of all masks of an answer: as bytes, 512 MiB; in lists, of which one takes six bytes and more."""

_LEAST_URGENT: Final = 7
_ELSEWHERE: Final = ("shared_memory_region", "classification")
"""Parameters of tensors by which other servers are asked for what is not done here."""


@dataclass(frozen=True, slots=True)
class Asked:
    """See the module.

    Attributes:
        inputs: by name.
        outputs: that are wanted, in their order; all where empty.
        parameters: of the request.
        room: for elements of masks in the answer, as it travels.
    """

    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    room: int = MOST_RAW


def by_name(what: str, named: Iterable[tuple[str, T]]) -> dict[str, T]:
    """Things by their names.

    Raises:
        MalformedRequest: a name twice.
    """
    found: dict[str, T] = {}
    for name, one in named:
        if name in found:
            raise MalformedRequest(f"The {what} {name} is there twice.")
        found[name] = one
    return found


def refuse_elsewhere(name: str, parameters: Iterable[str]) -> None:
    """Refuse what a tensor's parameters ask for that other servers have; the rest of them is let be.

    Raises:
        UnknownField: one of those.
    """
    asked = set(parameters)
    for parameter in _ELSEWHERE:
        if parameter in asked:
            raise UnknownField(f"The parameter {parameter} of {name} is not known here.")


def known(parameters: Mapping[str, Parameter], names: Iterable[str]) -> None:
    """Refuse other parameters of a request than `names` and those that every request may have.

    Raises:
        UnknownField: there is one.
    """
    names = (PRIORITY, TIMEOUT, *names)
    for name in parameters:
        if name not in names:
            raise UnknownField(f"There is no parameter {name!r} here; known: {', '.join(names)}.")


def wanted(parameters: Mapping[str, Parameter], told: When, arrived: float) -> When:
    """Until when an answer is wanted, by the protocol's parameters and by what else the caller told.

    `priority` 1 is the most urgent (RFC 9218's urgency 0), 2 the next, 8 and what is above the least; 0 leaves it to
    what was told. `timeout` is in microseconds from the request's arrival; 0 is none. The earlier limit counts.

    Args:
        parameters: of the request.
        told: by headers, metadata or the call's own deadline.
        arrived: when the request came, seconds of `time.monotonic`.

    Raises:
        MalformedRequest: one of them is not a whole number that makes sense.
    """
    priority, timeout = _whole(parameters, PRIORITY), _whole(parameters, TIMEOUT)
    if priority:
        told = replace(told, urgency=min(priority - 1, _LEAST_URGENT))
    if timeout:
        within = seconds_left(timeout / 1000, arrived, said=f"timeout is {timeout} microseconds")
        told = replace(told, within=within if told.within is None else min(within, told.within))
    return told


def _whole(parameters: Mapping[str, Parameter], name: str) -> int:
    value = parameters.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise MalformedRequest(f"The parameter {name} is {value!r}; a whole number, 0 or more, would be right.")
    return value
