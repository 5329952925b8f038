"""Images to test, show and train with."""
