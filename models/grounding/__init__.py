"""Models of an open vocabulary, Grounding DINO and CLIPSeg: what they see, read, and answer."""
