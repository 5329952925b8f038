"""What tests of several folders share: the real checkpoint, the models loaded from it, a certificate."""

from __future__ import annotations

import pytest

from models.backends.base import SamBackend
from models.backends.load import Shelf, load_sam
from models.zoo import CATALOGUE
from service.settings import load_settings
from tests.identity import Identity, issue


@pytest.fixture(scope="session")
def shelf() -> Shelf:
    """Where the service keeps its files, so that a developer's checkpoint is fetched and converted once."""
    return load_settings().shelf


@pytest.fixture(scope="session")
def torch_sam(shelf: Shelf) -> SamBackend:
    """MobileSAM with its real checkpoint on PyTorch."""
    return load_sam(CATALOGUE["mobile-sam"], "torch", shelf)


@pytest.fixture(scope="session")
def openvino_sam(shelf: Shelf) -> SamBackend:
    """MobileSAM with its real checkpoint on OpenVINO."""
    return load_sam(CATALOGUE["mobile-sam"], "openvino", shelf)


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    """A certificate for `localhost`."""
    return issue(tmp_path_factory.mktemp("identity"))
