"""U-Net: which pixels are fruit, and which are infected."""
