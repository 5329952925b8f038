"""Models and images: everything that turns pixels and prompts into masks, and nothing that serves them."""
