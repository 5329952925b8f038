"""Object detectors with YOLOX's layout: the class and the box of everything in an image."""
