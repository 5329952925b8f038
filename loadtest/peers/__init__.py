"""The servers that the benchmark compares, each around the same model that does nothing or costs a fixed time."""
