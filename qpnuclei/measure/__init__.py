"""Measurements of nuclei by the definitions of QuPath."""
