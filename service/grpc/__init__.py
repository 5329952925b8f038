"""The gRPC door: a thin adapter over the pipeline."""
