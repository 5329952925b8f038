"""What `make bench-gpu` measures, on the CPU and at small sizes: the script must work where a card is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention

from loadtest import gpu
from loadtest import gpu_measures as measures
from loadtest.machine import REPORTS, machine
from models.backends.torch_backend import TorchSam
from models.letterbox import letterbox_for
from models.sam.attention import RelativeAttention
from models.sam.build import ARCHITECTURES
from models.types import Size
from service.device_queue import DeviceQueue
from service.runners.sam import SamRunner
from tests.fakes import LOADED, FakeSam

CPU = torch.device("cpu")
FRAME = letterbox_for(Size(64, 64), 64)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """So little work is done sooner by one thread, above all where other processes keep the cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_peak_of_a_device_is_counted_in_products_and_sums() -> None:
    # Any machine that runs these tests does a million a second, and none a million times a million times a thousand.
    assert 1e6 < measures.matrix_peak(CPU, torch.float32, 64) < 1e15


@pytest.mark.parametrize(("architecture", "gflop"), [("mobile-sam", 77.5), ("sam-vit-b", 972.1), ("sam-vit-h", 5962.6)])
def test_an_encoders_flops_are_counted_without_running_it(architecture: str, gflop: float) -> None:
    assert measures.encoder_flops(architecture, Size(1024, 1024)) / 1e9 == pytest.approx(gflop, rel=0.02)


def test_every_measure_runs_and_the_report_shows_them() -> None:
    weights = measures.random_weights("mobile-sam")
    sam = TorchSam("mobile-sam", weights, "cpu")
    served = measures.Served(3.0, 1.5)
    model: dict[str, Any] = {
        "model": "mobile-sam",
        "gflop": measures.encoder_flops("mobile-sam", FRAME.padded) / 1e9,
        "reference": gpu.reference_rates("mobile-sam", weights, CPU, FRAME.padded, (1, 2)),
        "bare_per_s": {count: measures.bare_rate(sam, CPU, FRAME, count) for count in (1, 2)},
        "served": {1: asdict(served), 2: asdict(served)},
        "prompts_per_s": {count: measures.prompts_rate(sam, CPU, FRAME, count, 2) for count in (1, 3)},
    }
    rates = [*model["bare_per_s"].values(), *model["prompts_per_s"].values()]
    rates += [rate for kind in model["reference"].values() for rate in kind.values()]
    assert all(rate is not None and rate > 0 for rate in rates)
    model["bare_per_s"][2] = None
    shown = gpu.table({"machine": machine(), "card": "a card", "bf16_peak_tflops": 1.0, "models": [model]})
    lines = [line.split(" | ") for line in shown.splitlines() if line.startswith("| mobile-sam")]
    assert [line[1] for line in lines[:2]] == ["1", "2"]
    assert lines[1][2] == "out of memory"
    share = 3 * model["gflop"] / 1000
    assert lines[0][3] == f"3.0, {share:.1%} (1.5)"
    assert lines[2][1] == f"{model['prompts_per_s'][1]:.0f}"


def test_what_a_vit_is_compared_with_is_segment_anythings_own_encoder() -> None:
    with torch.device("meta"):
        weights = dict(ARCHITECTURES["sam-vit-b"]().state_dict())
    encoder = measures.reference_encoder("sam-vit-b", weights)
    assert not any(isinstance(module, RelativeAttention) for module in encoder.modules())
    assert any(isinstance(module, Attention) for module in encoder.modules())


async def test_callers_at_the_queue_share_batches() -> None:
    sam = FakeSam(image_batches=(1, 4))
    runner = SamRunner(LOADED, sam, DeviceQueue(sam.device))
    served = await measures.served_rate(runner, FRAME, 4, 0.2)
    await runner.close(1)
    assert served.images_per_s > 0
    assert 1 <= served.batch <= 4
    assert sum(sam.encodes) >= 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_card_one_line_says_so_and_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main()
    assert capsys.readouterr().out == "No CUDA device here: nothing was measured, and no report was written.\n"
    assert not (REPORTS / "gpu.json").exists()
