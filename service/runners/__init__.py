"""Runners: each owns one model and its batches; those on the same device share its queue and its thread."""
