"""The measurements of `make bench-gpu`, on the CPU and at small sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from loadtest import gpu
from loadtest.report import Effort
from models.backends.torch_backend import TorchSam, TorchUNet, filled_size
from models.letterbox import letterbox_for
from models.sam.build import ARCHITECTURES
from models.types import Size
from models.unet.build import new_unet
from models.unet.letterbox import unet_letterbox
from service.runners.sam import SamRunner
from service.runners.unet import UNetRunner
from service.scheduler.queue import DeviceQueue
from tests.fakes import LOADED, LOADED_UNET, FakeSam, FakeUNet

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
SMALL = letterbox_for(Size(64, 64), 64)
SMALL_UNET = unet_letterbox(Size(32, 64), 2048)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread, which is faster for so little work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_matrix_peak_is_in_floating_point_operations_per_second() -> None:
    assert 1e6 < gpu.matrix_peak(CPU, torch.float32, 64) < 1e15


@pytest.mark.parametrize(("architecture", "gflop"), [("mobile-sam", 77.5), ("sam-vit-b", 972.1)])
def test_the_operations_of_an_encoder_are_counted_without_running_it(architecture: str, gflop: float) -> None:
    assert gpu.encoder_flops(architecture, Size(1024, 1024)) / 1e9 == pytest.approx(gflop, rel=0.02)


def test_every_measurement_runs_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_ENOUGH_S", 0.0)
    weights = gpu.random_weights("mobile-sam")
    sam = TorchSam("mobile-sam", weights, "cpu")
    encoder = gpu.reference_encoder("mobile-sam", weights)
    served = asdict(gpu.Served(3.0, 1.5))
    model: dict[str, Any] = {
        "model": "mobile-sam",
        "gflop": gpu.encoder_flops("mobile-sam", SMALL.padded) / 1e9,
        "reference": gpu.reference_rates(encoder, CPU, SMALL.padded, (1, 2)),
        "bare_per_s": {count: gpu.bare_rate(sam, CPU, SMALL, count) for count in (1, 2)},
        "served": {1: served, 2: served},
        "prompts_per_s": {count: gpu.prompts_rate(sam, CPU, SMALL, count, 2) for count in (1, 3)},
    }
    network = new_unet("unet-mobilenetv2", seed=0).eval()
    unet = TorchUNet("unet-mobilenetv2", network.state_dict(), "cpu")
    other: dict[str, Any] = {
        "model": "a U-Net",
        "gflop": gpu.flops_of(network, SMALL_UNET.padded) / 1e9,
        "reference": gpu.reference_rates(network, CPU, SMALL_UNET.padded, (1, 2)),
        "bare_per_s": {count: gpu.bare_unet_rate(unet, CPU, SMALL_UNET, count) for count in (1, 2)},
        "served": {1: served, 2: served},
    }
    rates = [*model["bare_per_s"].values(), *other["bare_per_s"].values(), *model["prompts_per_s"].values()]
    rates += [rate for each in (model, other) for kind in each["reference"].values() for rate in kind.values()]
    assert all(rate is not None and rate > 0 for rate in rates)
    model["bare_per_s"][2] = None
    shown = gpu.lines_of({"card": "a card", "bf16_peak_tflops": 1.0, "models": [model], "unet": other})
    rows = [line.split(" | ") for line in shown if line.startswith("| mobile-sam")]
    assert [row[1] for row in rows[:2]] == ["1", "2"]
    assert rows[1][2] == "out of memory"
    assert rows[0][3] == f"3.0, {3 * model['gflop'] / 1000:.1%} (1.5)"
    assert [line.split(" | ")[1] for line in shown if line.startswith("| a U-Net")] == ["1", "2"]
    assert rows[2][1] == f"{model['prompts_per_s'][1]:.0f}"


def test_the_reference_of_a_vit_is_segment_anythings_own_encoder() -> None:
    with torch.device("meta"):
        weights = dict(ARCHITECTURES["sam-vit-b"]().state_dict())
    encoder = gpu.reference_encoder("sam-vit-b", weights)
    assert any(isinstance(module, Attention) for module in encoder.modules())


async def test_concurrent_callers_share_batches() -> None:
    sam = FakeSam(image_batches=(1, 4))
    runner = SamRunner(LOADED, sam, DeviceQueue(sam.device))
    images = [np.zeros((64, 64, 3), np.uint8)] * 4
    served = await gpu.served_rate(gpu.through_sam(runner, SMALL), images, 0.2)
    await runner.close(1)
    assert served.images_per_s > 0
    assert 1 <= served.batch <= 4
    assert sum(sam.encodes) >= 4


async def test_callers_of_a_unet_share_batches_too() -> None:
    unet = FakeUNet()
    runner = UNetRunner(LOADED_UNET, unet, DeviceQueue(unet.device))
    images = [np.zeros((SMALL_UNET.resized.height, SMALL_UNET.resized.width, 3), np.uint8)] * 4
    served = await gpu.served_rate(gpu.through_unet(runner, SMALL_UNET), images, 0.2)
    await runner.close(1)
    assert served.images_per_s > 0
    assert served.batch >= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_no_report_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main(Effort(1, 1.0), tmp_path)
    assert capsys.readouterr().out == "There is no CUDA device: nothing was measured, and no report was written.\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 5)])
def test_batches_run_in_the_sizes_that_warm_up_ran(count: int, size: int) -> None:
    assert filled_size(count, (1, 2, 4)) == size


def test_a_filled_batch_gives_the_results_of_its_images_alone() -> None:
    random = np.random.default_rng(0)
    sam = TorchSam("mobile-sam", gpu.random_weights("mobile-sam"), "cpu")
    images = [sam.prepare(random.integers(0, 256, (64, 64, 3), np.uint8), SMALL) for _ in range(3)]
    alone = [sam.encode([image])[0] for image in images]
    sam.image_batches = (1, 4)
    for ours, expected in zip(sam.encode(images), alone, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)

    network = new_unet("unet-mobilenetv2", seed=0).eval()
    unet = TorchUNet("unet-mobilenetv2", network.state_dict(), "cpu")
    frames = [random.integers(0, 256, (32, 64, 3), np.uint8) for _ in range(3)]
    singles = [unet.infer([frame])[0] for frame in frames]
    unet.image_batches = (1, 4)
    for outputs, single in zip(unet.infer(frames), singles, strict=True):
        np.testing.assert_allclose(outputs, single, rtol=1e-3, atol=1e-4)
