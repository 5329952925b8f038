"""Runners: each has one model on one device; those on the same device share its queue and its thread."""
