"""Nuclei in whole-slide images without labels: headless detection for QuPath projects."""

__version__ = "0.1.0"
