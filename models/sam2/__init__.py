"""SAM 2: networks from `transformers`, their checkpoints, prompts in batches, and objects followed over frames."""
