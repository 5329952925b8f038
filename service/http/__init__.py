"""The HTTP door: a thin adapter over the pipeline."""
