"""Pictures to test, show and train with."""
