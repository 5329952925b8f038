"""Each action of the soak, and a few inputs of the fuzzing, against a real server of tiny models."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing

import pytest

from loadtest.answers import PASSED
from loadtest.fuzz_description import DESCRIBED
from loadtest.fuzz_requests import CALLS
from loadtest.fuzz_served import complaints, serving
from loadtest.images import render_image
from loadtest.server import Server
from loadtest.soak_mix import KINDS, Scene, Service
from models.types import Size

FEW = 12
ENOUGH = 150
"""Inputs among which one is answered, even of those that are made from the description of all operations."""


@pytest.fixture(scope="module")
def tiny() -> Iterator[Server]:
    with serving() as server:
        yield server
        assert complaints(server.log()) == []


@pytest.fixture(scope="module")
def service(tiny: Server) -> Iterator[Service]:
    with closing(Service(tiny.address, tiny.grpc_port)) as opened:
        yield opened


@pytest.mark.parametrize("name", KINDS)
def test_an_action_is_answered_as_it_may_be(service: Service, name: str) -> None:
    image = render_image(1, Size(96, 512))
    for number in range(3):
        outcome = KINDS[name].act(service, Scene.of(image, number), random.Random(number))
        assert outcome in KINDS[name].expected


@pytest.mark.parametrize("name", [*CALLS, *DESCRIBED])
def test_inputs_are_answered_or_refused(tiny: Server, name: str) -> None:
    target = {**CALLS, **DESCRIBED}[name]
    outcomes = [target.use(target.make(number)) for number in range(FEW)]
    further = (target.use(target.make(number)) for number in range(FEW, ENOUGH))
    assert PASSED in outcomes or PASSED in further
