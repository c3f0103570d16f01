"""Divide a region into tiles, and join nuclei that tile borders cut."""
