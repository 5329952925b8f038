"""What runs a model on a device: PyTorch (CUDA, CPU) and OpenVINO (CPU) behind one small interface."""
