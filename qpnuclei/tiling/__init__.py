"""Tiles of a region, and joining what their borders cut."""
