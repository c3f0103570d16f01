"""Nuclei as one table: outlines, measurements, UUIDs, storage."""
