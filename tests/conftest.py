"""What tests of several folders share: the real checkpoint, the models loaded from it, a certificate."""

from __future__ import annotations

import pytest

from models.backends.base import SamBackend
from models.backends.load import ModelStore, load_sam
from models.catalog import CATALOGUE
from service.settings import load_settings
from tests.identity import Identity, issue


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-fast` leaves out, and what `make test` runs alone: see the markers in pyproject.toml."""
    for item in items:
        if "faults" in item.path.parts:
            item.add_marker(pytest.mark.alone)
        if {"browser", "golden", "system"} & set(item.path.parts):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def model_store() -> ModelStore:
    """Where the service keeps its files, so that a developer's checkpoint is fetched and converted once."""
    return load_settings().model_store


@pytest.fixture(scope="session")
def torch_sam(model_store: ModelStore) -> SamBackend:
    """MobileSAM with its real checkpoint on PyTorch."""
    return load_sam(CATALOGUE["mobile-sam"], "torch", model_store)


@pytest.fixture(scope="session")
def openvino_sam(model_store: ModelStore) -> SamBackend:
    """MobileSAM with its real checkpoint on OpenVINO."""
    return load_sam(CATALOGUE["mobile-sam"], "openvino", model_store)


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A certificate for `localhost`."""
    return issue(tmp_path_factory.mktemp("identity"))
