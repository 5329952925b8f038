"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from grpc_stand_in import GrpcStandIn, serve_grpc
from stand_in import StandIn, serve_http


@pytest.fixture
def http() -> Iterator[StandIn]:
    with serve_http() as service:
        yield service


@pytest.fixture
def grpc_service() -> Iterator[GrpcStandIn]:
    with serve_grpc() as service:
        yield service


@pytest.fixture(params=["http", "grpc"])
def service(request: pytest.FixtureRequest) -> Iterator[StandIn]:
    """The service on each transport."""
    with serve_http() if request.param == "http" else serve_grpc() as service:
        yield service


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """The client to use, for `stand_in.use`."""
    return str(request.param)
