"""Train U-Nets on annotated and rendered images, and fine-tune SAM on annotated ones."""
