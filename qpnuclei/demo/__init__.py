"""The demonstration: a synthetic slide of known nuclei, its annotations, score and pictures."""
