"""Capture: hard frames are kept on disk with their answers, for people to look at and models to learn from."""
