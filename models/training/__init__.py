"""Training: U-Nets from annotated and rendered pictures, SAM from annotated ones."""
