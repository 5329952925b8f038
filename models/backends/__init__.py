"""What runs a model on a device: PyTorch (CUDA, CPU) and OpenVINO (CPU) behind one small interface."""

import sys

# OpenVINO, as soon as it is imported, and NNCF tell an analytics service that they are used, unless this package of
# theirs cannot be imported. Nothing here calls anybody uninvited.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
