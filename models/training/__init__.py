"""Training: U-Nets from annotated and rendered images, SAM from annotated ones."""
