"""Segment Anything: encoders, prompts, the decoder and what turns its logits into masks."""
