"""Fetches, verifies and reads checkpoints."""
