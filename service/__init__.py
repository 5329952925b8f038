"""The running system: doors, pipeline, runners and what surrounds them."""
