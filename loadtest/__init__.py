"""Load tests and the bench."""
