"""Export nuclei to files for other programs, one module per format."""
