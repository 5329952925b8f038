"""Headers of image files of untrusted origin, read in a bounded number of steps."""
