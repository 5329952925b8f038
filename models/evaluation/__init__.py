"""How good masks, classes, objects and scores are."""
