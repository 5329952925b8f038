"""Where models run: what `POMONA_DEVICE` resolves to."""

from __future__ import annotations

import pytest

from models.backends.load import BackendChoice, DeviceChoice, choose_backend, cuda_devices
from models.errors import BackendError

CARDS = {"none": "", "two": "0,1"}


@pytest.fixture(params=CARDS)
def cards(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", CARDS[request.param])
    return str(request.param)


def test_automatically_models_run_on_the_devices_that_are_there(cards: str) -> None:
    assert cuda_devices("auto") == (2 if cards == "two" else 0)
    assert choose_backend("auto") == ("torch" if cards == "two" else "openvino")


def test_on_the_cpu_no_device_is_used(cards: str) -> None:
    assert cuda_devices("cpu") == 0
    assert choose_backend("auto", "cpu") == "openvino"


def test_where_cuda_is_required_nothing_else_will_do(cards: str) -> None:
    assert choose_backend("auto", "cuda") == "torch"
    if cards == "two":
        assert cuda_devices("cuda") == 2
    else:
        with pytest.raises(BackendError, match="POMONA_DEVICE=cuda requires a CUDA device, and none is visible"):
            cuda_devices("cuda")


@pytest.mark.parametrize("choice", ["torch", "openvino"])
@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_a_backend_that_is_chosen_stays(choice: BackendChoice, device: DeviceChoice) -> None:
    assert choose_backend(choice, device) == choice
