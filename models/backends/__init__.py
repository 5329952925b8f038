"""Executes models on devices: PyTorch (CUDA, CPU) and OpenVINO (CPU) behind one interface."""

import sys

# OpenVINO, when it is imported, and NNCF report their use to an analytics service unless this package of theirs cannot
# be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
