"""Runners: each owns one model on one device: its queue, its batches, and what it learned of their times."""
