"""What all models on OpenVINO's CPU plugin share: how they are compiled and run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from models.backends.cpu_share import quota
from models.errors import BackendError


@cache
def _core() -> openvino.Core:
    return openvino.Core()


def compile_model(path: Path, *, threads: int = 0, bf16: bool = False) -> openvino.InferRequest:
    """Compile a converted model.

    Args:
        path: its `.xml` file.
        threads: CPU threads of one inference; 0 for all cores, or for as many as a container's limit allows.
        bf16: compute in bfloat16 instead of float32; inputs and outputs stay as they are.

    Raises:
        BackendError: OpenVINO cannot read or compile it.
    """
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        # Some CPUs would take bfloat16 by default; masks then differ from machine to machine.
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "INFERENCE_NUM_THREADS": threads or quota(),
    }
    try:
        return _core().compile_model(path, "CPU", options).create_infer_request()
    except (RuntimeError, OSError, ValueError) as error:
        raise BackendError(
            f"OpenVINO cannot compile {path}: {error} "
            f"Delete the folder {path.parent}: its models are converted again at the next start."
        ) from error


def infer(request: openvino.InferRequest, inputs: Sequence[NDArray[np.generic]]) -> list[NDArray[np.float32]]:
    """Run and copy the outputs, which the request would overwrite at its next run.

    Raises:
        BackendError: OpenVINO failed.
    """
    try:
        results = request.infer(list(inputs), share_inputs=True)
        return [np.asarray(results[port]) for port in range(len(results))]
    except RuntimeError as error:
        raise BackendError(f"OpenVINO failed: {error}") from error
