"""Checkpoints: fetched, verified, read."""
