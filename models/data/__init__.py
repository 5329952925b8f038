"""Annotated images: readers of their formats, samples, splits."""
