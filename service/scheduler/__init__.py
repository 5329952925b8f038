"""The scheduler of a device: policy (pure), latency model, queue."""
