"""Slides: open a file, read a region at a resolution, find tissue, estimate stains."""
